"""Which namespaces share a worker, and how one goes from one worker to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.board import ANSWERED, Board
from pipeline.config import Config, Workers
from pipeline.model.netns import Netns, NetnsInode, RosterRow
from pipeline.model.process import Task
from pipeline.roles.child import Process, start_child
from pipeline.roles.control import Control
from pipeline.roles.fleet import Fleet
from pipeline.roles.sharing import SETTLED_S, Move, plan
from pipeline.segment import InstanceFolder
from tests.live import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def test_a_busy_namespace_gets_the_worker_of_a_quiet_one_which_goes_to_the_crowd() -> None:
    assert plan({0: {1, 2, 3}, 1: {4}}, {1}, set()) == [Move(1, 1), Move(4, 0)]


def test_the_worker_with_the_fewest_quiet_namespaces_is_given_away_and_they_go_where_there_is_most_room() -> (
    None
):
    served = {0: {1, 2, 3, 4}, 1: {5, 6}, 2: {7, 8, 9}}
    assert plan(served, {1}, set()) == [Move(1, 1), Move(5, 0), Move(6, 2)]


def test_an_empty_worker_is_filled_first() -> None:
    assert plan({0: {1, 2}, 1: {3}, 2: set()}, {2}, set()) == [Move(2, 2)]


def test_who_is_busy_alone_is_neither_moved_nor_given_company() -> None:
    assert plan({0: {1, 2}, 1: {3}}, {1, 3}, set()) == []
    assert plan({0: {1, 2}, 1: {3}, 2: {4}}, {1, 3}, set()) == [Move(1, 2), Move(4, 0)]


def test_where_everybody_is_quiet_or_everybody_is_busy_nobody_moves() -> None:
    assert plan({0: {1, 2}, 1: {3}}, set(), set()) == []
    assert plan({0: {1, 2}, 1: {3}}, {1, 2, 3}, set()) == []


def test_who_was_moved_just_now_stays_and_so_does_who_would_make_room_for_another() -> None:
    assert plan({0: {1, 2}, 1: {3}}, {1}, {1}) == []
    assert plan({0: {1, 2}, 1: {3}}, {1}, {3}) == []


@given(
    st.dictionaries(st.integers(0, 30), st.integers(0, 4), max_size=20), st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
)  # fmt: skip
def test_plans_leave_each_namespace_with_one_worker_and_one_more_busy_one_alone(
    worker_of: dict[int, int], busy: set[int], unsettled: set[int]
) -> None:
    served: dict[int, set[int]] = {index: set() for index in range(5)}
    for netns, index in worker_of.items():
        served[index].add(netns)
    moves = plan(served, busy, unsettled)
    assert len({move.netns for move in moves}) == len(moves)
    assert not {move.netns for move in moves} & unsettled
    after = {index: set(shared) for index, shared in served.items()}
    for move in moves:
        after[worker_of[move.netns]].discard(move.netns)
    for move in moves:
        after[move.to].add(move.netns)
    alone = [
        sum(len(shared) == 1 and bool(shared & busy) for shared in state.values())
        for state in (served, after)
    ]
    assert sorted(worker_of) == sorted(netns for shared in after.values() for netns in shared)
    assert alone[1] > alone[0] if moves else alone[1] == alone[0]


def netns(number: int) -> Netns:
    return Netns(NetnsInode(number), (f"n{number}",), (), frozenset({Task(number, number)}))


def start_obedient(control: Control, slot: int, inode: int | None) -> Process:
    """A worker that lets go what it is told to, and looks at nothing."""

    def obey() -> None:
        while True:
            control.wait(None)
            messages = control.receive()
            if messages is None or {"op": "stop"} in messages:
                return
            for message in messages:
                if message["op"] == "drop" and message["tell"]:
                    control.send({"op": "dropped", "netns": message["netns"]}, 0.0)

    return start_child("netns", inode, obey, [])


def start_deaf(control: Control, slot: int, inode: int | None) -> Process:
    """A worker that takes no orders."""

    def wait_for_ever() -> None:
        while True:
            control.wait(None)

    return start_child("netns", inode, wait_for_ever, [])


@pytest.fixture
def board() -> Board:
    return Board(4)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[InstanceFolder]:
    made = InstanceFolder.create(str(tmp_path))
    yield made
    made.remove()


@pytest.fixture
def fleet(board: Board, folder: InstanceFolder) -> Iterator[Fleet]:
    """Two workers at most, with three namespaces: 1 and 3 share one."""
    made = Fleet(Config(workers=Workers(max=2)), folder, board, 4, start_obedient)
    yield from _with_three(made)


@pytest.fixture
def deaf_fleet(board: Board, folder: InstanceFolder) -> Iterator[Fleet]:
    made = Fleet(Config(workers=Workers(max=2)), folder, board, 4, start_deaf)
    yield from _with_three(made)


def _with_three(fleet: Fleet) -> Iterator[Fleet]:
    for number in (1, 2, 3):
        fleet.add(netns(number), 0.0)
    fleet.tend(0.0)
    yield fleet
    for worker in fleet:
        worker.child.kill()
        worker.child.reap(0.0, wait=True)


def served(fleet: Fleet) -> list[list[int]]:
    return sorted(sorted(worker.namespaces) for worker in fleet)


def row_of(fleet: Fleet, number: int) -> RosterRow:
    (row,) = (row for row in fleet.roster_rows() if row.netns == number)
    return row


def hear_until(fleet: Fleet, expected: list[list[int]], now_s: float) -> None:
    def is_so() -> bool:
        assert list(fleet.hear(set(fleet.fds()))) == []
        fleet.tend(now_s)
        return served(fleet) == expected

    wait_until(is_so, 60.0)


def test_a_namespace_that_becomes_busy_gets_a_worker_of_its_own_and_a_new_life(fleet: Fleet) -> None:
    assert served(fleet) == [[1, 3], [2]]
    before = {number: row_of(fleet, number) for number in (1, 2, 3)}
    fleet.rebalance({1}, SETTLED_S - 1)
    hear_until(fleet, [[1, 3], [2]], SETTLED_S - 1)  # they are not settled yet

    fleet.rebalance({1}, SETTLED_S)
    hear_until(fleet, [[1], [2, 3]], SETTLED_S)

    after = {number: row_of(fleet, number) for number in (1, 2, 3)}
    assert after[1].worker_pid == before[2].worker_pid
    assert after[2].worker_pid == before[1].worker_pid
    assert after[3] == before[3]
    assert after[1].life > before[1].life
    assert after[2].life > before[2].life
    assert [after[number].segment for number in (1, 2)] == [before[number].segment for number in (1, 2)]


def test_who_was_moved_stays_for_a_while_whoever_becomes_busy(fleet: Fleet) -> None:
    fleet.rebalance({1}, SETTLED_S)
    hear_until(fleet, [[1], [2, 3]], SETTLED_S)
    fleet.rebalance({2}, 2 * SETTLED_S - 1)
    hear_until(fleet, [[1], [2, 3]], 2 * SETTLED_S - 1)
    fleet.rebalance({2}, 2 * SETTLED_S)
    hear_until(fleet, [[1, 3], [2]], 2 * SETTLED_S)


def test_nothing_is_handed_on_or_proven_before_the_old_worker_has_let_go(
    deaf_fleet: Fleet, board: Board
) -> None:
    before = deaf_fleet.roster_rows()
    deaf_fleet.rebalance({1}, SETTLED_S)
    deaf_fleet.tend(SETTLED_S)
    assert served(deaf_fleet) == [[1, 3], [2]]
    board.slot(0)[ANSWERED] = board.slot(1)[ANSWERED] = 1000
    deaf_fleet.proven(1, SETTLED_S)
    assert deaf_fleet.roster_rows() == before


def test_what_a_worker_had_to_let_go_is_handed_on_when_it_dies(deaf_fleet: Fleet) -> None:
    (first, second) = deaf_fleet
    deaf_fleet.rebalance({1}, SETTLED_S)
    first.child.kill()
    second.child.kill()
    hear_until(deaf_fleet, [[1], [2, 3]], SETTLED_S)


def test_a_namespace_that_goes_while_it_is_moved_leaves_no_worker_behind(fleet: Fleet) -> None:
    fleet.remove(2, 1.0)
    fleet.tend(1.0)
    hear_until(fleet, [[1, 3]], 1.0)  # the other worker has ended
    fleet.rebalance({1}, SETTLED_S)
    assert served(fleet) == [[], [1, 3]]
    fleet.remove(1, SETTLED_S)
    hear_until(fleet, [[3]], SETTLED_S)
