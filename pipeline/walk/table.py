"""A namespace's socket tables as a set, and what changed between two readings. Pure.

Rows are compared raw, as the kernel sent them: two sets of tuples are subtracted at C speed and only the
difference is converted. A steady namespace of 1,000 sockets costs its dump and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.model.connection import Connection, SocketKey
from pipeline.model.socket_row import SocketRow, socket_key, to_connection
from pipeline.model.traffic import NO_FIGURES, Figures


class Reading(NamedTuple):
    """One reading of all tables. `rows` by protocol number; `source`: sock_diag or proc. `traffic`: by the cookies of
    the TCP sockets, where the source was asked for it. `addresses`: the namespace's own, 4 or 16 bytes each; None
    where they were not read."""

    source: str
    cookie: int | None
    rows: Mapping[int, Iterable[SocketRow]]
    devices: Mapping[int, str]
    interrupted: int
    malformed: int
    traffic: Mapping[int, Figures] = NO_FIGURES
    addresses: frozenset[bytes] | None = None


class TableChange(NamedTuple):
    changed: list[Connection]
    gone: list[SocketKey]


class ConnectionTable:
    """The latest rows of one namespace and the identity each was published under.

    `inodes`: those of all rows, without 0. `has_waiting`: whether there are rows with that: connections that nobody
    accepted yet, or that are being closed.
    """

    def __init__(self) -> None:
        self._rows: dict[int, set[SocketRow]] = {}
        # Natural key -> the key the socket was first published under; only where the two differ, which
        # happens when the source of the tables changed while the socket lived.
        self._alias: dict[SocketKey, SocketKey] = {}
        self._source: str | None = None
        self._devices: dict[int, str] = {}
        self._left: set[int] = set()
        self.inodes: set[int] = set()
        self.has_waiting = False

    def update(self, reading: Reading) -> TableChange:
        """Takes a reading; returns rows added or changed, and the keys of those gone."""
        if self._source not in (None, reading.source):
            self._keep_identities(reading)
        self._source = reading.source
        self._devices.update(reading.devices)
        changed: dict[SocketKey, Connection] = {}
        gone: set[SocketKey] = set()
        for proto, rows in reading.rows.items():
            fresh = set(rows)
            before = self._rows.get(proto, set())
            for row in before - fresh:
                gone.add(self._key(proto, row))
            for row in fresh - before:
                connection = self._connection(proto, row)
                changed[connection.key] = connection
            self._rows[proto] = fresh
        gone -= changed.keys()
        if self._alias:
            self._alias = {natural: key for natural, key in self._alias.items() if key not in gone}
        if changed or gone:
            before_inodes = self.inodes
            self.inodes = {row[9] for rows in self._rows.values() for row in rows}
            self.has_waiting = 0 in self.inodes
            self.inodes.discard(0)
            self._left |= before_inodes - self.inodes
        return TableChange(list(changed.values()), list(gone))

    def connections(self) -> list[Connection]:
        """Every row, for a base."""
        return [self._connection(proto, row) for proto, rows in self._rows.items() for row in rows]

    def key_of(self, cookie: int) -> SocketKey:
        """What the socket of this cookie is published under."""
        return self._alias.get(cookie, cookie)

    def take_left(self) -> set[int]:
        """Inodes that left the tables since the last call."""
        left, self._left = self._left - self.inodes, set()
        return left

    def uids_of(self, inodes: set[int]) -> set[int]:
        """The owners' uids of those sockets, a hint where to look for their holders."""
        return {row[8] for rows in self._rows.values() for row in rows if row[9] in inodes}

    def _key(self, proto: int, row: SocketRow) -> SocketKey:
        natural = socket_key(row, proto)
        return self._alias.get(natural, natural) if self._alias else natural

    def _connection(self, proto: int, row: SocketRow) -> Connection:
        device = self._devices.get(row[6]) if row[6] else None
        return to_connection(row, proto, self._key(proto, row), device)

    def _keep_identities(self, reading: Reading) -> None:
        """Gives sockets seen by both sources the key they have already: by inode; without one, by their tuple.

        A tuple alone is no identity: several listeners share one with SO_REUSEPORT, and the next connection may
        get that of a closed one. Rows are sent anew all the same, since one source knows cookies and devices.
        """
        by_inode: dict[int, SocketKey] = {}
        by_tuple: dict[tuple[object, ...], SocketKey] = {}
        for proto, rows in self._rows.items():
            for row in rows:
                by_inode[row[9]] = by_tuple[_tuple_of(proto, row)] = self._key(proto, row)
        # The aliases of the source before stay: sockets that are not in the reading go by their key, too.
        for proto, fresh in reading.rows.items():
            for row in fresh:
                # Popped: no two rows are given one key.
                known = by_inode.get(row[9]) if row[9] else by_tuple.pop(_tuple_of(proto, row), None)
                natural = socket_key(row, proto)
                self._alias.pop(natural, None)
                if known is not None and known != natural:
                    self._alias[natural] = known


def _tuple_of(proto: int, row: SocketRow) -> tuple[object, ...]:
    """Protocol, family, ports and addresses: all that both sources tell of a socket without inode."""
    return (proto, row[0], *row[2:6])
