"""ctnetlink's messages, decoded: one conntrack entry each. Pure.

An entry is a tree of attributes. Walked one by one that takes 18 µs; but entries of one kind (length, family,
protocol) mostly have each attribute at the same place. So the first of a kind is walked, and the others are read with
one struct, where the headers of all those attributes are the same bytes.
Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.errors import Malformed
from pipeline.model.connection import Family, Proto
from pipeline.model.flow import Flow

# nlmsghdr and nfgenmsg.
HEADER_BYTES = 20

_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_REPLY = 2
_CTA_STATUS = 3
_CTA_PROTOINFO = 4
_CTA_ZONE = 18
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
_CTA_TUPLE_ZONE = 3
_CTA_PROTO_NUM = 1
_CTA_PROTO_SRC_PORT = 2
_CTA_PROTO_DST_PORT = 3
_CTA_PROTOINFO_TCP = 1
_CTA_PROTOINFO_TCP_STATE = 1
_TYPE_MASK = 0x3FFF

_ATTRIBUTE = struct.Struct("=HH")
_PORT = struct.Struct(">H")
_STATUS = struct.Struct(">I")
# CTA_IP_V4_SRC, _DST and CTA_IP_V6_SRC, _DST with the length of each.
_ADDRESSES = {Family.INET: (1, 2, 4), Family.INET6: (3, 4, 16)}
# Protocol, zone, ports and addresses of the original tuple.
_KEY_INET = struct.Struct(">BHHH4s4s").pack
_KEY_INET6 = struct.Struct(">BHHH16s16s").pack
_INET = int(Family.INET)
# Kinds remembered at most: each combination of optional attributes is one.
_MAX_LAYOUTS = 256

_new = tuple.__new__
_number = int.from_bytes


class _Tuple(NamedTuple):
    """Where the parts of one tuple are; `zone` is 0 where it has none."""

    src: int
    dst: int
    proto: int
    sport: int
    dport: int
    zone: int


class _Places(NamedTuple):
    """Where the parts of one entry are. `tcp_state` and `zone`: 0 where there is none. `headers`: of every attribute
    on the way to one of them."""

    original: _Tuple
    reply: _Tuple
    status: int
    tcp_state: int
    zone: int
    headers: list[int]


class _Layout(NamedTuple):
    """How to read all messages of one kind: those whose bytes, as one little-endian number, have these `headers`
    where `mask` has ones. `has_state`: the last field of `unpack` is the TCP state."""

    unpack: Callable[[bytes], tuple[Any, ...]]
    mask: int
    headers: int
    proto: int
    pack_key: Callable[..., bytes]
    has_state: bool


@dataclass
class FlowDecoder:
    """Remembers what kinds of messages look like. `malformed`: messages that did not decode, so far."""

    malformed: int = 0
    _layouts: dict[int, _Layout | None] = field(default_factory=dict)

    def decode(self, messages: Iterable[bytes], status: int = 0) -> list[Flow | None]:
        """The entry in each message (of any of ctnetlink's types, whole, header included), in the same order.

        None: neither TCP nor UDP, or without any bit of `status` where that is not 0, or malformed, which is counted.
        """
        flows: list[Flow | None] = []
        append = flows.append
        layouts = self._layouts
        for message in messages:
            try:
                family = message[16]
                # Not exact: the headers decide.
                kind = len(message) << 16 | family << 8 | message[52 if family == _INET else 76]
            except IndexError:
                kind = -1
            layout = layouts.get(kind)
            if layout is None or _number(message, "little") & layout[1] != layout[2]:
                append(self._walk(kind, message, status))
                continue
            unpack, _, _, proto, pack, has_state = layout
            # Written out for speed: to call a function for each entry costs as much as all of this.
            if has_state:
                src, dst, sport, dport, from_, to, from_port, to_port, bits, state = unpack(message)
            else:
                src, dst, sport, dport, from_, to, from_port, to_port, bits = unpack(message)
                state = None
            if not status or bits & status:
                append(_new(Flow, (
                    pack(proto, 0, sport, dport, src, dst), proto, family, src, sport, dst, dport,
                    from_, from_port, to, to_port, bits, state,
                )))  # fmt: skip
            else:
                append(None)
        return flows

    def _walk(self, kind: int, message: bytes, status: int) -> Flow | None:
        """Decodes an entry whose layout is not known, and learns the layout of the first of each kind."""
        try:
            if kind not in self._layouts and len(self._layouts) < _MAX_LAYOUTS:
                self._layouts[kind] = _learn(message)
            flow = decode_flow(message)
        except Malformed:
            self.malformed += 1
            return None
        return flow if flow is not None and (not status or flow.status & status) else None


def decode_flow(message: bytes) -> Flow | None:
    """The entry in one message, its attributes walked one by one; None for neither TCP nor UDP. Raises: Malformed."""
    places = _locate(message)
    if places is None:
        return None
    family = message[16]
    original, reply = places.original, places.reply
    proto = message[original.proto]
    size = _ADDRESSES[Family(family)][2]
    src, dst = message[original.src : original.src + size], message[original.dst : original.dst + size]
    sport, dport = _port(message, original.sport), _port(message, original.dport)
    zone_at = places.zone or original.zone
    zone = _port(message, zone_at) if zone_at else 0
    pack = _KEY_INET if family == _INET else _KEY_INET6
    return Flow(
        pack(proto, zone, sport, dport, src, dst),
        proto, family, src, sport, dst, dport,
        message[reply.src : reply.src + size], _port(message, reply.sport),
        message[reply.dst : reply.dst + size], _port(message, reply.dport),
        _STATUS.unpack_from(message, places.status)[0],
        message[places.tcp_state] if places.tcp_state else None,
    )  # fmt: skip


def _learn(message: bytes) -> _Layout | None:
    """The layout of messages like this one; None where it has a zone, or parts in an unusual order, or is neither TCP
    nor UDP. Raises: Malformed."""
    places = _locate(message)
    if places is None or places.zone or places.original.zone:
        return None
    family = message[16]
    size = _ADDRESSES[Family(family)][2]
    parts: list[tuple[int, str, int]] = []
    for one in (places.original, places.reply):
        parts += [
            (one.src, f"{size}s", size),
            (one.dst, f"{size}s", size),
            (one.sport, "H", 2),
            (one.dport, "H", 2),
        ]
    parts.append((places.status, "I", 4))
    if places.tcp_state:
        parts.append((places.tcp_state, "B", 1))
    text, at = ">", 0
    for offset, code, length in parts:
        if offset < at:
            return None
        text += f"{offset - at}x{code}"
        at = offset + length
    row = struct.Struct(f"{text}{len(message) - at}x")
    mask = bytearray(len(message))
    # The type, the family, both protocols, and each header.
    for offset in (4, 5, 16, places.original.proto, places.reply.proto):
        mask[offset] = 0xFF
    for offset in places.headers:
        mask[offset : offset + 4] = b"\xff\xff\xff\xff"
    wanted = int.from_bytes(mask, "little")
    headers = int.from_bytes(message, "little") & wanted
    pack_key = _KEY_INET if family == _INET else _KEY_INET6
    return _Layout(
        row.unpack, wanted, headers, message[places.original.proto], pack_key, places.tcp_state > 0
    )


def _locate(message: bytes) -> _Places | None:
    """Where everything is in one message; None for neither TCP nor UDP. Raises: Malformed."""
    if len(message) < HEADER_BYTES or message[16] not in _ADDRESSES:
        raise Malformed(f"conntrack: no entry of IPv4 or IPv6 in {len(message)} bytes")
    headers: list[int] = []
    top = _attributes(message, HEADER_BYTES, len(message))
    for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS):
        if kind not in top:
            raise Malformed(f"conntrack: an entry without attribute {kind}")
    original = _locate_tuple(message, top[_CTA_TUPLE_ORIG], headers)
    reply = _locate_tuple(message, top[_CTA_TUPLE_REPLY], headers)
    if original is None or reply is None:
        return None
    status = _sized(top[_CTA_STATUS], 4, headers)
    zone = _sized(top[_CTA_ZONE], 2, headers) if _CTA_ZONE in top else 0
    tcp_state = 0
    if message[original.proto] == Proto.TCP and _CTA_PROTOINFO in top:
        headers.append(top[_CTA_PROTOINFO][0] - 4)
        info = _attributes(message, *top[_CTA_PROTOINFO])
        if _CTA_PROTOINFO_TCP in info:
            headers.append(info[_CTA_PROTOINFO_TCP][0] - 4)
            tcp = _attributes(message, *info[_CTA_PROTOINFO_TCP])
            if _CTA_PROTOINFO_TCP_STATE in tcp:
                tcp_state = _sized(tcp[_CTA_PROTOINFO_TCP_STATE], 1, headers)
    return _Places(original, reply, status, tcp_state, zone, headers)


def _locate_tuple(message: bytes, span: tuple[int, int], headers: list[int]) -> _Tuple | None:
    """Where the parts of one tuple are; None for neither TCP nor UDP. Raises: Malformed."""
    headers.append(span[0] - 4)
    parts = _attributes(message, *span)
    src_kind, dst_kind, size = _ADDRESSES[Family(message[16])]
    try:
        headers += [parts[_CTA_TUPLE_IP][0] - 4, parts[_CTA_TUPLE_PROTO][0] - 4]
        addresses = _attributes(message, *parts[_CTA_TUPLE_IP])
        proto = _attributes(message, *parts[_CTA_TUPLE_PROTO])
        number = _sized(proto[_CTA_PROTO_NUM], 1, headers)
        if message[number] not in (Proto.TCP, Proto.UDP):
            return None
        return _Tuple(
            _sized(addresses[src_kind], size, headers),
            _sized(addresses[dst_kind], size, headers),
            number,
            _sized(proto[_CTA_PROTO_SRC_PORT], 2, headers),
            _sized(proto[_CTA_PROTO_DST_PORT], 2, headers),
            _sized(parts[_CTA_TUPLE_ZONE], 2, headers) if _CTA_TUPLE_ZONE in parts else 0,
        )
    except KeyError as error:
        raise Malformed(f"conntrack: a tuple without attribute {error}") from None


def _attributes(message: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Type -> where its value begins and ends, of the attributes side by side. Raises: Malformed."""
    found: dict[int, tuple[int, int]] = {}
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, start)
        if length < 4 or start + length > end:
            raise Malformed(f"conntrack: attribute of {length} bytes at {start} of {end}")
        found[kind & _TYPE_MASK] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found


def _sized(span: tuple[int, int], size: int, headers: list[int]) -> int:
    """Where a value of `size` bytes begins. Raises: Malformed for another size."""
    if span[1] - span[0] != size:
        raise Malformed(f"conntrack: attribute of {span[1] - span[0]} bytes at {span[0]}, expected {size}")
    headers.append(span[0] - 4)
    return span[0]


def _port(message: bytes, offset: int) -> int:
    number: int = _PORT.unpack_from(message, offset)[0]
    return number
