"""What the supervisor tells the conntrack worker, and when it kills it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.board import DUMP_STARTED_NS, Board
from pipeline.codec import encode
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.roles.control import Control
from pipeline.roles.flow_watch import FlowWatch
from pipeline.roles.single import Single
from pipeline.segment import InstanceFolder, SegmentWriter
from tests.live import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

INODE = 4026530001


def netns(*tasks: int, mounts: tuple[str, ...] = ()) -> Netns:
    return Netns(NetnsInode(INODE), (), mounts, frozenset(Task(one, one) for one in tasks))


class Watching:
    def __init__(self, folder: InstanceFolder) -> None:
        self.folder = folder
        self.board = Board(1)
        self.single = Single("conntrack", self._note_orders, self.board, 0, 0.1, list)
        self.watch = FlowWatch(self.single, self.board.slot(0), folder, ProcRoot(), 0.04, 10.0)
        self._notes = Path(folder.path, "notes")
        self._notes.touch()

    def orders(self, count: int) -> list[dict[str, Any]]:
        """All orders to all workers, once there are `count`."""
        wait_until(lambda: self._notes.read_text().count("\n") >= count)
        return [json.loads(line) for line in self._notes.read_text().splitlines()]

    def _note_orders(self, control: Control) -> None:
        """In the child."""
        while control.wait(None) and (messages := control.receive()) is not None:
            with self._notes.open("a") as file:
                file.writelines(json.dumps(message) + "\n" for message in messages)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    folder = InstanceFolder.create(str(tmp_path))
    made = Watching(folder)
    try:
        yield made
    finally:
        made.single.child.kill()
        made.single.child.reap(0.0, wait=True)
        folder.remove()


def test_a_worker_that_starts_is_told_its_share_and_all_namespaces(watching: Watching) -> None:
    watching.watch.add(netns(30, 5, 7, 8, mounts=("/run/netns/a",)), 0.0)
    watching.watch.tend(0.0)
    assert watching.orders(2) == [
        {"op": "share", "cpu": 0.02},
        {
            "op": "assign",
            "netns": INODE,
            "life": 1,
            "segment": f"{watching.folder.path}/flows-{INODE}",
            "ways": ["/run/netns/a", "/proc/5/ns/net", "/proc/7/ns/net", "/proc/8/ns/net"],
        },
    ]


def test_a_worker_that_runs_is_told_of_what_appears_changes_and_goes(watching: Watching) -> None:
    watching.watch.tend(0.0)
    watching.watch.add(netns(5), 0.0)
    watching.watch.update(netns(5, 9), 0.0)
    watching.watch.update(netns(5, 9), 0.0)
    watching.watch.update(netns(9), 0.0)
    watching.watch.remove(INODE, 0.0)
    orders = watching.orders(5)
    assert [(one["op"], one.get("ways")) for one in orders] == [
        ("share", None),
        ("assign", ["/proc/5/ns/net"]),
        ("ways", ["/proc/5/ns/net", "/proc/9/ns/net"]),
        ("ways", ["/proc/9/ns/net"]),
        ("drop", None),
    ]


def test_where_connections_come_and_go_the_worker_is_told_once_in_an_idle_interval(
    watching: Watching,
) -> None:
    watching.watch.add(netns(), 1000.0)
    watching.watch.tend(1000.0)
    for now_s in (1001.0, 1002.0, 1010.9, 1011.0):
        watching.watch.stir([INODE], now_s)
    assert [order["op"] for order in watching.orders(4)] == ["share", "assign", "stir", "stir"]
    assert watching.orders(4)[-1]["netns"] == [INODE]


def test_what_was_said_of_a_namespace_goes_with_it(watching: Watching) -> None:
    path = watching.folder.path_of(f"flows-{INODE}")
    segment = SegmentWriter(path)
    segment.write_base(1, 1, encode({}))
    segment.close()
    watching.watch.add(netns(5), 0.0)
    watching.watch.remove(INODE, 0.0)
    assert not Path(path).exists()


def test_a_worker_that_died_is_started_again_with_all_as_new_lives(watching: Watching) -> None:
    watching.watch.add(netns(5), 0.0)
    watching.watch.tend(0.0)
    watching.orders(2)
    watching.single.child.kill()

    def is_gone() -> bool:
        watching.watch.tend(0.05)
        return watching.single.child.control is None

    wait_until(is_gone)
    watching.watch.tend(60.0)
    assert [one.get("life") for one in watching.orders(4)] == [None, 1, None, 2]


@pytest.mark.parametrize(
    ("inside_s", "gone", "killed"), [(4.9, False, False), (5.1, False, True), (0.6, True, True)]
)
def test_a_worker_that_stays_inside_a_dump_is_killed(
    watching: Watching, inside_s: float, gone: bool, killed: bool
) -> None:
    watching.watch.add(netns(5), 100.0)
    watching.watch.tend(100.0)
    watching.board.slot(0)[DUMP_STARTED_NS] = 100_000_000_000
    if gone:
        watching.watch.remove(INODE, 100.0 + inside_s)
    watching.watch.tend(100.0 + inside_s)
    if killed:
        wait_until(lambda: watching.single.child.reap(101.0) == f"signal {signal.SIGKILL.value}")
    else:
        assert watching.single.child.reap(101.0) is None
