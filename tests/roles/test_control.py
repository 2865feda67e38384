"""The line between the supervisor and a child: in order, never blocking, and its end is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.codec import encode
from pipeline.errors import Malformed
from pipeline.model.process import Task
from pipeline.roles.control import Control, held_messages, member_messages

Line = tuple[Control, Control]


@pytest.fixture
def line() -> Iterator[Line]:
    """(supervisor's end, child's end)."""
    ends = Control.pair()
    yield ends
    for end in ends:
        end.close()


def everything(control: Control) -> list[dict[str, Any]]:
    return control.receive() or []


def test_messages_arrive_whole_and_in_order(line: Line) -> None:
    ours, theirs = line
    for number in range(23):
        ours.send({"op": "look", "netns": [number]}, 0.0)
    assert theirs.wait(0.0)
    assert everything(theirs) == [{"op": "look", "netns": [number]} for number in range(23)]
    assert not theirs.wait(0.0)
    assert theirs.receive() == []


def test_a_peer_that_does_not_read_never_blocks_and_gets_all_of_it_later_in_order(line: Line) -> None:
    ours, theirs = line
    sent = 0
    while ours.backlog_since_s is None:
        ours.send({"op": "members", "number": sent, "padding": "x" * 10_000}, now_s=7.0)
        sent += 1
    for _ in range(5):
        ours.send({"op": "members", "number": sent, "padding": ""}, now_s=8.0)
        sent += 1
    assert ours.backlog_since_s == 7.0
    received: list[int] = []
    while len(received) < sent:
        received += [message["number"] for message in everything(theirs)]
        ours.flush(9.0)
    assert received == list(range(sent))
    assert ours.backlog_since_s is None


def test_the_end_of_the_peer_is_seen_after_its_last_words(line: Line) -> None:
    ours, theirs = line
    theirs.send({"op": "ready"}, 0.0)
    theirs.close()
    assert ours.receive() == [{"op": "ready"}]
    assert ours.wait(0.0)
    assert ours.receive() is None


def test_what_is_sent_to_a_peer_that_has_gone_is_dropped(line: Line) -> None:
    ours, theirs = line
    theirs.close()
    for _ in range(3):
        ours.send({"op": "stop"}, 0.0)
    assert ours.backlog_since_s is None


def test_a_message_that_is_no_map_is_malformed(line: Line) -> None:
    ours, theirs = line
    ours.socket.send(b"\xc1")
    with pytest.raises(Malformed):
        theirs.receive()


def test_members_by_the_thousand_come_in_parts_that_each_fit_in_one_packet(line: Line) -> None:
    added = [Task(pid, pid) for pid in range(4_194_000, 4_194_000 + 10_007)]
    removed = [Task(pid, pid) for pid in range(1, 24)]
    ours, theirs = line
    for message in member_messages(5, added, removed):
        ours.send(message, 0.0)
    received: list[dict[str, Any]] = []
    while len(received) < 3:
        received += everything(theirs)
        ours.flush(0.0)
    assert [Task(*task) for message in received for task in message["added"]] == added
    assert [Task(*task) for message in received for task in message["removed"]] == removed


def test_what_is_held_goes_into_packets_that_are_small_enough_and_an_empty_report_is_one() -> None:
    held = [
        (4026530000 + number, [f"/proc/4194303/task/4194304/fd/{fd}" for fd in range(4)])
        for number in range(500)
    ]
    messages = held_messages(71, held)
    assert [message["more"] for message in messages] == [False, True, True]
    assert [one for message in messages for one in message["held"]] == held
    assert all(len(encode(message)) < 1 << 16 for message in messages)
    assert held_messages(71, []) == [{"op": "held", "netns": 71, "held": [], "more": False}]
