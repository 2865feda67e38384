"""rtnetlink: the IP addresses of a namespace. Source: include/uapi/linux/if_addr.h, inet_dump_ifaddr()."""

from __future__ import annotations

import itertools
import os
import struct
import sys

from pipeline.errors import Malformed, Unsupported
from pipeline.kernel.enter import inside
from pipeline.netlink.nsid import open_route

_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_HEADER = struct.Struct("=IHHII")
# struct ifaddrmsg: family, prefix length, flags, scope, index.
_ADDRESS_BYTES = 8
_RECEIVE_BYTES = 65536

_sequences = itertools.count(1)


def read_addresses(netns_fd: int | None = None) -> frozenset[bytes]:
    """All addresses of the namespace of `netns_fd` (None: the caller's own), 4 or 16 bytes each, from outside it.

    Nothing is left open in it. Raises: Denied (CAP_SYS_ADMIN to enter), Unsupported, Malformed.
    """
    if netns_fd is None:
        route = open_route()
    else:
        with inside(netns_fd):
            route = open_route()
    with route:
        sequence = next(_sequences) & 0xFFFFFFFF
        length = _HEADER.size + _ADDRESS_BYTES
        route.send(
            _HEADER.pack(length, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, sequence, 0) + bytes(_ADDRESS_BYTES)
        )
        found: set[bytes] = set()
        done = False
        while not done:
            addresses, done = decode_addresses(route.recv(_RECEIVE_BYTES))
            found.update(addresses)
    return frozenset(found)


def decode_addresses(buffer: bytes) -> tuple[list[bytes], bool]:
    """The addresses in one read of a dump, and whether it was the last. Raises: Malformed, Unsupported for
    an error of the kernel. Pure."""
    found: list[bytes] = []
    offset = 0
    while offset < len(buffer):
        length, kind = _header(buffer, offset, len(buffer))
        if kind == _NLMSG_ERROR:
            number = -int.from_bytes(buffer[offset + 16 : offset + 20], sys.byteorder, signed=True)
            raise Unsupported(f"RTM_GETADDR: {os.strerror(number)}")
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _RTM_NEWADDR:
            address = _address_of(buffer, offset + _HEADER.size + _ADDRESS_BYTES, offset + length)
            if address is not None:
                found.append(address)
        offset += (length + 3) & ~3
    return found, False


def _header(buffer: bytes, offset: int, end: int) -> tuple[int, int]:
    if end - offset < _HEADER.size:
        raise Malformed(f"rtnetlink: {end - offset} bytes at {offset} are no message")
    length, kind, *_ = _HEADER.unpack_from(buffer, offset)
    if length < _HEADER.size or offset + length > end:
        raise Malformed(f"rtnetlink: message of {length} bytes at {offset} of {end}")
    return length, kind


def _address_of(buffer: bytes, offset: int, end: int) -> bytes | None:
    found: dict[int, bytes] = {}
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", buffer, offset)
        if length < 4 or offset + length > end:
            raise Malformed(f"rtnetlink: attribute of {length} bytes at {offset} of {end}")
        found[kind] = buffer[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    # On a point-to-point device IFA_ADDRESS is the peer's.
    address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if address is not None and len(address) not in (4, 16):
        raise Malformed(f"rtnetlink: an address of {len(address)} bytes")
    return address
