"""ctnetlink: how many connections a namespace tracks, and those of them that are translated.

A socket opened here stays bound to the namespace it was opened in, and pins it: ask, close.
Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from pipeline.errors import Denied, Malformed, Unsupported
from pipeline.kernel.enter import inside
from pipeline.model.flow import Flow, FlowStatus
from pipeline.netlink.conntrack_message import FlowDecoder

MAX_DUMP_ATTEMPTS = 3
TRANSLATED = int(FlowStatus.SRC_NAT | FlowStatus.DST_NAT)

NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_CT_NEW = _SUBSYSTEM | 0
_CT_GET = _SUBSYSTEM | 1
_CT_GET_STATS = _SUBSYSTEM | 5
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_REQUEST_DUMP = 0x301
_NLM_F_DUMP_INTR = 0x10
_CTA_STATUS = 3
_CTA_STATUS_MASK = 26
_CTA_STATS_GLOBAL_ENTRIES = 1

_HEADER = struct.Struct("=IHHII")
_HEADER_BYTES = 16
_HEAD = struct.Struct("=IHH").unpack_from
# struct nfgenmsg: any family, version, resource.
_GENERIC = bytes(4)
_RECEIVE_BYTES = 65536
# All namespaces share one table, so a dump of any costs 9 ms with 262,144 buckets, and each entry 3 µs beside it. With
# so many that are not translated, two dumps of only those that are cost less than one of all.
_FILTER_FROM_UNTRANSLATED = 4096

_sequences = itertools.count(1)


class FlowDump(NamedTuple):
    """`interrupted`: the table was resized under each attempt, so that flows may be missing or doubled."""

    flows: list[Flow]
    interrupted: bool


class Split(NamedTuple):
    """The messages of one read of a dump, without those that only end it. `error`: errno of the end, or 0."""

    messages: list[bytes]
    done: bool
    interrupted: bool
    error: int


def open_conntrack(netns_fd: int | None = None) -> socket.socket:
    """A ctnetlink socket bound to the namespace of `netns_fd` (None: the caller's own), from outside it.

    The caller closes it. Raises: Denied (CAP_SYS_ADMIN to enter), Unsupported (no nfnetlink).
    """
    if netns_fd is None:
        return open_netfilter()
    with inside(netns_fd):
        return open_netfilter()


def open_netfilter() -> socket.socket:
    """An nfnetlink socket in the namespace that the calling thread is in. Raises: Denied, Unsupported."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise_sorted(error)


def count_entries(sock: socket.socket) -> int:
    """How many connections, translated or not, the namespace of `sock` tracks: one number that the kernel keeps.

    Where ctnetlink is a module and not loaded, the kernel loads it on this question.
    Raises: Denied (CAP_NET_ADMIN), Unsupported (no ctnetlink), Malformed.
    """
    sequence = _ask(sock, _CT_GET_STATS, _NLM_F_REQUEST, b"")
    while True:
        buffer = sock.recv(_RECEIVE_BYTES)
        if buffer[8:12] == sequence:
            break
    length, kind, _ = _HEAD(buffer)
    if kind == _NLMSG_ERROR:
        _raise_number(_error_number(buffer, 0, length))
    if kind != _CT_GET_STATS or len(buffer) < 28:
        raise Malformed(f"conntrack: an answer of type {kind:#x} and {len(buffer)} bytes to GET_STATS")
    size, attribute = struct.unpack_from("=HH", buffer, 20)
    if (size, attribute) != (8, _CTA_STATS_GLOBAL_ENTRIES):
        raise Malformed(f"conntrack: attribute {attribute} of {size} bytes in GET_STATS")
    return int.from_bytes(buffer[24:28], "big")


def dump_translated(sock: socket.socket, decoder: FlowDecoder, untranslated: int) -> FlowDump:
    """The namespace's translated flows, TCP and UDP, IPv4 and IPv6, in no order, each once.

    Args: untranslated: about how many entries there are beside them, which decides how to ask.
    Raises: Denied (CAP_NET_ADMIN), Unsupported (no ctnetlink), Malformed.
    """
    for _ in range(MAX_DUMP_ATTEMPTS):
        if untranslated < _FILTER_FROM_UNTRANSLATED:
            flows, interrupted = _dump_once(sock, decoder, b"")
        else:
            flows, interrupted = _dump_filtered(sock, decoder)
        if not interrupted:
            break
    return FlowDump(list(flows.values()), interrupted)


def split_dump(buffer: bytes) -> Split:
    """Cuts one read of a dump into its messages. Raises: Malformed. Pure."""
    messages: list[bytes] = []
    interrupted = False
    offset, end = 0, len(buffer)
    while offset < end:
        try:
            length, kind, flags = _HEAD(buffer, offset)
        except struct.error:
            raise Malformed(f"conntrack: {end - offset} bytes at {offset} are no message") from None
        if length < _HEADER_BYTES or offset + length > end:
            raise Malformed(f"conntrack: message of {length} bytes at {offset} of {end}")
        if flags & _NLM_F_DUMP_INTR:
            interrupted = True
        if kind == _CT_NEW:
            messages.append(buffer[offset : offset + length])
        elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
            return Split(messages, True, interrupted, _error_number(buffer, offset, length))
        offset += (length + 3) & ~3
    return Split(messages, False, interrupted, 0)


def raise_sorted(error: OSError) -> NoReturn:
    """Raises the error of ours that fits; what says nothing of the feature or our rights passes as it is."""
    if error.errno in (errno.EPERM, errno.EACCES):
        raise Denied(f"conntrack: {error.strerror}", "CAP_NET_ADMIN") from None
    # EINVAL is how nfnetlink says that it has no ctnetlink, and could not load the module.
    if error.errno in (
        errno.EINVAL,
        errno.EOPNOTSUPP,
        errno.EPROTONOSUPPORT,
        errno.EAFNOSUPPORT,
        errno.ENOENT,
    ):
        raise Unsupported(f"conntrack: {error.strerror}") from None
    raise error


def _dump_filtered(sock: socket.socket, decoder: FlowDecoder) -> tuple[dict[bytes, Flow], bool]:
    """As _dump_once, of what has its source translated, then of what has only its destination translated: the filter
    knows one value under one mask. A kernel that knows no filter gives all the first time."""
    source = int(FlowStatus.SRC_NAT)
    flows, interrupted = _dump_once(sock, decoder, _status_filter(source, source))
    if all(flow.status & source for flow in flows.values()):
        others, again = _dump_once(sock, decoder, _status_filter(int(FlowStatus.DST_NAT), TRANSLATED))
        return flows | others, interrupted or again
    return flows, interrupted


def _status_filter(value: int, mask: int) -> bytes:
    def attribute(kind: int, number: int) -> bytes:
        return struct.pack("=HH", 8, kind) + number.to_bytes(4, "big")

    return attribute(_CTA_STATUS, value) + attribute(_CTA_STATUS_MASK, mask)


def _dump_once(
    sock: socket.socket, decoder: FlowDecoder, attributes: bytes
) -> tuple[dict[bytes, Flow], bool]:
    """The flows of one dump by key, and whether it was interrupted."""
    flows: dict[bytes, Flow] = {}
    interrupted = False
    for split in _read_dump(sock, attributes):
        interrupted |= split.interrupted
        for flow in decoder.decode(split.messages, TRANSLATED):
            if flow is not None:
                flows[flow[0]] = flow
    return flows, interrupted


def _read_dump(sock: socket.socket, attributes: bytes) -> Iterator[Split]:
    sequence = _ask(sock, _CT_GET, _NLM_F_REQUEST_DUMP, attributes)
    done = False
    while not done:
        buffer = sock.recv(_RECEIVE_BYTES)
        if buffer[8:12] != sequence:
            # The rest of an earlier dump that was given up half-way; one read never mixes two dumps.
            continue
        split = split_dump(buffer)
        if split.error:
            _raise_number(split.error)
        yield split
        done = split.done


def _ask(sock: socket.socket, kind: int, flags: int, attributes: bytes) -> bytes:
    """Sends one request; returns its sequence number as the answers have it."""
    sequence = next(_sequences) & 0xFFFFFFFF
    length = _HEADER_BYTES + len(_GENERIC) + len(attributes)
    header = _HEADER.pack(length, kind, flags, sequence, 0)
    sock.send(header + _GENERIC + attributes)
    return header[8:12]


def _error_number(buffer: bytes, offset: int, length: int) -> int:
    """The errno in an NLMSG_ERROR or NLMSG_DONE (there: how the dump ended), as a positive number or 0."""
    if length < _HEADER_BYTES + 4:
        return 0
    code: int = struct.unpack_from("=i", buffer, offset + _HEADER_BYTES)[0]
    return -code if code < 0 else 0


def _raise_number(number: int) -> NoReturn:
    raise_sorted(OSError(number, os.strerror(number)))
