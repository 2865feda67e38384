from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ebpf.decode import HELD_BYTES, RECORD_BYTES, decode_events, decode_held
from pipeline.errors import Malformed
from pipeline.model.event import EventKind, SocketEvent

V6 = bytes(range(16))
V4 = bytes((127, 0, 0, 1)) + bytes(12)


def held(pid: int = 7, fd: int = 3, of_thread: int = 0, inode: int = 321, acked: int = 0) -> bytes:
    """struct held_socket, field by field in the order of sockets.bpf.c."""
    return (
        struct.pack("=IIQ16sQII", pid, fd, 4711, b"nginx", 99, 4026531840, 33)
        + struct.pack("=BB2s2sBB", 10, 1, b"\x01\xbb", b"\xc0\x01", 6, of_thread)
        + struct.pack("=16s16sIIQII", V6, V4, 2, 4026532000, 5000, 1000, inode)
        + struct.pack("=QQQ", 17, acked, 20)
    )


def event(kind: int = EventKind.CLOSED, family: int = 2, flags: int = 7, header: int = 128) -> bytes:
    """struct event behind its ring header, field by field in the order of events.bpf.c."""
    return (
        struct.pack("=II", header, 0)
        + struct.pack("=QQQQQQ", 2_500_000_000, 5000, 1_250_000_000, 11, 12, 4711)
        + struct.pack("=IIII", 4026532000, 321, 1000, 7)
        + struct.pack("=BBBBHH", kind, 6, family, 8, 443, 49153)
        + struct.pack("=16s16sB7x16s", V4, V6, flags, b"a b\xff\0junk")
    )


def test_a_record_of_the_iterator_is_a_held_socket() -> None:
    row = (10, 1, b"\x01\xbb", b"\xc0\x01", V6, V4, 2, 5000, 1000, 321)
    assert decode_held(held(acked=10)) == [
        (7, 4711, 3, b"nginx".ljust(16, b"\0"), 4026531840, 99, 33, row, 6, 4026532000, 17, 10, 20)
    ]


def test_what_threads_of_one_process_hold_alike_is_given_once() -> None:
    own, shared = held(fd=3, of_thread=1), held(fd=4, of_thread=1)
    other_socket = held(fd=4, of_thread=1, inode=322)
    records = own + shared + held(fd=3, of_thread=1, acked=1) + shared + other_socket + held(pid=8)
    given = [(one[0], one[2], one[7][9]) for one in decode_held(records)]
    assert given == [(7, 3, 321), (7, 4, 321), (7, 4, 322), (8, 3, 321)]


def test_a_record_of_the_ring_is_an_event() -> None:
    assert decode_events(event() + event(EventKind.OWNER, family=10, flags=0)) == [
        SocketEvent(
            4, 2.5, 5000, 4026532000, 6, 2, 8, V4[:4], 443, V6[:4], 49153, 321, 1000, 7, 4711, "a b\\xff",
            True, True, 1.25, 11, 12,
        ),
        SocketEvent(
            3, 2.5, 5000, 4026532000, 6, 10, 8, V4, 443, V6, 49153, 321, 1000, 7, 4711, "a b\\xff",
            False, False, None, 11, 12,
        ),
    ]  # fmt: skip


@given(st.binary(max_size=4 * HELD_BYTES))
def test_any_bytes_are_held_sockets_or_malformed(data: bytes) -> None:
    if len(data) % HELD_BYTES:
        with pytest.raises(Malformed):
            decode_held(data)
    else:
        assert len(decode_held(data)) <= len(data) // HELD_BYTES


@given(st.integers(0, 3), st.data())
def test_any_whole_records_are_as_many_events(count: int, data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=count * RECORD_BYTES, max_size=count * RECORD_BYTES))
    assert len(decode_events(content)) == count
    for cut in range(1, min(len(content), 8)):
        with pytest.raises(Malformed):
            decode_events(content[:-cut])
