"""Connections that ended a moment ago: table `ended`, the contract's view `closed`. Bounded in time and in number.

Where events tell of every end (eBPF) rows come from there. Elsewhere a connection counts as ended when a look shows it
no more, or as TIME_WAIT; then its times are those of looks, and only what had a known owner is worth a row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.model.address import address_text, mapped
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import FAMILY_NAMES, PROTO_NAMES, SocketKey
from pipeline.store.schema import WALL_OFFSET, Table

# The source whose worker tells of ends by itself.
TELLS = "ebpf"

CLOSED_TABLES = """
-- `key`: that of the connection's row, as text. `seq`: the commit that the row came with. `source`: ebpf, or how the
-- tables were read of which it was missing.
CREATE TABLE ended(
  id INTEGER PRIMARY KEY, netns INTEGER NOT NULL, key TEXT NOT NULL, netns_cookie INTEGER, netns_name TEXT,
  proto TEXT, family TEXT, local_addr TEXT, local_port INTEGER, remote_addr TEXT, remote_port INTEGER,
  local_ip BLOB, remote_ip BLOB, cookie INTEGER, uid INTEGER, direction TEXT,
  pid INTEGER, start_ticks INTEGER, comm TEXT, container TEXT, opened_at_s REAL, closed_at_s REAL NOT NULL,
  bytes_sent INTEGER, bytes_received INTEGER, refused INTEGER, source TEXT, seq INTEGER NOT NULL);
CREATE UNIQUE INDEX ended_key ON ended(netns, key, closed_at_s);
CREATE INDEX ended_closed ON ended(closed_at_s);
CREATE INDEX ended_seq ON ended(seq, netns);
"""
CLOSED = Table(
    {
        "netns": "c.netns",
        "netns_cookie": "c.netns_cookie",
        "netns_name": "c.netns_name",
        "proto": "c.proto",
        "family": "c.family",
        "state": "'CLOSE'",
        "local_addr": "c.local_addr",
        "local_port": "c.local_port",
        "remote_addr": "c.remote_addr",
        "remote_port": "c.remote_port",
        "cookie": "c.cookie",
        "uid": "c.uid",
        "direction": "c.direction",
        "owner_role": "iif(c.pid IS NULL, NULL, 'last')",
        "pid": "c.pid",
        "start_ticks": "c.start_ticks",
        "comm": "c.comm",
        "container": "c.container",
        "opened_at": f"c.opened_at_s + {WALL_OFFSET}",
        "closed_at": f"c.closed_at_s + {WALL_OFFSET}",
        "duration_s": "c.closed_at_s - c.opened_at_s",
        "bytes_sent": "c.bytes_sent",
        "bytes_received": "c.bytes_received",
        "refused": "c.refused",
        "source": "c.source",
        "key": "c.key",
    },
    "ended c",
    "ended c",
)

_SHOWN = ", ".join(f"{sql} AS {column}" for column, sql in CLOSED.columns.items())
CLOSED_VIEW = f"CREATE VIEW closed AS SELECT {_SHOWN} FROM {CLOSED.source};"

_COLUMNS = (
    "netns", "key", "netns_cookie", "netns_name", "proto", "family", "local_addr", "local_port", "remote_addr",
    "remote_port", "local_ip", "remote_ip", "cookie", "uid", "direction", "pid", "start_ticks", "comm", "container",
    "opened_at_s", "closed_at_s", "bytes_sent", "bytes_received", "refused", "source", "seq",
)  # fmt: skip
_INTO = f"INSERT INTO ended({', '.join(_COLUMNS)})"
_INSERT = f"{_INTO} VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
# Who owned the row c, now or last; whoever only listens for it never did.
_OWNED = "(c.owner_role IN ('holder', 'last') OR c.owner_role IS NULL AND c.last_pid NOT NULL)"
_OWNER = """
coalesce(c.pid, c.last_pid), coalesce(c.start_ticks, c.last_start_ticks),
iif(c.owner_role = 'holder', p.comm, c.last_comm), iif(c.owner_role = 'holder', p.container, c.last_container)"""
_WITH_PROCESS = "LEFT JOIN process p ON p.pid = c.pid AND p.start_ticks = c.start_ticks AND p.shown"
_STORED = f"""
SELECT c.direction, {_OWNER} FROM connection c {_WITH_PROCESS} WHERE c.netns = ? AND c.key = ? AND {_OWNED}"""
_LEAVING = f"""
{_INTO} SELECT c.netns, CASE typeof(c.key) WHEN 'blob' THEN lower(hex(c.key)) ELSE CAST(c.key AS TEXT) END,
  n.cookie, n.name, c.proto, c.family, c.local_addr, c.local_port, c.remote_addr, c.remote_port, c.local_ip,
  c.remote_ip, c.cookie, c.uid, c.direction, {_OWNER}, c.first_seen_s, ?, NULL, NULL, NULL, ?, ?
FROM connection c JOIN namespace n ON n.netns = c.netns {_WITH_PROCESS}
WHERE c.netns = ? AND c.key = ? AND {_OWNED} AND c.state NOT IN ('LISTEN', 'TIME_WAIT', 'CLOSE', 'UNCONN')
ON CONFLICT DO NOTHING"""
_EXPIRE = "DELETE FROM ended WHERE closed_at_s < ?"
_CUT = "DELETE FROM ended WHERE id <= (SELECT max(id) FROM ended) - ?"


class Limits(NamedTuple):
    """How long an ended connection is remembered, and how many are at most: `[closed]`."""

    retention_s: float
    max_rows: int


@dataclass(slots=True)
class Ended:
    """Writes within the transaction of commit `seq`, at `now_s`; before the rows that it speaks of are written over.

    `netns`: the namespaces in which something ended.
    """

    database: sqlite3.Connection
    seq: int
    now_s: float
    limits: Limits
    netns: set[int] = field(default_factory=set)

    def note_told(self, netns: int, netns_cookie: int | None, rows: Iterable[ClosedConnection]) -> None:
        """What a worker was told of by events; rows that are known already are passed over."""
        oldest_s = self.now_s - self.limits.retention_s
        fresh = [row for row in map(ClosedConnection._make, rows) if row.closed_at_s >= oldest_s]
        if not fresh:
            return
        found = self.database.execute("SELECT name FROM namespace WHERE netns = ?", (netns,)).fetchone()
        name = found[0] if found else None
        before = self.database.total_changes
        self.database.executemany(
            _INSERT, (self._values(netns, netns_cookie, name, row) for row in fresh[-self.limits.max_rows :])
        )
        self._note(netns, before)

    def note_leaving(self, netns: int, keys: Iterable[SocketKey], seen_s: float, source: str) -> None:
        """Rows of a namespace that the look at `seen_s` showed no more, or as TIME_WAIT."""
        before = self.database.total_changes
        self.database.executemany(_LEAVING, ((seen_s, source, self.seq, netns, key) for key in keys))
        self._note(netns, before)

    def tidy(self) -> None:
        """Drops what is too old or too much."""
        self.database.execute(_EXPIRE, (self.now_s - self.limits.retention_s,))
        self.database.execute(_CUT, (self.limits.max_rows,))

    def _note(self, netns: int, before: int) -> None:
        if self.database.total_changes != before:
            self.netns.add(netns)

    def _values(
        self, netns: int, netns_cookie: int | None, name: str | None, row: ClosedConnection
    ) -> tuple[Any, ...]:
        direction, owner = row.direction, (row.pid, row.start_ticks, row.comm, row.container)
        if row.pid is None or direction == "unknown":
            stored = self.database.execute(_STORED, (netns, row.cookie)).fetchone()
            if stored is not None:
                direction = stored[0] if direction == "unknown" else direction
                owner = stored[1:] if row.pid is None else owner
        return (
            netns, str(row.cookie), netns_cookie, name, PROTO_NAMES.get(row.proto) or str(row.proto),
            FAMILY_NAMES.get(row.family) or str(row.family), address_text(row.local_addr), row.local_port,
            address_text(row.remote_addr), row.remote_port, mapped(row.local_addr), mapped(row.remote_addr),
            row.cookie, row.uid, direction, *owner, row.opened_at_s, row.closed_at_s, row.bytes_sent,
            row.bytes_received, row.refused, TELLS, self.seq,
        )  # fmt: skip
