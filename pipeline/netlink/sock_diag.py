"""sock_diag: a namespace's TCP and UDP sockets by netlink, decoded by hand (pyroute2 takes 50 times as long).

A socket opened here stays bound to the namespace it was opened in, and pins it: dump, close.
Source: include/uapi/linux/inet_diag.h, net/ipv4/inet_diag.c, net/core/sock_diag.c.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import itertools
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from pipeline.errors import Denied, Malformed, Unsupported
from pipeline.kernel.enter import inside
from pipeline.model.connection import Family, Proto
from pipeline.model.socket_row import SocketRow
from pipeline.model.traffic import NO_FIGURES, Figures
from pipeline.netlink.tcp_info import EXTENSION, decode_traffic

MAX_DUMP_ATTEMPTS = 3

_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK = 18
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST_DUMP = 0x301
_NLM_F_DUMP_INTR = 0x10
_SO_NETNS_COOKIE = 71
_SIOCGIFNAME = 0x8910

# Every state of TCP but BOUND_INACTIVE (bit 13): asking for it makes the kernel walk its bind table as well.
_STATES = 0x1FFE

_HEADER = struct.Struct("=IHHII")
_HEADER_BYTES = 16
# struct inet_diag_msg behind its header: what is between is timer, retrans; expires, rqueue, wqueue.
_MESSAGE = "=16xBB2x2s2s16s16sIQ12xII"
_MESSAGE_BYTES = 88
# The kernel fills at most 32 kB per read of a dump.
_RECEIVE_BYTES = 65536
# How far ahead to look for messages of equal length: more costs too much where lengths alternate.
_MAX_RUN = 256

_sequences = itertools.count(1)


class Dump(NamedTuple):
    """`interrupted`: the table changed under each attempt so that rows may be missing or doubled. `traffic`: by the
    sockets' cookies, where it was asked for."""

    rows: list[SocketRow]
    interrupted: bool
    traffic: Mapping[int, Figures] = NO_FIGURES


class Decoded(NamedTuple):
    """One buffer of a dump. `done`: it held the last message. `error`: errno of an error message, or 0."""

    rows: list[SocketRow]
    done: bool
    interrupted: bool
    error: int


def open_diag(netns_fd: int | None = None) -> socket.socket:
    """A sock_diag socket bound to the namespace of `netns_fd` (None: the caller's own), from outside it.

    The caller closes it. Raises: Denied (CAP_SYS_ADMIN to enter), Unsupported.
    """
    if netns_fd is None:
        return _socket()
    with inside(netns_fd):
        return _socket()


def netns_cookie(sock: socket.socket) -> int | None:
    """The cookie of the socket's namespace, never used again until reboot; None before Linux 5.14."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return None


def interface_name(sock: socket.socket, ifindex: int) -> str | None:
    """The name of an interface of the socket's namespace; None where it is gone. Source: netdevice(7)."""
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFNAME, struct.pack("=16xi20x", ifindex))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise
        return None
    return answer[:16].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def dump_tcp(sock: socket.socket, *, traffic: bool = False) -> Dump:
    """All TCP sockets of the namespace, IPv4 and IPv6 in one pass, in hash order. MPTCP's own are not there.
    `traffic`: with what they have carried, for half as much again.

    Raises: Unsupported (no inet_diag here), Denied, Malformed.
    """
    # struct inet_diag_req: family, two lengths, extensions, sockid, states, dbs. This old request type ignores the
    # family.
    request = struct.pack("=3xB48xII", EXTENSION if traffic else 0, _STATES, 0)
    return _dump(sock, _TCPDIAG_GETSOCK, [request], {} if traffic else None)


def dump_udp(sock: socket.socket) -> Dump:
    """All UDP sockets of the namespace, IPv4's then IPv6's; unbound ones are in no table.

    Raises: Unsupported (no udp_diag here), Denied, Malformed.
    """
    # struct inet_diag_req_v2: family, protocol, two bytes, states, sockid.
    families = (Family.INET, Family.INET6)
    return _dump(
        sock,
        _SOCK_DIAG_BY_FAMILY,
        [struct.pack("=BB2xI48x", family, Proto.UDP, _STATES) for family in families],
    )


def decode_dump(buffer: bytes, traffic: dict[int, Figures] | None = None) -> Decoded:
    """The messages of one read of a dump; what the sockets have carried goes into `traffic`. Raises: Malformed. Pure.

    Messages carry attributes, whose number depends on the socket, so lengths differ; messages of the same kind
    stand together, though, and a run of equal lengths decodes in one C loop.
    """
    rows: list[SocketRow] = []
    interrupted = False
    offset = 0
    while offset < len(buffer):
        if len(buffer) - offset < _HEADER_BYTES:
            raise Malformed(f"sock_diag: {len(buffer) - offset} stray bytes at {offset} of {len(buffer)}")
        length, kind, flags, _, _ = _HEADER.unpack_from(buffer, offset)
        if length < _HEADER_BYTES or offset + length > len(buffer):
            raise Malformed(f"sock_diag: message of {length} bytes at {offset} of {len(buffer)}")
        interrupted |= bool(flags & _NLM_F_DUMP_INTR)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR):
            return Decoded(rows, True, interrupted, _error_number(buffer, offset, length))
        if kind in (_TCPDIAG_GETSOCK, _SOCK_DIAG_BY_FAMILY):
            if length < _MESSAGE_BYTES or length & 3:
                raise Malformed(f"sock_diag: socket message of {length} bytes at {offset}")
            end = offset + length * _run_length(buffer, offset, length)
            run = buffer[offset:end]
            rows += _row_struct(length).iter_unpack(run)
            if traffic is not None:
                traffic.update(decode_traffic(run, length))
            offset = end
        else:
            offset += (length + 3) & ~3
    return Decoded(rows, False, interrupted, 0)


def _run_length(buffer: bytes, offset: int, stride: int) -> int:
    """How many messages from `offset` on have the same length, type and flags as the first; at least 1.

    Compares the first 8 bytes of the headers column by column with strided slices: by induction, as long as each
    one's length is `stride`, the next one stands where the slice looks.
    """
    stop = min(len(buffer), offset + stride * _MAX_RUN)
    run = (stop - offset) // stride
    for column in range(8):
        same = buffer[offset + column : stop : stride][:run]
        run = len(same) - len(same.lstrip(same[:1]))
    return run


@functools.lru_cache(maxsize=64)
def _row_struct(stride: int) -> struct.Struct:
    """Decodes one message of `stride` bytes, attributes skipped, into a SocketRow."""
    return struct.Struct(f"{_MESSAGE}{stride - _MESSAGE_BYTES}x")


def _error_number(buffer: bytes, offset: int, length: int) -> int:
    """The errno in an NLMSG_ERROR or NLMSG_DONE (there: how the dump ended), as a positive number or 0."""
    if length < _HEADER_BYTES + 4:
        return 0
    code: int = struct.unpack_from("=i", buffer, offset + _HEADER_BYTES)[0]
    return -code if code < 0 else 0


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        _raise_sorted(error)


def _dump(
    sock: socket.socket, kind: int, requests: list[bytes], traffic: dict[int, Figures] | None = None
) -> Dump:
    """The rows of one dump per request, together repeated while interrupted, up to MAX_DUMP_ATTEMPTS times."""
    for _ in range(MAX_DUMP_ATTEMPTS):
        rows: list[SocketRow] = []
        interrupted = False
        for request in requests:
            interrupted |= _dump_once(sock, kind, request, rows, traffic)
        if not interrupted:
            break
    return Dump(rows, interrupted, traffic or NO_FIGURES)


def _dump_once(
    sock: socket.socket, kind: int, request: bytes, rows: list[SocketRow], traffic: dict[int, Figures] | None
) -> bool:
    """Appends the rows of one dump; whether it was interrupted."""
    sequence = next(_sequences) & 0xFFFFFFFF
    header = _HEADER.pack(_HEADER_BYTES + len(request), kind, _NLM_F_REQUEST_DUMP, sequence, 0)
    sock.send(header + request)
    interrupted = False
    while True:
        buffer = sock.recv(_RECEIVE_BYTES)
        if buffer[8:12] != header[8:12]:
            # The rest of an earlier dump that was given up half-way; one read never mixes two dumps.
            continue
        decoded = decode_dump(buffer, traffic)
        rows += decoded.rows
        interrupted |= decoded.interrupted
        if decoded.error:
            _raise_sorted(OSError(decoded.error, os.strerror(decoded.error)))
        if decoded.done:
            return interrupted


def _raise_sorted(error: OSError) -> NoReturn:
    """Raises the error of ours that fits; what says nothing of the feature or our rights passes as it is."""
    if error.errno in (errno.EPERM, errno.EACCES):
        raise Denied(f"sock_diag: {error.strerror}", "CAP_NET_ADMIN") from None
    # ENOENT is how sock_diag says that it has no handler for a protocol, and could not load the module.
    if error.errno in (
        errno.ENOENT,
        errno.EOPNOTSUPP,
        errno.EPROTONOSUPPORT,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
    ):
        raise Unsupported(f"sock_diag: {error.strerror}") from None
    raise error
