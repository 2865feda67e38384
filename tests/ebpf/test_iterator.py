"""The iterator against ss, fstat and /proc, in fresh namespaces."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from pipeline.ebpf import SocketIterator
from pipeline.kernel.enter import open_netns
from pipeline.kernel.libc import CLONE_NEWPID, unshare
from pipeline.model.connection import Family, Proto, State
from pipeline.model.held_socket import HeldSocket
from pipeline.netlink.sock_diag import dump_tcp, dump_udp, open_diag
from tests.e2e.host import NamedNetns
from tests.hard_cases.actors import actor
from tests.live import connect_pairs, needs_root, wait_until

pytestmark = needs_root

PAIRS = 23

# Says fd and inode of each socket of: 23 TCP pairs and their listener for both families, one connected and one bound
# UDP socket for both, and one of each that no table shows (it comes last: TCP, UDP, unix).
MANY = f"""
held = []
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.create_server((address, 0), family=family, backlog=64)
    held.append(listener)
    for _ in range({PAIRS}):
        client = socket.socket(family)
        client.connect(listener.getsockname()[:2])
        held += [client, listener.accept()[0]]
    bound, connected = (socket.socket(family, socket.SOCK_DGRAM) for _ in "ab")
    bound.bind((address, 0))
    connected.connect(bound.getsockname()[:2])
    held += [bound, connected]
held += [socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
say(*(number for one in held for number in (one.fileno(), os.fstat(one.fileno()).st_ino)))
told()
"""
NOT_IN_TABLES = 3


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def pairs(said: list[int]) -> list[tuple[int, int]]:
    """(fd, inode) of what an actor said."""
    return list(zip(said[::2], said[1::2], strict=True))


def of_process(held: list[HeldSocket], pid: int) -> list[HeldSocket]:
    return [one for one in held if one[0] == pid]


def test_every_socket_of_a_process_comes_with_fd_owner_and_namespaces(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, MANY) as many:
        given = of_process(iterator.read_all(), many.pid)
        assert [(one[2], one[7][9]) for one in given] == pairs(many.said)[:-NOT_IN_TABLES]
        assert len(given) == 2 * (2 * PAIRS + 3)
        comm = Path(f"/proc/{many.pid}/comm").read_bytes().rstrip(b"\n").ljust(16, b"\0")
        about = {(one[1], one[3], one[4], one[6], one[9]) for one in given}
        assert about == {(start_ticks(many.pid), comm, netns.inode, 0, netns.inode)}


def test_rows_are_those_of_sock_diag(netns: NamedNetns, iterator: SocketIterator) -> None:
    with actor(netns, MANY) as many:
        netns_fd = open_netns(str(netns.path), netns.inode)
        with open_diag(netns_fd) as diag:
            rows = {(Proto.TCP, row) for row in dump_tcp(diag).rows}
            rows |= {(Proto.UDP, row) for row in dump_udp(diag).rows}
        os.close(netns_fd)
        given = iterator.read_process(many.pid)
        assert {(one[8], one[7]) for one in given} == rows
        assert len(rows) == 2 * (2 * PAIRS + 3)
        assert Counter((one[8], one[7][0], one[7][1]) for one in given) == {
            (Proto.TCP, Family.INET, State.LISTEN): 1,
            (Proto.TCP, Family.INET, State.ESTABLISHED): 2 * PAIRS,
            (Proto.UDP, Family.INET, State.CLOSE): 1,
            (Proto.UDP, Family.INET, State.ESTABLISHED): 1,
            (Proto.TCP, Family.INET6, State.LISTEN): 1,
            (Proto.TCP, Family.INET6, State.ESTABLISHED): 2 * PAIRS,
            (Proto.UDP, Family.INET6, State.CLOSE): 1,
            (Proto.UDP, Family.INET6, State.ESTABLISHED): 1,
        }


def test_cookies_are_those_of_ss_and_of_the_namespace(netns: NamedNetns, iterator: SocketIterator) -> None:
    with actor(netns, MANY) as many:
        lines = netns.run("ss", "-HtuanOe").splitlines()
        shown = {
            (int(re.findall(r"ino:(\d+)", line)[0]), int(re.findall(r"sk:(\w+)", line)[0], 16))
            for line in lines
        }
        given = iterator.read_process(many.pid)
        assert {(one[7][9], one[7][7]) for one in given} == shown
        so_netns_cookie = 71
        script = (
            f"import socket; s = socket.socket(); print(int.from_bytes("
            f"s.getsockopt(socket.SOL_SOCKET, {so_netns_cookie}, 8), 'little'))"
        )
        assert {one[10] for one in given} == {int(netns.run("python3", "-c", script))}


TALK = """
listener = listen()
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(bytes(70001))
left = 70001
while left:
    left -= len(server.recv(left))
server.sendall(b"thanks")
client.recv(6, socket.MSG_WAITALL)
say(client.fileno(), server.fileno())
told()
"""


def test_bytes_are_those_of_ss(netns: NamedNetns, iterator: SocketIterator) -> None:
    def shown() -> dict[str, tuple[int, int]]:
        lines = netns.run("ss", "-HtniO", "state", "established").splitlines()
        counts = {}
        for line in lines:
            acked, received = (re.search(rf"bytes_{word}:(\d+)", line) for word in ("acked", "received"))
            local = line.split()[2].rpartition(":")[2]
            counts[local] = (int(acked[1]) if acked else 0, int(received[1]) if received else 0)
        return counts

    with actor(netns, TALK) as talk:
        # The last acknowledgement may be on its way.
        wait_until(lambda: min(acked for acked, _ in shown().values()) >= 6, 20.0)
        given = [one for one in iterator.read_process(talk.pid) if one[7][1] == State.ESTABLISHED]
        assert {str(int.from_bytes(one[7][2], "big")): (one[11], one[12]) for one in given} == shown()
        assert sorted(one[12] for one in given) == [6, 70001]


OTHER = """
enter(sys.argv[1])
listener = listen()
enter(sys.argv[2])
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""


def test_the_namespace_of_a_socket_is_its_own_and_not_that_of_its_holder(
    netns: NamedNetns, other_netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, OTHER, str(other_netns.path), str(netns.path)) as holder:
        (given,) = iterator.read_process(holder.pid)
        assert (given[4], given[9]) == (netns.inode, other_netns.inode)
        assert (given[2], given[7][9]) == tuple(holder.said)


OWN_FILES = """
shared = listen()
def work():
    unshare(CLONE_FILES)
    own = listen()
    say(shared.fileno(), os.fstat(shared.fileno()).st_ino, own.fileno(), os.fstat(own.fileno()).st_ino)
    told()
threading.Thread(target=work).start()
"""


def test_a_thread_with_its_own_descriptors_counts_as_its_process_and_the_shared_ones_come_once(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, OWN_FILES) as thread:
        for given in (iterator.read_process(thread.pid), of_process(iterator.read_all(), thread.pid)):
            assert sorted((one[2], one[7][9]) for one in given) == sorted(pairs(thread.said))
            assert {(one[0], one[1], one[4]) for one in given} == {
                (thread.pid, start_ticks(thread.pid), netns.inode)
            }


# Its leader ends; three threads go on with the table that was common to all.
DEAD_LEADER = """
listener = listen()
never = os.pipe()
def work():
    os.read(0, 1)
    say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
    told()
    os._exit(0)
for target in (work, lambda: os.read(never[0], 1), lambda: os.read(never[0], 1)):
    threading.Thread(target=target).start()
say()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


def test_what_the_threads_of_a_dead_leader_hold_comes_once_with_their_namespace(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, DEAD_LEADER) as process:
        wait_until(
            lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", 20.0
        )
        said = process.tell("")
        for given in (iterator.read_process(process.pid), of_process(iterator.read_all(), process.pid)):
            assert [(one[2], one[7][9]) for one in given] == [tuple(said)]
            assert (given[0][1], given[0][4]) == (start_ticks(process.pid), netns.inode)


SHARED = """
listener = listen()
copy = os.dup(listener.fileno())
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
say(child, listener.fileno(), copy, os.fstat(copy).st_ino)
told()
os.waitpid(child, 0)
"""


def test_a_socket_comes_once_for_each_descriptor_and_each_process(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, SHARED) as parent:
        child, fd, copy, inode = parent.said
        given = [
            (one[0], one[2]) for one in iterator.read_all() if one[7][9] == inode and one[9] == netns.inode
        ]
        assert sorted(given) == sorted((pid, one) for pid in (parent.pid, child) for one in (fd, copy))


def test_a_process_is_shown_with_its_effective_user_and_a_socket_with_its_own(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    with actor(netns, "one = listen(); os.seteuid(1234); other = listen(); say(); told()") as process:
        given = iterator.read_process(process.pid)
        assert [(one[6], one[7][8]) for one in given] == [(1234, 0), (1234, 1234)]


def test_a_process_that_ended_holds_nothing(netns: NamedNetns, iterator: SocketIterator) -> None:
    with actor(netns, "listener = listen(); say(); told()") as process:
        assert len(iterator.read_process(process.pid)) == 1
    assert iterator.read_process(process.pid) == []
    assert of_process(iterator.read_all(), process.pid) == []


def test_inside_a_pid_namespace_pids_are_the_readers(iterator: SocketIterator) -> None:
    sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 1)
    reader, writer = os.pipe()
    outer = os.fork()
    if outer == 0:
        unshare(CLONE_NEWPID)
        inner = os.fork()
        if inner == 0:
            given = iterator.read_all()
            found = {one[0] for one in given if one[7][9] == os.fstat(sockets[0].fileno()).st_ino}
            os.write(writer, f"{os.getpid()} {sorted(found)}".encode())
            os._exit(0)
        os.waitpid(inner, 0)
        os._exit(0)
    os.close(writer)
    os.waitpid(outer, 0)
    with os.fdopen(reader) as file:
        assert file.read() == "1 [1]"
    for one in sockets:
        one.close()


def test_multipath_tcp_and_other_protocols_are_left_out(netns: NamedNetns, iterator: SocketIterator) -> None:
    script = """
held = [socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), socket.socket(socket.AF_UNIX)]
try:
    held.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
    held[-1].listen()
except OSError:
    pass
say()
told()
"""
    with actor(netns, script) as process:
        assert iterator.read_process(process.pid) == []


@pytest.mark.parametrize("count", [1009])
def test_more_sockets_than_one_read_holds_all_come(
    netns: NamedNetns, iterator: SocketIterator, count: int
) -> None:
    script = f"held = [listen() for _ in range({count})]; say(*(os.fstat(one.fileno()).st_ino for one in held)); told()"
    with actor(netns, script) as process:
        assert [one[7][9] for one in of_process(iterator.read_all(), process.pid)] == process.said


WAITING = f"""
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
held = [socket.create_connection(listener.getsockname()) for _ in range({PAIRS})]
say(listener.fileno())
told()
for _ in held:
    listener.accept()
say()
told()
"""


def test_a_listener_tells_how_many_connections_wait_at_it(
    netns: NamedNetns, iterator: SocketIterator
) -> None:
    def waiting() -> int:
        (listener,) = [one for one in iterator.read_process(process.pid) if one[7][1] == State.LISTEN]
        return listener[12]

    with actor(netns, WAITING) as process:
        # They are connected a moment before the listener hears of it.
        wait_until(lambda: waiting() == PAIRS)
        process.tell("accept")
        assert waiting() == 0
