"""The event stream against what actors in fresh namespaces did."""

from __future__ import annotations

import functools
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ebpf import EventRing
from pipeline.kernel.support import cgroup2_dir
from pipeline.model.connection import Family, Proto, State
from pipeline.model.event import EventKind, SocketEvent
from tests.e2e.host import NamedNetns
from tests.hard_cases.actors import Actor, actor
from tests.live import needs_root, wait_until

pytestmark = needs_root

COUNT = 23
LOOPBACK = {4: socket.inet_aton("127.0.0.1"), 6: socket.inet_pton(socket.AF_INET6, "::1")}
FAMILY = {4: Family.INET, 6: Family.INET6}

# Arguments: 4 or 6. Says its port; on a word accepts connections, answers five bytes with three, until told to end.
SERVER = """
version = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}[sys.argv[1]]
listener = socket.create_server((version[1], 0), family=version[0], backlog=64)
say(listener.getsockname()[1])
def serve():
    while True:
        one, _ = listener.accept()
        one.recv(5, socket.MSG_WAITALL)
        one.sendall(b"bye")
        one.recv(1)
        one.close()
threading.Thread(target=serve, daemon=True).start()
told()
os._exit(0)
"""

# Arguments: 4 or 6, port, count. Makes one connection after the other, and closes first.
CLIENT = """
version = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}[sys.argv[1]]
say()
for line in sys.stdin:
    ports = []
    for _ in range(int(sys.argv[3])):
        one = socket.socket(version[0])
        one.connect((version[1], int(sys.argv[2])))
        ports.append(one.getsockname()[1])
        one.sendall(b"hello")
        one.recv(3, socket.MSG_WAITALL)
        one.close()
    say(*ports)
"""


class Drained:
    """Events of one namespace, gathered over several drains, in order."""

    def __init__(self, ring: EventRing, netns: NamedNetns) -> None:
        self._ring = ring
        self._netns = netns
        self.events: list[SocketEvent] = []

    def until(self, condition: Callable[[list[SocketEvent]], bool]) -> list[SocketEvent]:
        """All events so far, as soon as `condition` holds of them."""
        wait_until(lambda: condition(self.more()), 30.0)
        return self.events

    def more(self) -> list[SocketEvent]:
        self.events += [event for event in self._ring.drain() if event.netns == self._netns.inode]
        return self.events


def closed(events: list[SocketEvent]) -> list[SocketEvent]:
    return [event for event in events if event.kind == EventKind.CLOSED and event.state != State.LISTEN]


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def story(events: list[SocketEvent], cookie: int) -> list[EventKind]:
    """What happened to one socket, in order."""
    return [EventKind(event.kind) for event in events if event.cookie == cookie]


@pytest.mark.parametrize("version", [4, 6])
def test_both_ends_of_every_short_connection_have_the_right_process(
    netns: NamedNetns, ring: EventRing, version: int
) -> None:
    drained = Drained(ring, netns)
    with actor(netns, SERVER, str(version)) as server:
        (port,) = server.said
        with actor(netns, CLIENT, str(version), str(port), str(COUNT)) as client:
            before_s = time.monotonic()
            ports = client.tell("go")
            ends = closed(drained.until(lambda events: len(closed(events)) >= 2 * COUNT))
            after_s = time.monotonic()
            pids = {True: server.pid, False: client.pid}
            starts = {pid: start_ticks(pid) for pid in pids.values()}
    assert len(ends) == 2 * COUNT
    assert Counter((end.inbound, end.local_port, end.remote_port) for end in ends) == Counter(
        [(False, local, port) for local in ports] + [(True, port, remote) for remote in ports]
    )
    comms = set()
    for end in ends:
        assert (end.pid, end.start_ticks) == (pids[end.inbound], starts[pids[end.inbound]])
        assert (end.proto, end.family) == (Proto.TCP, FAMILY[version])
        assert end.local_addr == end.remote_addr == LOOPBACK[version]
        assert (end.bytes_sent, end.bytes_received) == ((3, 5) if end.inbound else (5, 3))
        assert end.age_s is not None and before_s < end.time_s - end.age_s < end.time_s < after_s
        assert not end.refused
        comms.add(end.comm)
        assert story(drained.events, end.cookie) == (
            [EventKind.ESTABLISHED, EventKind.OWNER, EventKind.CLOSED]
            if end.inbound
            else [EventKind.CONNECT, EventKind.ESTABLISHED, EventKind.CLOSED]
        )
    assert len({end.cookie for end in ends}) == 2 * COUNT
    assert len(comms) == 1


REFUSED = """
version = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}[sys.argv[1]]
held = socket.socket(version[0])
held.bind((version[1], 0))
one = socket.socket(version[0])
for _ in range(2):
    one.connect_ex(held.getsockname()[:2])
say(held.getsockname()[1], os.fstat(one.fileno()).st_ino)
told()
"""


@pytest.mark.parametrize("version", [4, 6])
def test_a_refused_connection_ends_without_having_been_and_may_be_tried_again(
    netns: NamedNetns, ring: EventRing, version: int
) -> None:
    drained = Drained(ring, netns)
    with actor(netns, REFUSED, str(version)) as process:
        port, inode = process.said
        events = drained.until(lambda events: len(closed(events)) >= 2)
        assert len({event.cookie for event in events}) == 1
        assert story(events, events[0].cookie) == [EventKind.CONNECT, EventKind.CLOSED] * 2
        for end in closed(events):
            assert end.refused and not end.inbound
            assert (end.pid, end.inode, end.state) == (process.pid, inode, State.SYN_SENT)
            assert (end.remote_addr, end.remote_port) == (LOOPBACK[version], port)
            assert (end.bytes_sent, end.bytes_received) == (0, 0)


def sleeps_in_accept(pid: int) -> bool:
    """Whether its main thread is in accept4(2)."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("288", "242")


def test_a_server_that_blocked_in_accept_before_the_programs_ran_is_known_at_its_first_byte(
    netns: NamedNetns,
) -> None:
    script = """
listener = listen()
say(listener.getsockname()[1])
one, _ = listener.accept()
one.recv(1)
say(os.fstat(one.fileno()).st_ino)
told()
"""
    with actor(netns, script) as server:
        wait_until(lambda: sleeps_in_accept(server.pid), 20.0)
        with EventRing.open(1 << 24) as ring:
            drained = Drained(ring, netns)
            say = "one = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); one.send(b'x'); say(); told()"
            with actor(netns, say, str(server.said[0])) as client:
                (inode,) = server.hear()
                events = drained.until(lambda events: any(event.kind == EventKind.OWNER for event in events))
                (owner,) = [event for event in events if event.kind == EventKind.OWNER]
                assert (owner.pid, owner.inode, owner.inbound) == (server.pid, inode, True)
                assert owner.local_port == server.said[0]
                (established,) = [
                    event for event in events if event.kind == EventKind.ESTABLISHED and event.inbound
                ]
                assert (established.cookie, established.pid, established.comm) == (owner.cookie, 0, "")
                assert client.pid in {event.pid for event in events if event.kind == EventKind.CONNECT}


# Closes an accepted connection that it never used: in order, by shutdown, or with a reset.
UNUSED = """
listener = listen()
client = socket.create_connection(listener.getsockname())
def accept():
    one, _ = listener.accept()
    say(os.getpid(), os.fstat(one.fileno()).st_ino)
    if sys.argv[1] == "reset":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\x01\\0\\0\\0\\0\\0\\0\\0")
    if sys.argv[1] == "shutdown":
        one.shutdown(socket.SHUT_WR)
        told()
    one.close()
child = os.fork()
if child == 0:
    accept()
    os._exit(0)
os.waitpid(child, 0)
told()
"""


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
def test_whoever_closes_an_accepted_connection_that_nobody_used_owned_it(
    netns: NamedNetns, ring: EventRing, how: str
) -> None:
    drained = Drained(ring, netns)
    with actor(netns, UNUSED, how) as process:
        child, inode = process.said
        if how == "shutdown":
            owner = drained.until(lambda events: any(event.kind == EventKind.OWNER for event in events))[-1]
            assert owner.state == State.FIN_WAIT1
            assert (owner.pid, owner.inode) == (child, inode)
            assert process.process.stdin is not None
            process.process.stdin.write("go on\n")
            process.process.stdin.flush()
        else:
            ends = drained.until(lambda events: any(event.inode == inode for event in events))
            assert {event.pid for event in ends if event.inode == inode} == {child}


OLD = """
listener = listen()
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"hello")
server.recv(5)
say(client.getsockname()[1])
told()
client.close()
server.close()
say()
told()
"""


def test_a_connection_from_before_the_programs_ends_with_an_owner_and_without_an_age(
    netns: NamedNetns,
) -> None:
    with actor(netns, OLD) as process, EventRing.open(1 << 24) as ring:
        drained = Drained(ring, netns)
        process.tell("close")
        ends = closed(drained.until(lambda events: len(closed(events)) >= 2))
        assert sorted(
            (end.local_port == process.said[0], end.bytes_sent, end.bytes_received) for end in ends
        ) == [
            (False, 0, 5),
            (True, 5, 0),
        ]
        for end in ends:
            assert (end.pid, end.age_s, end.inbound, end.refused) == (process.pid, None, False, False)
            assert story(drained.events, end.cookie) == [EventKind.OWNER, EventKind.CLOSED]


FORKING = """
listener = listen()
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
child = os.fork()
if child == 0:
    listener.close()
    client.close()
    server.sendall(b"x")
    os._exit(0)
server.close()
os.waitpid(child, 0)
say(child)
told()
"""


def test_the_child_that_serves_a_connection_owns_it_and_not_the_parent_that_accepted_it(
    netns: NamedNetns, ring: EventRing
) -> None:
    drained = Drained(ring, netns)
    with actor(netns, FORKING) as parent:
        (child,) = parent.said
        events = drained.until(lambda events: any(event.kind == EventKind.OWNER for event in events))
        (owner,) = [event for event in events if event.kind == EventKind.OWNER]
        assert (owner.pid, owner.inbound) == (child, True)


def test_a_listener_begins_and_ends_with_its_process(netns: NamedNetns, ring: EventRing) -> None:
    drained = Drained(ring, netns)
    with actor(netns, "one = listen(); say(one.getsockname()[1]); told()") as process:
        events = drained.until(lambda events: len(events) >= 1)
        assert [(event.kind, event.state, event.pid, event.local_port) for event in events] == [
            (EventKind.LISTEN, State.LISTEN, process.pid, process.said[0])
        ]
    events = drained.until(lambda events: len(events) >= 2)
    assert [(event.kind, event.state, event.pid, event.local_port) for event in events[1:]] == [
        (EventKind.CLOSED, State.LISTEN, process.pid, process.said[0])
    ]


UDP = """
version = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}[sys.argv[1]]
server, client = (socket.socket(version[0], socket.SOCK_DGRAM) for _ in "ab")
server.bind((version[1], 0))
client.connect(server.getsockname()[:2])
client.send(b"hello")
server.recv(5)
client.send(b"hello")
say(server.getsockname()[1], client.getsockname()[1])
told()
"""


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_socket_is_told_with_its_process_when_it_is_used_first(
    netns: NamedNetns, ring: EventRing, version: int
) -> None:
    drained = Drained(ring, netns)
    with actor(netns, UDP, str(version)) as process:
        server_port, client_port = process.said
        events = drained.until(lambda events: len(events) >= 2)
        assert [(event.kind, event.proto, event.pid) for event in events] == [
            (EventKind.OWNER, Proto.UDP, process.pid)
        ] * 2
        client, server = events
        assert (client.local_addr, client.local_port) == (LOOPBACK[version], client_port)
        assert (client.remote_addr, client.remote_port) == (LOOPBACK[version], server_port)
        assert (client.state, server.state) == (State.ESTABLISHED, State.CLOSE)
        assert (server.local_port, server.remote_port) == (server_port, 0)


UDP_ENDS = """
version = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}[sys.argv[1]]
server, client, unused = (socket.socket(version[0], socket.SOCK_DGRAM) for _ in "abc")
server.bind((version[1], 0))
unused.connect(server.getsockname()[:2])
client.sendto(b"hello", server.getsockname()[:2])
answer_to = server.recvfrom(5)[1]
server.sendto(b"bye", answer_to)
client.connect(server.getsockname()[:2])
client.recv(3)
client.send(b"hello again")
said = server.getsockname()[1], client.getsockname()[1], os.fstat(client.fileno()).st_ino
for one in (unused, client, server):
    one.close()
say(*said)
told()
"""


@pytest.mark.parametrize("version", [4, 6])
def test_the_end_of_a_udp_socket_that_was_used_is_told_with_its_last_peer_and_bytes(
    netns: NamedNetns, version: int
) -> None:
    cgroup_dir = cgroup2_dir()
    if cgroup_dir is None:
        pytest.skip("no cgroup version 2 is mounted here")
    with EventRing.open(1 << 24, cgroup_dir=cgroup_dir) as ring:
        assert ring.tells_udp_ends
        drained = Drained(ring, netns)
        with actor(netns, UDP_ENDS, str(version)) as process:
            server_port, client_port, inode = process.said
            client, server = closed(drained.until(lambda events: len(closed(events)) >= 2))
        assert (client.local_port, client.remote_port, client.state) == (
            client_port,
            server_port,
            State.ESTABLISHED,
        )
        assert client.local_addr == client.remote_addr == LOOPBACK[version]
        assert (client.bytes_sent, client.bytes_received, client.inode) == (16, 3, inode)
        assert (server.local_port, server.remote_port, server.state) == (server_port, 0, State.CLOSE)
        assert (server.bytes_sent, server.bytes_received) == (3, 5)
        for end in (client, server):
            assert (end.pid, end.proto, end.family) == (process.pid, Proto.UDP, FAMILY[version])
            assert end.age_s is not None and 0 < end.age_s < end.time_s
            assert story(drained.events, end.cookie) == [EventKind.OWNER, EventKind.CLOSED]
        assert len({event.cookie for event in drained.events}) == 2


def test_where_there_is_no_such_cgroup_events_come_without_the_ends_of_udp_sockets(
    netns: NamedNetns, tmp_path: Path
) -> None:
    for folder in (str(tmp_path), str(tmp_path / "missing")):
        with EventRing.open(1 << 24, cgroup_dir=folder) as ring:
            assert not ring.tells_udp_ends
            drained = Drained(ring, netns)
            with actor(netns, "one = listen(); say(); told()"):
                drained.until(lambda events: any(event.kind == EventKind.LISTEN for event in events))


def test_events_that_find_the_ring_full_are_counted_and_later_ones_come_again(netns: NamedNetns) -> None:
    with EventRing.open(4096) as ring, actor(netns, SERVER, "4") as server:
        with actor(netns, CLIENT, "4", str(server.said[0]), "101") as client:
            assert len(client.tell("go")) == 101
            wait_until(lambda: ring.lost() >= 100, 30.0)
            # Before the client spoke it saw CONNECT, CLOSED and twice ESTABLISHED of each.
            assert ring.lost() + len(ring.drain()) >= 4 * 101
        drained = Drained(ring, netns)
        with actor(netns, CLIENT, "4", str(server.said[0]), "1") as client:
            # So small a ring may be filled by the rest of the host meanwhile: it may take several.
            wait_until(lambda: client.tell("go")[0] in {event.local_port for event in drained.more()}, 30.0)


def test_a_ring_that_is_drained_in_time_goes_round_without_a_loss(netns: NamedNetns) -> None:
    with actor(netns, SERVER, "4") as server, actor(netns, CLIENT, "4", str(server.said[0]), "101") as client:
        # The rest of the host may fill the ring meanwhile: then once more.
        wait_until(functools.partial(goes_round, netns, client, turns=13), 120.0)


def goes_round(netns: NamedNetns, client: Actor, turns: int) -> bool:
    """Whether a ring without a loss took so many turns of 101 connections."""
    with EventRing.open(1 << 19) as ring:
        drained = Drained(ring, netns)
        for turn in range(1, turns + 1):
            client.tell("go")
            drained.until(lambda events: ring.lost() > 0 or len(closed(events)) >= 202 * turn)  # noqa: B023
            if ring.lost():
                return False
        # Six records of 136 bytes for each connection: twice the ring.
        assert Counter(event.kind for event in drained.events if event.state != State.LISTEN) == {
            EventKind.CONNECT: 101 * turns,
            EventKind.ESTABLISHED: 202 * turns,
            EventKind.OWNER: 101 * turns,
            EventKind.CLOSED: 202 * turns,
        }
    return True
