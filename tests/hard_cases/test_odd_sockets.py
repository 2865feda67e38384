"""Cases 6, 8, 9, 10 and 13: sockets that are held, or listed, in other ways than most.

The oracles are ss, and fstat in the processes themselves.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched, only_walking
from tests.live import needs_root, wait_until

pytestmark = needs_root

DEADLINE_S = 60.0


def rows_of(watched: Watched, inode: int) -> list[dict[str, Any]]:
    return watched.running.connections(netns=watched.one.inode, inode=inode)


def owners_of(watched: Watched, inode: int) -> list[tuple[int, int]]:
    """(pid, fd) of all owners of all rows of a socket."""
    return [(owner["pid"], owner["fd"]) for row in rows_of(watched, inode) for owner in row["owners"]]


def inodes_in_ss(watched: Watched, *options: str) -> list[int]:
    return [int(inode) for inode in re.findall(r"\bino:(\d+)", watched.one.run("ss", "-HaneO", *options))]


# A listener that is registered with an io_uring, and whose descriptor is closed then, on a word. Numbers of the system
# calls: the same on all machines since 5.1.
REGISTERED = """
IO_URING_SETUP, IO_URING_REGISTER, IORING_REGISTER_FILES = 425, 427, 2
ring = libc.syscall(IO_URING_SETUP, 4, (ctypes.c_uint8 * 120)())
assert ring >= 0, os.strerror(ctypes.get_errno())
listener = listen()
inode = os.fstat(listener.fileno()).st_ino
files = (ctypes.c_int * 2)(listener.fileno(), 0)
assert libc.syscall(IO_URING_REGISTER, ring, IORING_REGISTER_FILES, files, 2) == 0, os.strerror(ctypes.get_errno())
say(ring, listener.fileno(), inode)
while told():
    listener.close()
    say()
"""


def test_a_socket_that_only_an_io_uring_holds_is_that_process_s(watched: Watched) -> None:
    """Case 6. ss does not know who holds it: the oracle is the kernel's own list in fdinfo."""
    with actor(watched.one, REGISTERED) as process:
        ring, fd, inode = process.said
        wait_until(lambda: owners_of(watched, inode) == [(process.pid, ring), (process.pid, fd)], DEADLINE_S)
        process.tell("close")
        assert str(fd) not in os.listdir(f"/proc/{process.pid}/fd")
        assert f"socket:[{inode}]" in Path(f"/proc/{process.pid}/fdinfo/{ring}").read_text()
        assert inodes_in_ss(watched, "-tl").count(inode) == 1
        wait_until(lambda: owners_of(watched, inode) == [(process.pid, ring)], DEADLINE_S)
        (row,) = rows_of(watched, inode)
        assert (row["owner_role"], row["state"]) == ("holder", "LISTEN")
    wait_until(lambda: rows_of(watched, inode) == [], DEADLINE_S)


# On a word it becomes another program, which keeps the connection.
EXEC = """
server = listen()
client = socket.create_connection(server.getsockname())
accepted = server.accept()[0]
for one in (client, accepted):
    one.set_inheritable(True)
say(client.fileno(), os.fstat(client.fileno()).st_ino)
told()
os.execvp("sleep", ["sleep", "60"])
"""


def test_a_process_that_executes_another_program_keeps_its_connection_under_its_new_name(
    watched: Watched,
) -> None:
    """Case 8."""
    with actor(watched.one, EXEC) as process:
        fd, inode = process.said
        before = watched.owner(watched.one, inode)
        assert (before["pid"], before["fd"]) == (process.pid, fd)
        assert before["comm"] == Path(f"/proc/{process.pid}/comm").read_text().rstrip("\n")
        try:
            process.send("exec")
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", DEADLINE_S)
            assert os.stat(f"/proc/{process.pid}/fd/{fd}").st_ino == inode
            after = {**before, "comm": "sleep"}
            wait_until(lambda: [row["owners"] for row in rows_of(watched, inode)] == [[after]], DEADLINE_S)
        finally:
            process.process.kill()  # what it is by then does not end with its input


# IPPROTO_MPTCP: each end is one socket with a subflow, which the TCP table shows.
MPTCP = """
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
server.bind(("127.0.0.1", 0))
server.listen()
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
client.connect(server.getsockname())
accepted = server.accept()[0]
for one, other in ((client, accepted), (accepted, client)):
    one.sendall(b"x")
    other.recv(1)
for one in (server, client, accepted):
    print(one.fileno(), os.fstat(one.fileno()).st_ino, end=" ")
say()
told()
"""


def test_an_mptcp_socket_is_one_connection_of_its_process(watched: Watched) -> None:
    """Case 9: ss lists it in two tables, of MPTCP and of TCP, under one inode; here it is one row."""
    assert watched.one.run("cat", "/proc/sys/net/mptcp/enabled") == "1\n"
    with actor(watched.one, MPTCP) as process:
        sockets = list(zip(process.said[::2], process.said[1::2], strict=True))
        assert len(sockets) == 3
        for fd, inode in sockets:
            assert inodes_in_ss(watched, "-M").count(inode) == inodes_in_ss(watched, "-t").count(inode) == 1
            wait_until(lambda: owners_of(watched, inode) == [(process.pid, fd)], DEADLINE_S)  # noqa: B023
            assert len(rows_of(watched, inode)) == 1


UNLISTED = """
bound = socket.socket()
bound.bind(("127.0.0.1", 0))
unbound = socket.socket()
listener = listen()
print(os.fstat(listener.fileno()).st_ino, end=" ")
say(*(os.fstat(one.fileno()).st_ino for one in (bound, unbound)))
told()
"""


@only_walking
def test_tcp_sockets_that_are_not_connected_are_in_no_table_and_counted_with_their_process(
    watched: Watched,
) -> None:
    """Case 10: a bound one is in no table unless it is asked for at a price, an unbound one never."""
    with actor(watched.one, UNLISTED) as process:
        listening, bound, unbound = process.said
        assert set(inodes_in_ss(watched, "-t")) & set(process.said) == {listening}
        assert watched.owner(watched.one, listening)["pid"] == process.pid
        with watched.running.client() as client:
            (row,) = client.processes(pid=process.pid, fields=["connections", "sockets"]).rows
        assert (row["connections"], row["sockets"]) == (1, 3)
        assert rows_of(watched, bound) == rows_of(watched, unbound) == []


# UNIX, packet, raw and ping sockets, and one of TCP to tell when they were read.
OTHERS = """
open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 1")
one, other = socket.socketpair()
named = socket.socket(socket.AF_UNIX)
named.bind("\\0hard-case-" + str(os.getpid()))
named.listen()
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.connect(("127.0.0.1", 0))
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
listener = listen()
print(os.fstat(listener.fileno()).st_ino, end=" ")
say(*(os.fstat(held.fileno()).st_ino for held in (one, other, named, packet, raw, raw6, ping, netlink)))
told()
"""


@only_walking
def test_sockets_of_other_protocols_break_nothing_and_are_no_connections(watched: Watched) -> None:
    """Case 13."""
    with actor(watched.one, OTHERS) as process:
        listening = process.said[0]
        assert _protocols_of(process.pid) == sorted(
            ["NETLINK", "PACKET", "PING", "RAW", "RAWv6", "TCP", "UNIX", "UNIX", "UNIX"]
        )
        assert watched.owner(watched.one, listening)["pid"] == process.pid
        wait_until(lambda: _sockets_of(watched, process.pid) == 9, DEADLINE_S)
        rows = watched.running.connections(pid=process.pid)
        assert [(row["inode"], row["state"]) for row in rows] == [(listening, "LISTEN")]
        namespace = watched.running.namespace(watched.one.inode)
        assert namespace is not None and (namespace["partial"], namespace["denied"]) == (False, 0)
    assert "Traceback" not in watched.running.log


def _protocols_of(pid: int) -> list[str]:
    """By the kernel's names."""
    folder = f"/proc/{pid}/fd"
    sockets = [fd for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}").startswith("socket:")]
    names = [os.getxattr(f"{folder}/{fd}", "system.sockprotoname") for fd in sockets]
    return sorted(name.rstrip(b"\0").decode().removesuffix("-STREAM") for name in names)


def _sockets_of(watched: Watched, pid: int) -> int:
    with watched.running.client() as client:
        rows = client.processes(pid=pid, fields=["sockets"]).rows
    return int(rows[0]["sockets"]) if rows else 0
