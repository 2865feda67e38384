"""Which namespaces have which addresses, for what is sent to a socket that is bound to none: table `address`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from pipeline.model.address import V4_MAPPED_PREFIX, address_text, mapped

# Loopback and link-local ones: every namespace has them.
_LOCAL = (V4_MAPPED_PREFIX + b"\x7f", bytes(15) + b"\x01", V4_MAPPED_PREFIX + b"\xa9\xfe", b"\xfe\x80")


def write_addresses(database: sqlite3.Connection, netns: int, addresses: Iterable[bytes]) -> set[bytes]:
    """Makes these all of a namespace's; returns those that came or went. Raises: ValueError for a wrong length."""
    wanted = set()
    for address in addresses:
        address_text(address)
        if not mapped(address).startswith(_LOCAL):
            wanted.add(mapped(address))
    stored = {ip for (ip,) in database.execute("SELECT ip FROM address WHERE netns = ?", (netns,))}
    gone, come = stored - wanted, wanted - stored
    database.executemany("DELETE FROM address WHERE ip = ? AND netns = ?", ((ip, netns) for ip in gone))
    database.executemany("INSERT INTO address VALUES (?, ?)", ((ip, netns) for ip in come))
    return gone | come
