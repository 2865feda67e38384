"""`processes --top`: the most first, and only those that have any."""

from __future__ import annotations

from pipeline.cli.render import Listing
from pipeline.cli.top import Top

ASKED = ("pid", "comm", "netns", "container", "connections", "bytes_sent", "bytes_received", "start_ticks")
ROWS = [
    [1, "init", 9, None, 5, None, None, 1],
    [7, "nginx", 9, None, 3, 10, 20, 70],
    [8, "redis", 9, "box", 2, 30, 0, 80],
    [9, "curl", 9, None, 1, 1, 500, 90],
]


def test_the_most_bytes_of_both_directions_come_first_and_none_are_left_out() -> None:
    top = Top("bytes", 3, ())
    assert top.asked == ASKED
    assert top.shown(Listing(ASKED, ROWS)) == Listing(
        ("pid", "comm", "netns", "container", "connections", "bytes_sent", "bytes_received"),
        [[9, "curl", 9, None, 1, 1, 500], [7, "nginx", 9, None, 3, 10, 20], [8, "redis", 9, "box", 2, 30, 0]],
    )
    assert len(Top("bytes", 10, ()).shown(Listing(ASKED, ROWS)).rows) == 3


def test_the_fields_asked_for_are_those_shown() -> None:
    top = Top("connections", 1, ("comm",))
    assert top.asked == ("comm", "connections", "pid", "start_ticks")
    rows = [["init", 5, 1, 1], ["nginx", 6, 7, 70]]
    assert top.shown(Listing(top.asked, rows)) == Listing(("comm",), [["nginx"]])
