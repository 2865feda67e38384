"""Which worker serves which namespace, and when what it showed is still proven."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.board import ANSWERED, DUMP_STARTED_NS, Board
from pipeline.config import Config, Workers
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.roles.child import Process, start_child
from pipeline.roles.control import Control
from pipeline.roles.fleet import Fleet
from pipeline.segment import InstanceFolder
from tests.live import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def netns(number: int) -> Netns:
    return Netns(NetnsInode(4026530000 + number), (f"n{number}",), (), frozenset({Task(number, number)}))


def wait_for_ever() -> None:
    while True:
        signal.pause()


def start_idle(control: Control, slot: int, inode: int | None) -> Process:
    """A worker that takes no orders."""
    return start_child("netns", inode, wait_for_ever, [])


@pytest.fixture
def board() -> Board:
    return Board(4)


@pytest.fixture
def fleet(board: Board, tmp_path: Path) -> Iterator[Fleet]:
    """Room for three workers, and one that is just ending."""
    folder = InstanceFolder.create(str(tmp_path))
    made = Fleet(Config(workers=Workers(max=3)), folder, board, 4, start_idle)
    yield made
    for worker in made:
        worker.child.kill()
        worker.child.reap(0.0, wait=True)
    folder.remove()


def served(fleet: Fleet) -> list[list[int]]:
    return sorted(sorted(inode - 4026530000 for inode in worker.namespaces) for worker in fleet)


def test_each_namespace_has_a_worker_until_the_limit_and_then_they_share(fleet: Fleet) -> None:
    for number in range(3):
        fleet.add(netns(number), 0.0)
    assert served(fleet) == [[0], [1], [2]]
    for number in range(3, 7):
        fleet.add(netns(number), 0.0)
    assert sorted(len(inodes) for inodes in served(fleet)) == [2, 2, 3]
    assert [row.netns - 4026530000 for row in fleet.roster_rows()] == list(range(7))
    assert {row.state for row in fleet.roster_rows()} == {"restarting"}
    fleet.tend(0.0)
    assert {row.state for row in fleet.roster_rows()} == {"walking"}
    assert len({row.life for row in fleet.roster_rows()}) == 7


def test_what_is_unchanged_is_proven_only_after_the_ordered_look_was_taken(
    fleet: Fleet, board: Board
) -> None:
    one = netns(1)
    fleet.add(one, 0.0)
    fleet.tend(0.0)
    fleet.proven(one.inode, 5.0)
    assert fleet.roster_rows()[0].checked_at_s == 0.0  # its first look is not taken yet
    board.slot(0)[ANSWERED] = 1
    fleet.proven(one.inode, 6.0)
    assert fleet.roster_rows()[0].checked_at_s == 6.0
    fleet.order_looks([one.inode], 7.0, {one.inode})
    fleet.proven(one.inode, 8.0)
    assert fleet.roster_rows()[0].checked_at_s == 6.0
    board.slot(0)[ANSWERED] = 2
    fleet.proven(one.inode, 9.0)
    assert fleet.roster_rows()[0].checked_at_s == 9.0


def test_a_look_at_what_is_proven_already_takes_nothing_of_the_proof(fleet: Fleet, board: Board) -> None:
    one = netns(1)
    fleet.add(one, 0.0)
    fleet.tend(0.0)
    board.slot(0)[ANSWERED] = 1
    fleet.order_looks([one.inode], 7.0, set())
    fleet.proven(one.inode, 8.0)
    assert fleet.roster_rows()[0].checked_at_s == 8.0


def test_a_worker_that_stays_inside_a_dump_is_killed_once_and_replaced(
    fleet: Fleet, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add(netns(1), 100.0)
    fleet.tend(100.0)
    (worker,) = fleet
    first = worker.child.pid
    board.slot(0)[DUMP_STARTED_NS] = int(100.5e9)
    fleet.tend(105.0)
    assert worker.child.pid == first

    def is_reaped() -> bool:
        fleet.tend(106.0)
        return worker.child.pid == 0

    wait_until(is_reaped)
    assert caplog.text.count("is stuck inside a dump: killed") == 1
    fleet.tend(worker.child.start_at_s)
    assert worker.child.pid not in (0, first)
    assert board.slot(0)[DUMP_STARTED_NS] == 0


def test_a_worker_without_namespaces_that_does_not_end_is_killed_and_its_place_is_free(fleet: Fleet) -> None:
    fleet.add(netns(1), 0.0)
    fleet.tend(0.0)
    fleet.remove(netns(1).inode, 1.0)
    assert fleet.roster_rows() == []
    assert len(list(fleet)) == 1

    def is_free() -> bool:
        fleet.tend(3.5)
        return not list(fleet)

    wait_until(is_free)


def test_a_namespace_that_comes_while_a_worker_is_ending_gets_one_of_its_own(fleet: Fleet) -> None:
    fleet.add(netns(1), 0.0)
    fleet.tend(0.0)
    fleet.remove(netns(1).inode, 1.0)
    fleet.add(netns(2), 1.0)
    assert served(fleet) == [[], [2]]


def test_what_workers_say_is_heard_from_those_whose_lines_are_ready(board: Board, tmp_path: Path) -> None:
    def start_speaking(control: Control, slot: int, inode: int | None) -> Process:
        def speak() -> None:
            control.send({"op": "held", "netns": inode}, 0.0)
            wait_for_ever()

        return start_child("netns", inode, speak, [])

    folder = InstanceFolder.create(str(tmp_path))
    fleet = Fleet(Config(), folder, board, 4, start_speaking)
    try:
        for number in (1, 2):
            fleet.add(netns(number), 0.0)
        fleet.tend(0.0)
        lines = {next(iter(worker.namespaces)): worker.child.control for worker in fleet}
        for control in lines.values():
            assert control is not None and control.wait(60.0)
        second = lines[4026530002]
        assert second is not None
        assert list(fleet.hear(set())) == []
        assert list(fleet.hear({second.fileno()})) == [{"op": "held", "netns": 4026530002}]
        assert list(fleet.hear({second.fileno()})) == []
    finally:
        for worker in fleet:
            worker.child.kill()
            worker.child.reap(0.0, wait=True)
        folder.remove()
