"""One namespace as its worker sees it: what its snapshots say, live and in order."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clock import ManualClock, SystemClock
from pipeline.codec import decode_map, encode
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.connection import State
from pipeline.model.container import Container
from pipeline.model.process import Holding, Task
from pipeline.model.snapshot import Snapshot, fold, from_wire
from pipeline.procfs.root import ProcRoot
from pipeline.walk.namespace import NamespaceWalk
from pipeline.walk.pacer import Pacing
from pipeline.walk.reading import TableReader
from pipeline.walk.table import Reading
from tests.fake_root import TREES, FakeRoot
from tests.live import LiveNetns, needs_root
from tests.walk.rows import diag, row
from tests.walk.trees import write_process

SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
pairs = []
for _ in range(23):
    client = socket.create_connection(listener.getsockname())
    pairs += [client, listener.accept()[0]]
print("ready", flush=True)
for line in sys.stdin:
    if line == "open\\n":
        pairs.append(socket.create_server(("127.0.0.1", 0)))
    if line == "close\\n":
        pairs.pop().close()
    if line == "swap\\n":
        pairs.pop().close()
        pairs.append(socket.create_server(("127.0.0.1", 0)))
    print("done", flush=True)
"""


class Readings:
    """In place of a live namespace: the readings of its tables, one after the other."""

    def __init__(self, *readings: Reading) -> None:
        self._readings = list(readings)

    def read(self, paths: tuple[str, ...], tasks: list[Task]) -> Reading:
        return self._readings.pop(0)


def recorded_walk(*readings: Reading, clock: ManualClock | None = None) -> NamespaceWalk:
    walk = NamespaceWalk(
        4026531840,
        FakeRoot(f"{TREES}/two_namespaces"),
        Readings(*readings),  # type: ignore[arg-type]
        Pacing(),
        clock or ManualClock(100.0),
        life=7,
    )
    walk.set_members([Task(71, 71)], [])
    return walk


def test_the_first_snapshot_is_a_base_and_the_next_are_changes() -> None:
    walk = recorded_walk(diag(row(5107, 1), row(321, 2)), diag(row(5107, 1), row(0, 3)))
    walk.look()
    first = walk.take_snapshot()
    assert (first.base, first.life, first.generation, first.cookie) == (True, 7, 1, 5)
    assert sorted(one[0] for one in first.connections) == [1, 2]
    assert {holding.inode for holding in first.holdings} == {5107, 321, 36856710}
    walk.look()
    second = walk.take_snapshot()
    assert (second.base, second.generation) == (False, 2)
    assert ([one[0] for one in second.connections], second.gone_connections) == ([3], [2])
    assert second.health.looks == 2
    assert first.health.looks == 1


def test_where_nothing_waits_to_be_accepted_a_look_holds_for_ten_minutes_of_stillness() -> None:
    clock = ManualClock(100.0)
    walk = recorded_walk(diag(row(5107, 1)), diag(row(5107, 1), row(0, 3)), diag(row(5107, 1)), clock=clock)
    assert not walk.is_as_seen
    walk.look()
    assert walk.is_as_seen
    walk.look()
    assert not walk.is_as_seen
    walk.look()
    clock.advance(599.0)
    assert walk.is_as_seen
    clock.advance(1.0)
    assert not walk.is_as_seen


def test_a_lost_generation_is_followed_by_a_base_that_equals_the_fold() -> None:
    walk = recorded_walk(diag(row(5107, 1)), diag(row(5107, 1), row(321, 2)), diag(row(321, 2)))
    taken: list[Snapshot] = []
    for _ in range(2):
        walk.look()
        taken.append(walk.take_snapshot())
    folded = fold(taken)
    walk.want_base()
    walk.look()
    base = walk.take_snapshot()
    assert (base.base, base.generation) == (True, 3)
    assert set(base.holdings) == folded.holdings
    assert [one[0] for one in base.connections] == [2]


def test_another_namespace_under_the_same_inode_starts_anew() -> None:
    walk = recorded_walk(diag(row(5107, 1)), diag(row(321, 9), cookie=6))
    walk.look()
    walk.take_snapshot()
    walk.look()
    again = walk.take_snapshot()
    assert (again.base, again.cookie, [one[0] for one in again.connections]) == (True, 6, [9])


def test_another_namespace_before_the_first_snapshot_leaves_nothing_of_the_old_one() -> None:
    old, new = diag(row(1, 100), cookie=5), diag(row(2, 200), cookie=6)
    walk = recorded_walk(old, new)
    walk.look()
    walk.look()
    assert [connection.inode for connection in walk.take_snapshot().connections] == [2]


def test_only_every_sixth_pass_lists_all_while_the_tables_stay_the_same() -> None:
    listed: list[str] = []
    root = FakeRoot(f"{TREES}/two_namespaces")
    root.on_access = lambda rel: listed.append(rel)
    walk = NamespaceWalk(
        4026531840,
        root,
        Readings(diag(row(1, 100)), diag(row(2, 200))),  # type: ignore[arg-type]
        Pacing(),
        ManualClock(),
    )
    walk.set_members([Task(71, 71)], [])
    asked = []
    for number in range(8):
        if number in (0, 3):
            walk.look()  # the tables change
        listed.clear()
        assert walk.walk_block()
        asked.append(listed[0])
    # The count of descriptors comes first where it may decide; the process's stat where all is listed anyway.
    assert asked == ["71/stat", "71/fd", "71/fd", "71/stat", "71/fd", "71/fd", "71/stat", "71/fd"]


def test_what_opened_and_closed_between_two_snapshots_leaves_no_row() -> None:
    walk = recorded_walk(diag(), diag(row(5107, 1)), diag())
    walk.look()
    walk.take_snapshot()
    walk.look()
    walk.look()
    assert walk.take_snapshot().connections == []


def test_passes_are_paced_and_late_ones_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(100.0)
    walk = recorded_walk(diag(), clock=clock)
    walk.look()
    assert walk.walk_block()
    assert walk.take_snapshot().walked_at_s == 100.0
    assert walk.pacer.due_s == pytest.approx(110.0)
    clock.now_s = 110.0 + 15.1
    assert walk.walk_block()
    assert (walk.health.passes, walk.health.passes_late) == (2, 1)
    assert "longer than its target" in caplog.text


def test_a_snapshot_is_complete_only_after_every_task_was_asked_once() -> None:
    walk = recorded_walk(diag(row(5107, 1)))
    assert replace(walk.take_snapshot()).walked_at_s is None
    walk.look()
    assert walk.take_snapshot().walked_at_s == 100.0


def test_members_that_leave_take_their_holdings_with_them() -> None:
    walk = recorded_walk(diag(row(5107, 1)))
    walk.look()
    walk.take_snapshot()
    walk.set_members([], [Task(71, 71)])
    assert walk.has_changes
    change = walk.take_snapshot()
    assert {holding.inode for holding in change.gone_holdings} == {5107, 321, 36856710}
    assert [key.pid for key in change.gone_processes] == [71]


@contextlib.contextmanager
def server_in(netns: LiveNetns) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["nsenter", f"--net={netns.path}", sys.executable, "-S", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate(timeout=60)


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def sockets_of(pid: int) -> set[Holding]:
    """The oracle: fstat's inode of each descriptor that is a socket, by the kernel's own links."""
    with open(f"/proc/{pid}/stat") as file:
        start_ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    held = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{name}")
        if link.startswith("socket:"):
            held.add(Holding(pid, start_ticks, int(name), os.stat(f"/proc/{pid}/fd/{name}").st_ino))
    return held


@pytest.fixture
def live() -> Iterator[LiveNetns]:
    with LiveNetns() as netns:
        yield netns


def live_walk(netns: LiveNetns, *tasks: Task, source: str = "sock_diag") -> NamespaceWalk:
    root, clock = ProcRoot(), SystemClock()
    reader = TableReader(root, netns.inode, source, clock)
    walk = NamespaceWalk(netns.inode, root, reader, Pacing(), clock)
    walk.set_members(tasks, [])
    return walk


@needs_root
@pytest.mark.parametrize("source", ["sock_diag", "proc"])
def test_one_look_finds_every_socket_with_its_holder_and_the_next_what_changed(
    live: LiveNetns, source: str
) -> None:
    with server_in(live) as server:
        walk = live_walk(live, Task(live.pid, live.pid), Task(server.pid, server.pid), source=source)
        walk.look()
        taken = [walk.take_snapshot()]
        for word in ("open", "swap", "close", "close"):
            tell(server, word)
            walk.look()
            taken.append(walk.take_snapshot())
            state = fold(taken)
            expected = sockets_of(server.pid)
            assert {one for one in state.holdings if one.pid == server.pid} == expected
            assert {one.inode for one in state.connections.values() if one.inode} == {
                one.inode for one in expected
            }
            assert {key[0] for key in state.processes} == {live.pid, server.pid}
        (listening,) = [one for one in taken[0].connections if one[3] == State.LISTEN]
        assert len(taken[0].connections) == 47
        assert listening[9] in {one.inode for one in expected}
        # A pass finds nothing that the looks did not find.
        while not walk.walk_block():
            pass
        assert not walk.has_changes


@needs_root
def test_a_socket_held_from_another_namespace_is_in_one_s_table_and_in_the_other_s_holdings(
    live: LiveNetns,
) -> None:
    me = Task(os.getpid(), os.getpid())
    netns_fd = open_netns(live.path, live.inode)
    with inside(netns_fd):
        listener = socket.create_server(("127.0.0.1", 0))
    os.close(netns_fd)
    with listener:
        inode = os.fstat(listener.fileno()).st_ino
        theirs = live_walk(live, Task(live.pid, live.pid))
        theirs.look()
        root, clock, home = ProcRoot(), SystemClock(), os.stat("/proc/self/ns/net").st_ino
        ours = NamespaceWalk(home, root, TableReader(root, home, "auto", clock), Pacing(), clock)
        ours.set_members([me], [])
        ours.look()
        table, held = theirs.take_snapshot(), ours.take_snapshot()
    assert [one[9] for one in table.connections] == [inode]
    assert table.holdings == []
    assert (me.pid, inode) in {(holding.pid, holding.inode) for holding in held.holdings}
    assert inode not in {one[9] for one in held.connections}


def test_a_snapshot_says_what_the_containers_are_that_its_processes_name(tmp_path: Path) -> None:
    docker, unit = Container("ab" * 32, "docker"), Container("nginx.service", "systemd")
    clock = ManualClock(100.0)
    reader = Readings(diag(row(100, 1)), diag(row(100, 1)))
    walk = NamespaceWalk(4026531840, FakeRoot(str(tmp_path)), reader, Pacing(), clock)  # type: ignore[arg-type]
    tasks = [write_process(tmp_path, pid, {3: 100}) for pid in (71, 72, 73)]
    for pid, path in ((71, f"docker/{docker.id}"), (72, f"docker/{docker.id}"), (73, "nginx.service")):
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/{path}\n")
    walk.set_members(tasks, [])
    walk.look()
    first = walk.take_snapshot()
    assert [process.container for process in first.processes] == [
        "abababababab",
        "abababababab",
        "nginx.service",
    ]
    assert first.containers == [docker, unit]
    received = from_wire(decode_map(encode(first.to_wire())))
    assert received.containers == [tuple(docker), tuple(unit)]
    walk.set_members([], [tasks[2]])
    while not walk.walk_block():
        clock.advance(1.0)
    walk.look()
    assert walk.take_snapshot().containers == []
    assert walk.base().containers == [docker]


def test_a_snapshot_that_was_written_without_containers_can_be_read() -> None:
    walk = recorded_walk(diag(row(5107, 1)))
    walk.look()
    wire = walk.take_snapshot().to_wire()
    del wire["containers"]
    assert from_wire(decode_map(encode(wire))).containers == []
