"""A namespace on its way from one real worker to another: its segment shows its whole state all the time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.board import Board
from pipeline.clock import SystemClock
from pipeline.codec import decode_map
from pipeline.config import Config, Workers
from pipeline.errors import Vanished
from pipeline.kernel.enter import home_inode
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.model.snapshot import FoldedState, fold, from_wire
from pipeline.roles.child import Process, start_child
from pipeline.roles.control import Control
from pipeline.roles.fleet import Fleet
from pipeline.roles.netns_worker import NetnsWorker
from pipeline.roles.sharing import SETTLED_S
from pipeline.segment import InstanceFolder, read_segment
from tests.live import LiveNetns, connect_pairs, needs_root, wait_until

pytestmark = [needs_root, pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")]

DEADLINE_S = 60.0


@pytest.fixture
def others() -> Iterator[list[Netns]]:
    with LiveNetns() as one, LiveNetns() as other:
        yield [Netns(NetnsInode(live.inode), (), (live.path,), frozenset()) for live in (one, other)]


# The workers inherit what keeps the other namespaces alive, and so end before those do.
@pytest.fixture
def fleet(tmp_path: Path, others: list[Netns]) -> Iterator[Fleet]:
    """Two workers at most."""
    board, clock, folder = Board(4), SystemClock(), InstanceFolder.create(str(tmp_path))
    config = Config(workers=Workers(max=2))

    def start(control: Control, slot: int, inode: int | None) -> Process:
        def work() -> None:
            worker = NetnsWorker(config, clock)
            worker.attach(control, board.slot(slot), lambda payload: True)
            worker.run()

        return start_child("netns", inode, work, [])

    made = Fleet(config, folder, board, 4, start)
    yield made
    for worker in made:
        worker.child.kill()
        worker.child.reap(0.0, wait=True)
    folder.remove()


def state_of(fleet: Fleet, inode: int) -> FoldedState | None:
    """What a restarted aggregator would read of a namespace; None before its first generation."""
    (row,) = (row for row in fleet.roster_rows() if row.netns == inode)
    try:
        return fold([from_wire(decode_map(payload)) for payload in read_segment(row.segment).payloads])
    except Vanished:
        return None


def test_a_moved_namespace_stays_whole_and_its_next_life_begins_where_the_last_one_ended(
    fleet: Fleet, others: list[Netns]
) -> None:
    now_s = SystemClock().monotonic_s()
    sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 23)
    expected = {os.fstat(one.fileno()).st_ino for one in sockets}
    own = Netns(NetnsInode(home_inode()), (), (), frozenset({Task(os.getpid(), os.getpid())}))

    def shows_all() -> bool:
        fleet.tend(now_s)
        list(fleet.hear(set(fleet.fds())))
        state = state_of(fleet, own.inode)
        if state is None:
            return False
        held = {holding[3] for holding in state.holdings}
        return expected <= {row[9] for row in state.connections.values()} and expected <= held

    try:
        for netns in (own, *others):
            fleet.add(netns, now_s)
        wait_until(shows_all, DEADLINE_S)
        before = state_of(fleet, own.inode)
        assert before is not None
        first_pid = next(row.worker_pid for row in fleet.roster_rows() if row.netns == own.inode)

        fleet.rebalance({own.inode}, now_s + SETTLED_S)

        def has_moved() -> bool:
            assert shows_all()  # at every moment
            state = state_of(fleet, own.inode)
            return state is not None and state.head.life > before.head.life

        wait_until(has_moved, DEADLINE_S)
        (row,) = (row for row in fleet.roster_rows() if row.netns == own.inode)
        assert row.worker_pid != first_pid
        assert sorted(len(worker.namespaces) for worker in fleet) == [1, 2]
    finally:
        for opened in sockets:
            opened.close()
