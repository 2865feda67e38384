"""--group-by and --top."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.answers import Answered
from pipeline.cli.groups import Groups
from pipeline.cli.render import Listing
from tests.cli.conftest import BOX, WEB, Sockscope


def grouped(rows: list[list[object]], fields: tuple[str, ...], most: int | None = None) -> Answered:
    return Groups(fields, most).shown(Answered(Listing(fields, rows), len(rows), []))


def test_the_largest_group_is_first_and_ties_come_in_the_order_of_their_values() -> None:
    answered = grouped([["b"], [None], ["a"], ["c"], ["c"], [10], [9]], ("x",))
    assert answered.listing == Listing(
        ("x", "connections"), [("c", 2), (9, 1), (10, 1), (None, 1), ("a", 1), ("b", 1)]
    )
    assert answered.total == 6


def test_only_the_largest_are_shown_and_all_are_counted() -> None:
    answered = grouped([[1, "x"], [1, "y"], [1, "x"], [2, "x"]], ("n", "s"), most=1)
    assert answered.listing.rows == [(1, "x", 2)]
    assert answered.total == 3


def test_rows_are_counted_by_their_translation_too() -> None:
    nat = {"original": {"dst": "10.0.0.1"}, "translated": {"dst": "10.0.0.2"}}
    answered = grouped([[nat, 1], [None, 1], [dict(nat), 1]], ("nat", "n"))
    assert answered.listing.rows == [(nat, 1, 2), (None, 1, 1)]


@pytest.mark.usefixtures("filled")
def test_connections_are_counted_by_fields_of_the_contract(sockscope: Sockscope) -> None:
    rows = json.loads(sockscope("connections", "--group-by", "netns,state", "--json").stdout)
    assert rows == [
        {"netns": WEB, "state": "CLOSE_WAIT", "connections": 1},
        {"netns": WEB, "state": "ESTABLISHED", "connections": 1},
        {"netns": WEB, "state": "LISTEN", "connections": 1},
        {"netns": BOX, "state": "ESTABLISHED", "connections": 1},
    ]


@pytest.mark.usefixtures("filled")
def test_top_alone_counts_by_process_and_says_how_many_there_are(sockscope: Sockscope) -> None:
    completed = sockscope("connections", "--top", "1")
    lines = [line.split() for line in completed.stdout.decode().splitlines()]
    assert lines == [["NETNS", "PID", "COMM", "CONNECTIONS"], [str(WEB), "701", "nginx", "3"]]
    assert completed.stderr.decode().splitlines()[0] == "1 of 2 rows"


@pytest.mark.usefixtures("filled")
def test_count_of_groups_and_filters_hold_for_groups_too(sockscope: Sockscope) -> None:
    assert sockscope("connections", "--group-by", "state", "--count").stdout == b"3\n"
    listed = sockscope("connections", "--group-by", "local_port", "--established", "--no-header").stdout
    assert sorted(line.split() for line in listed.decode().splitlines()) == [["40001", "1"], ["80", "1"]]


@pytest.mark.usefixtures("filled")
def test_an_unknown_field_to_group_by_is_refused(sockscope: Sockscope) -> None:
    completed = sockscope("connections", "--group-by", "stat")
    assert completed.returncode == 2
    assert b"the nearest known one is state" in completed.stderr
