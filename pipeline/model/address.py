"""IP addresses as the tables give them (4 or 16 bytes, network order), as text, and as one sortable form."""

from __future__ import annotations

import socket
from functools import lru_cache

V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


def mapped(address: bytes) -> bytes:
    """The 16-byte form: IPv4 as ::ffff:a.b.c.d, so that both families sort and compare in one column."""
    return V4_MAPPED_PREFIX + address if len(address) == 4 else address


@lru_cache(maxsize=65536)
def address_text(address: bytes) -> str:
    """The numeric text of an address; a v4-mapped one as plain IPv4. Raises: ValueError unless 4 or 16 bytes."""
    if address.startswith(V4_MAPPED_PREFIX) and len(address) == 16:
        address = address[12:]
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
