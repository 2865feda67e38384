"""Tables of live namespaces, by sock_diag and by text; the oracles are `ss` and fstat."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Denied, Vanished
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.connection import Connection, Family, Proto, State
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.walk.reading import TableReader
from pipeline.walk.table import ConnectionTable, Reading
from tests.fake_root import TREES, FakeRoot
from tests.live import LiveNetns, connect_pairs, in_child, needs_root, wait_until

pytestmark = needs_root

CONNECTIONS = 23


@pytest.fixture
def live() -> Iterator[LiveNetns]:
    """A new one for each test: the TIME_WAIT rows of another's would be in its tables."""
    with LiveNetns() as netns:
        yield netns


@contextlib.contextmanager
def entered(netns: LiveNetns) -> Iterator[None]:
    netns_fd = open_netns(netns.path, netns.inode)
    try:
        with inside(netns_fd):
            yield
    finally:
        os.close(netns_fd)


@contextlib.contextmanager
def pairs(netns: LiveNetns, family: socket.AddressFamily, address: str) -> Iterator[list[socket.socket]]:
    """A listener and CONNECTIONS connections, opened inside by this process."""
    with entered(netns):
        sockets = connect_pairs(family, address, CONNECTIONS)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def read(netns: LiveNetns, source: str = "sock_diag") -> Reading:
    return TableReader(ProcRoot(), netns.inode, source, SystemClock()).read((), [Task(netns.pid, netns.pid)])


def connections(reading: Reading) -> list[Connection]:
    return ConnectionTable().update(reading).changed


def facts(found: Sequence[Connection]) -> set[tuple[object, ...]]:
    """All that both sources tell of a socket with an inode."""
    return {(*one[1:8], one.inode, one.uid) for one in found if one.inode}


def inodes(sockets: Sequence[socket.socket]) -> set[int]:
    return {os.fstat(one.fileno()).st_ino for one in sockets}


@pytest.mark.parametrize("source", ["sock_diag", "proc"])
@pytest.mark.parametrize(
    ("family", "address", "length"),
    [
        (socket.AF_INET, "127.0.0.1", 4),
        (socket.AF_INET6, "::1", 16),
        (socket.AF_INET6, "::ffff:127.0.0.1", 16),
    ],
)
def test_every_connection_and_its_listener_is_read(
    live: LiveNetns, source: str, family: socket.AddressFamily, address: str, length: int
) -> None:
    with pairs(live, family, address) as sockets:
        port = sockets[0].getsockname()[1]
        found = [one for one in connections(read(live, source)) if port in (one.local_port, one.remote_port)]
        assert {one.inode for one in found} == inodes(sockets)
    listening = [one for one in found if one.state == State.LISTEN]
    established = [one for one in found if one.state == State.ESTABLISHED]
    assert (len(listening), len(established), len(found)) == (1, 46, 47)
    raw = socket.inet_pton(family, address)
    assert len(raw) == length
    assert {(one.local_addr, one.remote_addr) for one in established} == {(raw, raw)}
    assert {one.family for one in found} == {int(family)}
    assert {one.proto for one in found} == {Proto.TCP}


@pytest.mark.parametrize("source", ["sock_diag", "proc"])
def test_udp_sockets_are_read_in_both_families(live: LiveNetns, source: str) -> None:
    with entered(live), contextlib.ExitStack() as opened:
        sockets = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            for index in range(7):
                one = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                one.bind((address, 0))
                if index < 3:
                    one.connect((address, 9))
                sockets.append(one)
        expected = inodes(sockets)
        found = [one for one in connections(read(live, source)) if one.proto == Proto.UDP]
    assert {one.inode for one in found} == expected
    states = [(one.family, one.state) for one in found]
    assert [states.count((family, State.ESTABLISHED)) for family in (Family.INET, Family.INET6)] == [3, 3]
    assert [states.count((family, State.CLOSE)) for family in (Family.INET, Family.INET6)] == [4, 4]


def test_the_tables_are_those_that_ss_shows(live: LiveNetns) -> None:
    with pairs(live, socket.AF_INET, "127.0.0.1"), pairs(live, socket.AF_INET6, "::1"):
        found = {(one.inode, one.cookie) for one in connections(read(live))}
        assert found == live.ss("-tu")
    assert len(found) >= 94


def test_text_tells_the_same_of_every_socket_as_sock_diag(live: LiveNetns) -> None:
    with pairs(live, socket.AF_INET, "127.0.0.1"), pairs(live, socket.AF_INET6, "::ffff:127.0.0.1"):
        by_diag, by_text = connections(read(live)), connections(read(live, "proc"))
    assert facts(by_diag) == facts(by_text)
    assert len(facts(by_text)) >= 94
    assert {one.cookie for one in by_text} == {0}


def test_a_connection_not_yet_accepted_has_a_cookie_that_lasts_and_gets_its_inode_with_accept(
    live: LiveNetns,
) -> None:
    table = ConnectionTable()
    with entered(live), contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = opened.enter_context(socket.create_connection(listener.getsockname()))
        port = client.getsockname()[1]
        # Ours is connected a moment before the other end hears of it.
        wait_until(lambda: live.run("ss", "-Htan", "state", "established").count(f":{port}") == 2)
        table.update(read(live))
        (waiting,) = [one for one in table.connections() if one.remote_port == port]
        assert (waiting.state, waiting.inode) == (State.ESTABLISHED, 0)
        assert waiting.cookie > 0
        accepted = opened.enter_context(listener.accept()[0])
        change = table.update(read(live))
        (taken,) = change.changed
        assert taken == waiting._replace(inode=os.fstat(accepted.fileno()).st_ino)
        assert change.gone == []


def test_a_connection_in_time_wait_keeps_its_identity_without_an_inode(live: LiveNetns) -> None:
    table = ConnectionTable()
    with entered(live), contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = socket.create_connection(listener.getsockname())
        port = client.getsockname()[1]
        accepted = opened.enter_context(listener.accept()[0])
        table.update(read(live))
        (open_row,) = [one for one in table.connections() if one.local_port == port]
        client.close()
        accepted.close()
        wait_until(lambda: f":{port}" in live.run("ss", "-Htan", "state", "time-wait"))
        change = table.update(read(live))
        (waiting,) = [one for one in table.connections() if one.local_port == port]
    assert (waiting.key, waiting.state, waiting.inode) == (open_row.key, State.TIME_WAIT, 0)
    assert open_row.key not in change.gone


def test_a_socket_is_in_the_table_of_its_own_namespace_wherever_its_holder_lives(live: LiveNetns) -> None:
    with LiveNetns() as other, pairs(live, socket.AF_INET, "127.0.0.1") as sockets:
        # This process is in neither; in the other namespace no trace of the sockets is to be found.
        assert inodes(sockets) <= {one.inode for one in connections(read(live))}
        assert connections(read(other)) == []


def test_a_namespace_without_processes_is_read_by_its_mount(tmp_path: Path) -> None:
    name = tmp_path / "blue"
    name.touch()
    with LiveNetns() as netns:
        subprocess.run(["mount", "--bind", netns.path, str(name)], check=True)
        inode = netns.inode
    try:
        assert os.stat(name).st_ino == inode
        reader = TableReader(ProcRoot(), inode, "auto", SystemClock())
        with entered_path(str(name), inode):
            listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            (row,) = reader.read((str(name),), ()).rows[Proto.TCP]
            assert row[9] == os.fstat(listener.fileno()).st_ino
        with pytest.raises(Vanished):
            TableReader(ProcRoot(), inode, "proc", SystemClock()).read((str(name),), ())
    finally:
        subprocess.run(["umount", str(name)], check=True)
    with pytest.raises(Vanished):
        reader.read((str(name),), ())


@contextlib.contextmanager
def entered_path(path: str, inode: int) -> Iterator[None]:
    netns_fd = open_netns(path, inode)
    try:
        with inside(netns_fd):
            yield
    finally:
        os.close(netns_fd)


def test_a_way_in_that_leads_elsewhere_by_now_is_not_taken(live: LiveNetns) -> None:
    with LiveNetns() as other:
        reader = TableReader(ProcRoot(), live.inode, "sock_diag", SystemClock())
        wrong, right = Task(other.pid, other.pid), Task(live.pid, live.pid)
        assert reader.read((other.path, "/nowhere"), (wrong, right)).cookie is not None
        with pytest.raises(Vanished):
            reader.read((other.path,), (wrong,))


def test_without_the_right_to_enter_text_is_read_and_the_same_sockets_are_found(live: LiveNetns) -> None:
    with pairs(live, socket.AF_INET, "127.0.0.1") as sockets:

        def denied_reading() -> tuple[str, set[int], bool]:
            _drop_capabilities()
            task = Task(live.pid, live.pid)
            reading = TableReader(ProcRoot(), live.inode, "auto", SystemClock()).read((), [task])
            try:
                TableReader(ProcRoot(), live.inode, "sock_diag", SystemClock()).read((), [task])
            except Denied:
                return reading.source, {row[9] for row in reading.rows[Proto.TCP]}, True
            return reading.source, set(), False

        source, found, is_denied = in_child(denied_reading)
        assert (source, is_denied) == ("proc", True)
        assert inodes(sockets) <= found


def _drop_capabilities() -> None:
    """Leaves this child root by number, without the right to enter a namespace (and nobody's files unreadable)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    keep = 1 << 19 | 1 << 2  # CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, so that only setns is refused
    data = (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)
    assert libc.capset(header, data) == 0


def test_after_a_refusal_sock_diag_is_tried_again_a_minute_later(live: LiveNetns) -> None:
    clock = ManualClock(100.0)
    dumps: list[float] = []

    def mark_dump(begins: bool) -> None:
        if begins:
            dumps.append(clock.now_s)
            if len(dumps) == 1:
                raise Denied("may not be entered", "CAP_SYS_ADMIN")

    reader = TableReader(ProcRoot(), live.inode, "auto", clock, mark_dump)
    tasks = [Task(live.pid, live.pid)]
    assert reader.read((), tasks).source == "proc"
    clock.advance(59.0)
    assert reader.read((), tasks).source == "proc"
    clock.advance(1.0)
    assert reader.read((), tasks).source == "sock_diag"
    assert dumps == [100.0, 160.0]


def test_a_dump_leaves_no_descriptor_open_and_the_reader_at_home(live: LiveNetns) -> None:
    reader = TableReader(ProcRoot(), live.inode, "sock_diag", SystemClock())
    tasks = [Task(live.pid, live.pid)]
    reader.read((), tasks)
    before = sorted(os.listdir("/proc/self/fd"))
    home = os.readlink("/proc/thread-self/ns/net")
    for _ in range(23):
        reader.read((), tasks)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_text_is_read_of_the_first_member_that_shows_it() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    root.denied["71/net"] = "CAP_SYS_PTRACE"
    reader = TableReader(root, 4026531840, "proc", ManualClock())
    tables = reader.read((), [Task(70, 70), Task(71, 71), Task(1, 1)])
    assert (tables.source, tables.cookie, sorted(tables.rows)) == ("proc", None, [Proto.TCP, Proto.UDP])
    with pytest.raises(Denied):
        reader.read((), [Task(70, 70), Task(71, 71)])
    with pytest.raises(Vanished):
        reader.read((), [Task(70, 70)])
