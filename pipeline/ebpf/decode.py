"""Records of the eBPF programs as our nouns. Pure. The layouts are those of the .bpf.c files beside this one."""

from __future__ import annotations

import functools
import struct

from pipeline.errors import Malformed
from pipeline.model.connection import Family
from pipeline.model.event import SocketEvent
from pipeline.model.held_socket import HeldSocket

# struct held_socket of sockets.bpf.c. Two readings of the same bytes: the row, and what stands around it.
HELD_BYTES = 136
_ROW = struct.Struct("=48xBB2s2s2x16s16sI4xQII24x")
_AROUND = struct.Struct("=IIQ16sQII6xBx36xI16xQQQ")
_OF_THREAD_AT = 55
_INODE = struct.Struct("=108xI24x")

# struct event of events.bpf.c, behind the ring's header of its record (include/linux/bpf.h, BPF_RINGBUF_HDR_SZ).
RING_HEADER_BYTES = 8
EVENT_BYTES = 128
RECORD_BYTES = RING_HEADER_BYTES + EVENT_BYTES
_EVENT = struct.Struct("=8xQQQQQQIIIIBBBBHH16s16sB7x16s")

_INET = int(Family.INET)
_INBOUND = 1
_REFUSED = 2
_AGE_KNOWN = 4


def decode_held(data: bytes) -> list[HeldSocket]:
    """Records of sockets.bpf.c, in the order given. What several threads of one process hold alike is given once.

    Raises: Malformed where `data` is no whole number of records.
    """
    if len(data) % HELD_BYTES:
        raise Malformed(f"eBPF iterator: {len(data)} bytes, not a multiple of {HELD_BYTES}")
    held = [
        (
            pid,
            start,
            fd,
            comm,
            task_netns,
            cgroup,
            process_uid,
            row,
            proto,
            netns,
            cookie,
            acked,
            received,
        )
        for (
            (
                pid,
                fd,
                start,
                comm,
                cgroup,
                task_netns,
                process_uid,
                proto,
                netns,
                cookie,
                acked,
                received,
            ),
            row,
        ) in zip(_AROUND.iter_unpack(data), _ROW.iter_unpack(data), strict=True)
    ]
    # One byte of each record, by a strided slice: nearly always all zero.
    if any(data[_OF_THREAD_AT::HELD_BYTES]):
        first: dict[tuple[int, int, int], HeldSocket] = {}
        for one in held:
            first.setdefault((one[0], one[2], one[7][9]), one)
        return list(first.values())
    return held


def decode_inodes(data: bytes) -> list[int]:
    """Only the inodes of the sockets in records of sockets.bpf.c. Raises: Malformed as decode_held()."""
    if len(data) % HELD_BYTES:
        raise Malformed(f"eBPF iterator: {len(data)} bytes, not a multiple of {HELD_BYTES}")
    return [inode for (inode,) in _INODE.iter_unpack(data)]


def decode_events(data: bytes) -> list[SocketEvent]:
    """Records of events.bpf.c with their ring headers, in the order given.

    Raises: Malformed where `data` is no whole number of records.
    """
    if len(data) % RECORD_BYTES:
        raise Malformed(f"eBPF ring: {len(data)} bytes, not a multiple of {RECORD_BYTES}")
    # tuple.__new__ is what SocketEvent._make calls: a call of the class takes half as long again.
    return [
        tuple.__new__(
            SocketEvent,
            (
                kind,
                time_ns / 1e9,
                cookie,
                netns,
                proto,
                family,
                state,
                local_addr[:4] if family == _INET else local_addr,
                local_port,
                remote_addr[:4] if family == _INET else remote_addr,
                remote_port,
                inode,
                uid,
                pid,
                start_ticks,
                _name(comm),
                flags & _INBOUND != 0,
                flags & _REFUSED != 0,
                age_ns / 1e9 if flags & _AGE_KNOWN else None,
                bytes_sent,
                bytes_received,
            ),
        )
        for (
            time_ns,
            cookie,
            age_ns,
            bytes_sent,
            bytes_received,
            start_ticks,
            netns,
            inode,
            uid,
            pid,
            kind,
            proto,
            family,
            state,
            local_port,
            remote_port,
            local_addr,
            remote_addr,
            flags,
            comm,
        ) in _EVENT.iter_unpack(data)
    ]


@functools.lru_cache(maxsize=4096)
def _name(comm: bytes) -> str:
    """The kernel's 16 bytes as other sources give a process's name."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
