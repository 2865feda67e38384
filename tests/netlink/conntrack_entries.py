"""ctnetlink messages to decode: four that a kernel sent, and any others, built attribute by attribute."""

from __future__ import annotations

import struct
from typing import NamedTuple

# As Linux 6.18 sent them in a dump of a router with DNAT and masquerade, byte by byte.
RECORDED_TCP4 = bytes.fromhex(
    "d4000000000102000100000011780000020000003400018014000180080001000a4d0002080002000a4d00641c00028005000100"
    "0600000006000200c9b2000006000300005000003400028014000180080001000a4d0102080002000a4d01011c00028005000100"
    "06000000060002001f90000006000300c9b2000008000300000001be080008000000000008000c001bf8dc8608000b0000000001"
    "0800070000000077300004802c0001800500010007000000050002000a000000050003000a000000060004002300000006000500"
    "27000000"
)
RECORDED_UDP4 = bytes.fromhex(
    "a4000000000102000100000011780000020000003400018014000180080001000a4d0002080002000a4d00641c00028005000100"
    "1100000006000200d739000006000300003500003400028014000180080001000a4d0102080002000a4d01011c00028005000100"
    "110000000600020014e9000006000300d739000008000300000001ba080008000000000008000c0074a6b54308000b0000000001"
    "080007000000001d"
)
RECORDED_TCP6 = bytes.fromhex(
    "040100000001020001000000117800000a0000004c0001802c00018014000300fd77000000000000000000000000000214000400"
    "fd7700000000000000000000000001001c00028005000100060000000600020094a2000006000300005000004c0002802c000180"
    "14000300fd77000000000001000000000000000214000400fd7700000000000100000000000000011c0002800500010006000000"
    "060002001f9000000600030094a2000008000300000001be080008000000000008000c0076565feb08000b000000000108000700"
    "00000077300004802c0001800500010007000000050002000a000000050003000a00000006000400230000000600050027000000"
)
RECORDED_UDP6 = bytes.fromhex(
    "d40000000001020001000000117800000a0000004c0001802c00018014000300fd77000000000000000000000000000214000400"
    "fd7700000000000000000000000001001c000280050001001100000006000200caf3000006000300003500004c0002802c000180"
    "14000300fd77000000000001000000000000000214000400fd7700000000000100000000000000011c0002800500010011000000"
    "0600020014e9000006000300caf3000008000300000001ba080008000000000008000c00eb26cbbe08000b000000000108000700"
    "0000001d"
)

CT_NEW, CT_DELETE = 0x100, 0x102
SRC_NAT, DST_NAT, CONFIRMED = 0x10, 0x20, 0x8


class Side(NamedTuple):
    """One tuple of an entry."""

    src: bytes
    sport: int
    dst: bytes
    dport: int


def attribute(kind: int, value: bytes, nested: bool = False) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind | nested << 15) + value + bytes(-len(value) % 4)


def nest(kind: int, *values: bytes) -> bytes:
    return attribute(kind, b"".join(values), nested=True)


def side_attribute(kind: int, side: Side, proto: int, zone: int = 0) -> bytes:
    src, dst = (1, 2) if len(side.src) == 4 else (3, 4)
    parts = [
        nest(1, attribute(src, side.src), attribute(dst, side.dst)),
        nest(
            2,
            attribute(1, bytes((proto,))),
            attribute(2, side.sport.to_bytes(2, "big")),
            attribute(3, side.dport.to_bytes(2, "big")),
        ),
    ]
    if zone:
        parts.append(attribute(3, zone.to_bytes(2, "big")))
    return nest(kind, *parts)


def tcp_state(state: int) -> bytes:
    return nest(4, nest(1, attribute(1, bytes((state,)))))


def status_attribute(status: int) -> bytes:
    return attribute(3, status.to_bytes(4, "big"))


def message(family: int, *attributes: bytes, kind: int = CT_NEW, flags: int = 2) -> bytes:
    body = struct.pack(">BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def entry(
    original: Side, reply: Side, proto: int, status: int, *more: bytes, kind: int = CT_NEW, flags: int = 2
) -> bytes:
    """One entry as the kernel orders it; `more`: attributes behind the status."""
    return message(
        2 if len(original.src) == 4 else 10,
        side_attribute(1, original, proto),
        side_attribute(2, reply, proto),
        status_attribute(status),
        *more,
        kind=kind,
        flags=flags,
    )
