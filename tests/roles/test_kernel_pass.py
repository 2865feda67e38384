"""What eBPF tells at once against what reading every process tells, on the same static load."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.ebpf import SocketIterator
from pipeline.errors import Denied
from pipeline.query import answer, answer_joined
from pipeline.roles.foreground import Taken, take
from tests.e2e.host import REPOSITORY, NamedNetns, named_netns
from tests.fake_root import TREES
from tests.hard_cases.actors import Actor, actor
from tests.live import needs_root, wait_until

# 23 pairs and a listener of IPv4 and IPv6, UDP bound and connected, one socket bound to a device.
SERVERS = """
held = []
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.create_server((address, 0), family=family, backlog=64)
    held.append(listener)
    for _ in range(23):
        client = socket.socket(family)
        client.connect(listener.getsockname()[:2])
        held += [client, listener.accept()[0]]
    bound, connected = (socket.socket(family, socket.SOCK_DGRAM) for _ in "ab")
    bound.bind((address, 0))
    connected.connect(bound.getsockname()[:2])
    held += [bound, connected]
device = socket.socket()
device.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
device.bind(("127.0.0.1", 0))
device.listen()
say()
told()
"""

# Five connections that nobody accepts; three that are in TIME_WAIT.
UNHELD = """
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
waiting = [socket.create_connection(listener.getsockname()) for _ in range(5)]
other = listen()
for _ in range(3):
    client = socket.create_connection(other.getsockname())
    server, _ = other.accept()
    client.close()
    server.recv(1)
    server.close()
say()
told()
"""

# A socket opened in another namespace, one shared with a child, one of a thread with its own descriptors.
ODD = """
enter(sys.argv[1])
foreign = listen()
enter(sys.argv[2])
shared = listen()
copy = os.dup(shared.fileno())
if (child := os.fork()) == 0:
    sys.stdin.read()
    os._exit(0)
def work():
    unshare(CLONE_FILES)
    own = listen()
    say(foreign.fileno(), os.fstat(foreign.fileno()).st_ino, child)
    told()
threading.Thread(target=work).start()
"""

DEAD_LEADER = """
listener = listen()
def work():
    os.read(0, 1)
    say(os.fstat(listener.fileno()).st_ino)
    told()
    os._exit(0)
threading.Thread(target=work).start()
say()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""

MODES = ["off", "require"]


class Host:
    """Two namespaces, one of which has a process only as long as a test starts one there."""

    def __init__(self, mounts: Path, one: NamedNetns, other: NamedNetns) -> None:
        self.mounts = mounts
        self.one = one
        self.other = other

    def config(self, mode: str, **flags: Any) -> Config:
        return load(None, {}, {"ebpf.mode": mode, "discovery.mount_dirs": [str(self.mounts)], **flags}).config

    def take(self, mode: str, *only: NamedNetns) -> Taken:
        return take(self.config(mode), tuple(netns.name for netns in only) or ("ebpf-*",))

    def rows(self, mode: str, *only: NamedNetns) -> list[dict[str, Any]]:
        """What a snapshot shows, without the times, in the order of identity."""
        found = answer_joined(self.take(mode, *only).join(), {"op": "connections"})
        assert found is not None
        return comparable(found)

    def filtered_rows(self, mode: str, **where: Any) -> list[dict[str, Any]]:
        """The same by way of the store, as a filter needs it."""
        store = self.take(mode).store()
        with contextlib.closing(store):
            return comparable(answer(store.reader(), {"op": "connections", "where": where}))


def comparable(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    for row in rows:
        del row["seen_at"], row["owner_seen_at"]
    return sorted(rows, key=lambda row: (row["netns"], row["cookie"]))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with named_netns(tmp_path, "ebpf-one") as one, named_netns(tmp_path, "ebpf-other") as other:
        yield Host(tmp_path, one, other)


def settled(host: Host) -> bool:
    """Whether no connection is on its way from one state to the next."""
    states = host.one.run("ss", "-Htan") + host.other.run("ss", "-Htan")
    return not any(word in states for word in ("SYN-", "FIN-WAIT", "LAST-ACK", "CLOSING"))


@needs_root
def test_both_ways_show_the_same_connections_owners_and_descriptors(host: Host) -> None:
    with (
        actor(host.one, SERVERS),
        actor(host.one, UNHELD),
        actor(host.one, ODD, str(host.other.path), str(host.one.path)) as odd,
        actor(host.other, SERVERS),
        actor(host.one, DEAD_LEADER) as dead,
    ):
        wait_until(lambda: state_of(dead) == "Z", 20.0)
        dead.tell("")
        wait_until(lambda: settled(host), 20.0)
        walked, told = (host.rows(mode) for mode in MODES)
        assert told == walked
        # 2 servers of 2 * 47 TCP and 4 UDP sockets and one on a device; 2 listeners, 10 ends, 5 of them waiting, 3 in
        # TIME_WAIT; 3 odd listeners; 1 of the dead leader.
        assert len(walked) == 2 * 99 + 15 + 3 + 1
        roles = [row["owner_role"] for row in told]
        assert (roles.count("holder"), roles.count("pending"), roles.count(None)) == (209, 5, 3)
        assert {row["device"] for row in told} == {None, "lo"}
        fd, inode, child = odd.said
        (foreign,) = [row for row in told if row["inode"] == inode and row["netns"] == host.other.inode]
        assert {(owner["pid"], owner["fd"]) for owner in foreign["owners"]} == {(child, fd), (odd.pid, fd)}
        assert {owner["netns"] for owner in foreign["owners"]} == {host.one.inode}
        for where in ({"listening": True}, {"pid": odd.pid}, {"family": "inet6", "established": True}):
            filtered = [host.filtered_rows(mode, **where) for mode in MODES]
            assert filtered[0] == filtered[1] != []


def state_of(process: Actor) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_root
def test_ebpf_names_the_holder_of_a_socket_who_lives_in_a_namespace_that_is_not_asked_for(host: Host) -> None:
    # By nature: reading only the processes of a namespace cannot show who holds its sockets elsewhere.
    with actor(host.one, ODD, str(host.other.path), str(host.one.path)) as odd:
        by_walk, by_ebpf = (host.rows(mode, host.other) for mode in MODES)
        assert [row["inode"] for row in by_walk] == [row["inode"] for row in by_ebpf] == [odd.said[1]]
        assert by_walk[0]["owners"] == []
        assert odd.pid in {owner["pid"] for owner in by_ebpf[0]["owners"]}


@needs_root
def test_only_the_walk_finds_a_namespace_that_one_descriptor_keeps_and_no_process_or_socket(
    host: Host, tmp_path: Path
) -> None:
    # By nature: the iterator tells of sockets, and this is none. What nobody holds in there is not found.
    script = """
unshare(CLONE_NEWNET)
kept = os.open("/proc/self/ns/net", os.O_RDONLY)
inode = os.fstat(kept).st_ino
enter(sys.argv[1])
say(inode)
told()
"""
    with actor(host.one, script, str(host.one.path)) as keeper:
        for mode, is_found in zip(MODES, (True, False), strict=True):
            taken = take(host.config(mode))
            assert (keeper.said[0] in {look.netns.inode for look in taken.looks}) == is_found


@needs_root
def test_a_namespace_that_only_a_socket_shows_is_found_and_its_tables_are_read(host: Host) -> None:
    script = """
unshare(CLONE_NEWNET)
os.system("ip link set lo up")
inode = os.stat("/proc/self/ns/net").st_ino
listener = listen()
waiting = socket.create_connection(listener.getsockname())
enter(sys.argv[1])
say(inode)
told()
"""
    with actor(host.one, script, str(host.one.path)) as keeper:

        def roles() -> list[str]:
            return sorted(str(row["owner_role"]) for row in rows_in(host, "off", keeper.said[0]))

        wait_until(lambda: roles() == ["holder", "holder", "pending"])
        walked, told = (rows_in(host, mode, keeper.said[0]) for mode in MODES)
        assert told == walked


@needs_root
def test_of_a_socket_that_nobody_holds_ebpf_does_not_say_that_it_is_the_kernels(host: Host) -> None:
    # By nature: an io_uring may hold it, in which no pass looks. This one is on its way over a unix socket.
    script = """
one, other = socket.socketpair(socket.AF_UNIX)
listener = listen()
inode = os.fstat(listener.fileno()).st_ino
socket.send_fds(one, [b"x"], [listener.fileno()])
listener.close()
say(inode)
told()
"""
    with actor(host.one, script) as sender:
        walked, told = (rows_in(host, mode, host.one.inode) for mode in MODES)
        assert [(row["inode"], row["owners"]) for row in walked] == [(sender.said[0], [])]
        assert [(row["inode"], row["owners"], row["owner_role"]) for row in told] == [
            (sender.said[0], [], None)
        ]
        assert host.filtered_rows("require", listening=True) == told


def rows_in(host: Host, mode: str, netns: int) -> list[dict[str, Any]]:
    found = answer_joined(take(host.config(mode)).join(), {"op": "connections"})
    assert found is not None
    return [row for row in comparable(found) if row["netns"] == netns]


def without_btf() -> SocketIterator:
    return SocketIterator.open("/nonexistent/btf")


def test_auto_reads_processes_where_ebpf_is_missing_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = load(None, {}, {"ebpf.mode": "auto"}).config
    own = str(os.stat("/proc/self/ns/net").st_ino)
    with caplog.at_level(logging.INFO, "pipeline.roles.kernel_pass"):
        taken = take(config, (own,), without_btf)
    assert not taken.by_kernel
    messages = [(record.levelname, record.message) for record in caplog.records if "eBPF" in record.message]
    assert messages == [
        (
            "INFO",
            "eBPF: the kernel's type information is missing: /nonexistent/btf: No such file or directory; "
            "processes are read instead",
        )
    ]


def test_require_is_refused_where_ebpf_is_missing() -> None:
    with pytest.raises(Denied, match=r"type information is missing.*ebpf\.mode is require"):
        take(load(None, {}, {"ebpf.mode": "require"}).config, (), without_btf)


def test_require_is_refused_for_another_hosts_processes() -> None:
    flags = {"ebpf.mode": "require", "agent.proc_root": f"{TREES}/two_namespaces", "discovery.mount_dirs": []}
    with pytest.raises(Denied, match="other numbers"):
        take(load(None, {}, flags).config)


def snapshot(*options: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "pipeline.cli", "snapshot", "--count", *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@needs_root
@pytest.mark.parametrize("mode", ["auto", "require"])
def test_the_command_without_rights_goes_on_or_exits_with_4_as_asked(mode: str) -> None:
    unprivileged = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    done = snapshot("--ebpf", mode, "--log-level", "info", prefix=unprivileged)
    said = [line for line in done.stderr.splitlines() if "eBPF" in line]
    assert len(said) == 1
    assert "Operation not permitted" in said[0]
    if mode == "auto":
        assert done.returncode == 0
        assert said[0].endswith("processes are read instead")
        assert done.stdout.strip().isdigit()
    else:
        assert done.returncode == 4
        assert "CAP_BPF and CAP_PERFMON" in said[0]
        assert done.stdout == ""


@needs_root
def test_the_command_shows_by_ebpf_what_it_shows_without(host: Host) -> None:
    with actor(host.one, SERVERS):
        done = [snapshot("--ebpf", mode, "--netns", str(host.one.inode)) for mode in MODES]
    assert [(one.returncode, one.stdout.strip()) for one in done] == [(0, "99"), (0, "99")]
