from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Denied, Malformed, Unsupported
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.connection import Family, State
from pipeline.model.socket_row import SocketRow
from pipeline.netlink.sock_diag import (
    MAX_DUMP_ATTEMPTS,
    Decoded,
    decode_dump,
    dump_tcp,
    dump_udp,
    interface_name,
    netns_cookie,
    open_diag,
)
from tests.live import LiveNetns, connect_pairs, needs_root, wait_until

TCPDIAG_GETSOCK = 18
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLM_F_MULTI, NLM_F_DUMP_INTR = 2, 16


def message(kind: int, payload: bytes, flags: int = NLM_F_MULTI, sequence: int = 1) -> bytes:
    """A netlink message, padded as the kernel pads."""
    padded = payload + bytes(-len(payload) % 4)
    return struct.pack("=IHHII", 16 + len(padded), kind, flags, sequence, 0) + padded


def diag_payload(row: SocketRow, attributes: bytes = b"") -> bytes:
    """struct inet_diag_msg: 72 bytes, include/uapi/linux/inet_diag.h."""
    family, state, sport, dport, src, dst, ifindex, cookie, uid, inode = row
    fixed = struct.pack("=BBBB2s2s16s16sI", family, state, 2, 1, sport, dport, src, dst, ifindex)
    cookie_words = struct.pack("=II", cookie & 0xFFFFFFFF, cookie >> 32)
    return fixed + cookie_words + struct.pack("=IIIII", 77, 78, 79, uid, inode) + attributes


def done(error: int = 0, flags: int = NLM_F_MULTI, sequence: int = 1) -> bytes:
    return message(NLMSG_DONE, struct.pack("=i", -error), flags, sequence)


ROW: SocketRow = (
    2,
    1,
    b"\xa6\xc0",
    b"\x01\xbb",
    bytes((127, 0, 0, 1)) + bytes(12),
    bytes(16),
    3,
    1 << 40,
    1000,
    5107,
)

addresses = st.binary(min_size=16, max_size=16)
ports = st.binary(min_size=2, max_size=2)
words = st.integers(0, 2**32 - 1)
rows = st.tuples(
    st.sampled_from([2, 10]),
    st.integers(1, 12),
    ports,
    ports,
    addresses,
    addresses,
    words,
    st.integers(0, 2**64 - 1),
    words,
    words,
)


def test_every_field_of_a_message_comes_out_where_it_belongs() -> None:
    assert decode_dump(message(TCPDIAG_GETSOCK, diag_payload(ROW))) == Decoded([ROW], False, False, 0)


@given(st.lists(st.tuples(rows, st.sampled_from([0, 0, 0, 8, 24])), max_size=40))
def test_messages_of_mixed_lengths_come_out_in_order(sent: list[tuple[SocketRow, int]]) -> None:
    buffer = b"".join(message(TCPDIAG_GETSOCK, diag_payload(row, bytes(size))) for row, size in sent)
    assert decode_dump(buffer + done()) == Decoded([row for row, _ in sent], True, False, 0)


def test_a_run_longer_than_the_look_ahead_comes_out_whole() -> None:
    sent: list[SocketRow] = [(*ROW[:9], inode) for inode in range(1009)]
    buffer = b"".join(message(TCPDIAG_GETSOCK, diag_payload(row)) for row in sent)
    assert decode_dump(buffer).rows == sent


def test_an_address_that_looks_like_a_header_does_not_end_or_lengthen_a_run() -> None:
    header_like: SocketRow = (
        *ROW[:4],
        struct.pack("=IHHII", 88, TCPDIAG_GETSOCK, NLM_F_MULTI, 1, 0),
        *ROW[5:],
    )
    sent = [header_like, ROW, header_like]
    sizes = [0, 16, 0]
    buffer = b"".join(
        message(TCPDIAG_GETSOCK, diag_payload(row, bytes(size)))
        for row, size in zip(sent, sizes, strict=True)
    )
    assert decode_dump(buffer).rows == sent


def test_an_interrupted_flag_is_seen_in_the_middle_of_a_run_and_at_the_end() -> None:
    plain = message(TCPDIAG_GETSOCK, diag_payload(ROW))
    marked = message(TCPDIAG_GETSOCK, diag_payload(ROW), NLM_F_MULTI | NLM_F_DUMP_INTR)
    assert decode_dump(plain + marked + plain) == Decoded([ROW] * 3, False, True, 0)
    assert decode_dump(plain + done(flags=NLM_F_DUMP_INTR)) == Decoded([ROW], True, True, 0)
    assert decode_dump(plain + done()) == Decoded([ROW], True, False, 0)


def test_error_numbers_come_from_error_messages_and_from_the_last_message() -> None:
    error = message(NLMSG_ERROR, struct.pack("=i", -errno.ENOENT) + bytes(16))
    assert decode_dump(error) == Decoded([], True, False, errno.ENOENT)
    assert decode_dump(done(errno.EINVAL)) == Decoded([], True, False, errno.EINVAL)
    assert decode_dump(message(NLMSG_DONE, b"")) == Decoded([], True, False, 0)


def test_messages_of_other_kinds_are_passed_over() -> None:
    buffer = message(NLMSG_NOOP, b"abc") + message(TCPDIAG_GETSOCK, diag_payload(ROW))
    assert decode_dump(buffer).rows == [ROW]


@pytest.mark.parametrize(
    "buffer",
    [
        b"\x00",
        struct.pack("=IHHII", 15, TCPDIAG_GETSOCK, 0, 1, 0),
        struct.pack("=IHHII", 0, NLMSG_NOOP, 0, 1, 0),
        struct.pack("=IHHII", 88, TCPDIAG_GETSOCK, 0, 1, 0) + bytes(71),
        message(TCPDIAG_GETSOCK, bytes(68)),
        struct.pack("=IHHII", 89, TCPDIAG_GETSOCK, 0, 1, 0) + bytes(76),
    ],
)
def test_lengths_that_cannot_be_are_malformed(buffer: bytes) -> None:
    with pytest.raises(Malformed):
        decode_dump(buffer)


@given(st.binary(max_size=400), st.integers(0, 500))
def test_any_bytes_give_rows_or_malformed(noise: bytes, length: int) -> None:
    good = message(TCPDIAG_GETSOCK, diag_payload(ROW)) * 5
    for buffer in (noise, good[:length], good[:length] + noise):
        try:
            decode_dump(buffer)
        except Malformed:
            continue


class ScriptedSocket(socket.socket):
    """Answers each request with the next list of buffers, with the request's own sequence number."""

    def __init__(self, *answers: list[bytes]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.requests = 0
        self._answers = iter(answers)
        self._buffers: Iterator[bytes] = iter(())
        self._sequence = b""

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
        self.requests += 1
        self._sequence = data[8:12]
        self._buffers = iter(next(self._answers))
        return len(data)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        buffer = next(self._buffers)
        return buffer[:8] + self._sequence + buffer[12:]


def test_an_interrupted_dump_is_repeated_and_its_rows_are_not_doubled() -> None:
    row = message(TCPDIAG_GETSOCK, diag_payload(ROW))
    with ScriptedSocket([row, done(flags=NLM_F_DUMP_INTR)], [row, done()]) as sock:
        dump = dump_tcp(sock)
        assert (dump.rows, dump.interrupted, sock.requests) == ([ROW], False, 2)


def test_a_dump_interrupted_each_time_is_given_up_and_marked() -> None:
    row = message(TCPDIAG_GETSOCK, diag_payload(ROW), NLM_F_MULTI | NLM_F_DUMP_INTR)
    with ScriptedSocket(*itertools.repeat([row, done()], MAX_DUMP_ATTEMPTS)) as sock:
        dump = dump_tcp(sock)
        assert (dump.rows, dump.interrupted, sock.requests) == ([ROW], True, MAX_DUMP_ATTEMPTS)


def test_udp_asks_for_each_family() -> None:
    with ScriptedSocket([done()], [message(TCPDIAG_GETSOCK, diag_payload(ROW)), done()]) as sock:
        assert (dump_udp(sock).rows, sock.requests) == ([ROW], 2)


@pytest.mark.parametrize(
    "number, error",
    [
        (errno.ENOENT, Unsupported),
        (errno.EOPNOTSUPP, Unsupported),
        (errno.EPERM, Denied),
        (errno.EACCES, Denied),
        (errno.ENOMEM, OSError),
    ],
)
def test_error_answers_are_sorted(number: int, error: type[Exception]) -> None:
    answer = message(NLMSG_ERROR, struct.pack("=i", -number) + bytes(16))
    with ScriptedSocket([answer]) as sock, pytest.raises(error):
        dump_tcp(sock)


@pytest.fixture
def netns() -> Iterator[LiveNetns]:
    with LiveNetns() as live:
        yield live


@pytest.fixture
def diag(netns: LiveNetns) -> Iterator[socket.socket]:
    """A sock_diag socket of `netns`, opened from outside."""
    netns_fd = open_netns(netns.path, netns.inode)
    with open(netns_fd, closefd=True), open_diag(netns_fd) as sock:
        yield sock


def pairs_in(netns: LiveNetns, family: socket.AddressFamily, address: str, count: int) -> list[socket.socket]:
    """`connect_pairs` in `netns`: the sockets are its own, the test process holds them."""
    netns_fd = open_netns(netns.path, netns.inode)
    with inside(netns_fd), open(netns_fd, closefd=True):
        return connect_pairs(family, address, count)


def close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@needs_root
def test_tcp_of_both_families_in_one_dump_agrees_with_ss(netns: LiveNetns, diag: socket.socket) -> None:
    sockets = pairs_in(netns, socket.AF_INET, "127.0.0.1", 23) + pairs_in(netns, socket.AF_INET6, "::1", 19)
    dump = dump_tcp(diag)
    assert not dump.interrupted
    assert len(dump.rows) == 47 + 39
    assert {(row[9], row[7]) for row in dump.rows} == netns.ss("-t")
    by_state = [(row[0], row[1]) for row in dump.rows]
    assert by_state.count((Family.INET, State.ESTABLISHED)) == 46
    assert by_state.count((Family.INET6, State.ESTABLISHED)) == 38
    assert by_state.count((Family.INET, State.LISTEN)) == 1
    own = {(sock.getsockname()[1], sock.getsockname()[0]) for sock in sockets}
    seen = {
        (
            int.from_bytes(row[2], "big"),
            socket.inet_ntop(row[0], row[4] if row[0] == Family.INET6 else row[4][:4]),
        )
        for row in dump.rows
    }
    assert seen == own
    close_all(sockets)


@needs_root
def test_udp_of_both_families_agrees_with_ss(netns: LiveNetns, diag: socket.socket) -> None:
    netns_fd = open_netns(netns.path, netns.inode)
    sockets = []
    with inside(netns_fd), open(netns_fd, closefd=True):
        for family, address, count in ((socket.AF_INET, "127.0.0.1", 7), (socket.AF_INET6, "::1", 5)):
            for _ in range(count):
                udp = socket.socket(family, socket.SOCK_DGRAM)
                udp.bind((address, 0))
                sockets.append(udp)
        sockets[0].connect(sockets[1].getsockname())
    rows = dump_udp(diag).rows
    assert len(rows) == 12
    assert {(row[9], row[7]) for row in rows} == netns.ss("-u")
    assert sorted(row[1] for row in rows) == [State.ESTABLISHED] + [State.CLOSE] * 11
    assert dump_tcp(diag).rows == []
    close_all(sockets)


@needs_root
def test_a_connection_keeps_its_cookie_from_the_backlog_to_time_wait(
    netns: LiveNetns, diag: socket.socket
) -> None:
    netns_fd = open_netns(netns.path, netns.inode)
    with inside(netns_fd), open(netns_fd, closefd=True):
        listener, client = socket.socket(), socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.connect(listener.getsockname())
    port = listener.getsockname()[1].to_bytes(2, "big")

    def server_rows() -> list[SocketRow]:
        return [row for row in dump_tcp(diag).rows if row[2] == port and row[1] != State.LISTEN]

    # The client is connected a moment before the server hears of it.
    wait_until(lambda: [row[1] for row in server_rows()] == [State.ESTABLISHED])
    (waiting,) = server_rows()
    assert waiting[9] == 0
    server, _ = listener.accept()
    (accepted,) = server_rows()
    assert (accepted[7], accepted[9] > 0) == (waiting[7], True)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: server_rows()[0][1] == State.CLOSE_WAIT)
    server.close()
    client.close()

    def time_wait_rows() -> list[SocketRow]:
        return [row for row in dump_tcp(diag).rows if row[1] == State.TIME_WAIT]

    wait_until(lambda: len(time_wait_rows()) == 1)
    (time_wait,) = time_wait_rows()
    assert time_wait[9] == 0
    assert time_wait[7] != 0
    listener.close()


@needs_root
def test_a_bound_device_has_its_index_and_its_name(netns: LiveNetns, diag: socket.socket) -> None:
    netns_fd = open_netns(netns.path, netns.inode)
    with inside(netns_fd), open(netns_fd, closefd=True):
        bound, unbound = socket.socket(), socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        for sock in (bound, unbound):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
    index = {row[2]: row[6] for row in dump_tcp(diag).rows}
    assert index[unbound.getsockname()[1].to_bytes(2, "big")] == 0
    assert interface_name(diag, index[bound.getsockname()[1].to_bytes(2, "big")]) == "lo"
    assert interface_name(diag, 4711) is None
    close_all([bound, unbound])


@needs_root
def test_an_interface_is_named_by_the_namespace_of_the_socket_not_of_the_caller(
    netns: LiveNetns, diag: socket.socket
) -> None:
    netns.run("ip", "link", "add", "only_here", "index", "4099", "type", "veth", "peer", "other_end")
    assert interface_name(diag, 4099) == "only_here"
    with open_diag() as own:
        assert interface_name(own, 4099) is None


@needs_root
def test_cookies_of_two_namespaces_differ_and_stay(netns: LiveNetns, diag: socket.socket) -> None:
    with open_diag() as own:
        here = netns_cookie(own)
        assert here is not None
        assert here == netns_cookie(own)
        assert here != netns_cookie(diag)


@needs_root
def test_the_rest_of_an_abandoned_dump_is_passed_over(netns: LiveNetns, diag: socket.socket) -> None:
    sockets = pairs_in(netns, socket.AF_INET, "127.0.0.1", 199)
    request = struct.pack("=IHHII", 76, TCPDIAG_GETSOCK, 0x301, 0xFFFFFFF0, 0) + struct.pack(
        "=52xII", 0xFFF, 0
    )
    diag.send(request)
    diag.recv(65536)
    # The socket is still busy with the first dump, which the kernel finishes as it is read.
    while NLMSG_DONE not in kinds(diag.recv(65536, socket.MSG_PEEK)):
        diag.recv(65536)
    assert len(dump_tcp(diag).rows) == 399
    close_all(sockets)


def kinds(buffer: bytes) -> set[int]:
    """The message types in one read."""
    found, offset = set(), 0
    while offset < len(buffer):
        length, kind = struct.unpack_from("=IH", buffer, offset)
        found.add(kind)
        offset += length
    return found


@needs_root
def test_a_closed_socket_of_ours_does_not_keep_a_dead_namespace_and_its_veth() -> None:
    with LiveNetns() as peer:
        with LiveNetns() as dying:
            peer.run(
                "ip",
                "link",
                "add",
                "veth_here",
                "type",
                "veth",
                "peer",
                "veth_there",
                "netns",
                str(dying.pid),
            )
            netns_fd = open_netns(dying.path, dying.inode)
            with open(netns_fd, closefd=True), open_diag(netns_fd) as sock:
                dump_tcp(sock)
            assert "veth_here" in peer.run("ip", "-o", "link")
        wait_until(lambda: "veth_here" not in peer.run("ip", "-o", "link"))
