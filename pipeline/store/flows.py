"""Translated flows as stored, and how they meet the rows of sockets: table `flow`, written within a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

from pipeline.model.address import address_text, mapped
from pipeline.model.connection import PROTO_NAMES
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FlowSnapshot

_TUPLE = ("src", "sport", "dst", "dport")
# In the order of `_stored`.
_COLUMNS = ("proto", *(f"{side}_{name}" for side in ("original", "translated") for name in _TUPLE))
_NAMES = ", ".join(_COLUMNS)
_STORED = f"SELECT key, {_NAMES} FROM flow WHERE netns = ?"
_PART = f"INSERT INTO parted_flow SELECT {_NAMES} FROM flow WHERE netns = ?"
_DELETE = "DELETE FROM flow WHERE netns = ?"
_BY_KEY = " AND key = ?"
_UPSERT = (
    f"INSERT INTO flow(netns, key, {_NAMES}, live, changed_seq) VALUES (?, ?, {', '.join('?' * len(_COLUMNS))},"
    " (SELECT live FROM flow_source s WHERE s.netns = ?1), ?)"
    f" ON CONFLICT(netns, key) DO UPDATE SET changed_seq = excluded.changed_seq, "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
)
_HEAD = """
INSERT INTO flow_source(netns, cookie, taken_at_s) VALUES (?1, ?2, ?3) ON CONFLICT(netns) DO UPDATE SET
cookie = iif(?4, excluded.cookie, coalesce(excluded.cookie, cookie)), taken_at_s = excluded.taken_at_s"""
# An inode is given to another namespace at once: the flows of the one say nothing of the other. Either may be heard
# of first, so they stay until their own reporter takes them back.
_TURNED = """
SELECT s.netns, NOT s.live FROM flow_source s LEFT JOIN namespace n ON n.netns = s.netns
WHERE s.live <> coalesce(n.cookie = s.cookie, 1)"""
_ORPHANS = """
SELECT netns FROM flow_source WHERE taken_at_s < ? AND netns NOT IN (SELECT n.netns FROM namespace n)"""


class FlowWriter:
    """Writes the flows of namespaces for commit `seq`; what they were before is noted for store/peers.py."""

    def __init__(self, database: sqlite3.Connection, seq: int) -> None:
        self._database = database
        self._seq = seq

    def write(self, snapshot: FlowSnapshot) -> None:
        """One snapshot that `Latest` let through. Raises: ValueError for addresses of a wrong length."""
        netns = snapshot.netns
        self._database.execute(_HEAD, (netns, snapshot.cookie, snapshot.taken_at_s, snapshot.base))
        wanted = {row[0]: values for row in snapshot.flows if (values := _stored(row)) is not None}
        if snapshot.base:
            stored = {key: tuple(values) for key, *values in self._database.execute(_STORED, (netns,))}
            gone: Collection[bytes] = stored.keys() - wanted.keys()
            wanted = {key: values for key, values in wanted.items() if stored.get(key) != values}
        else:
            # One that is not translated any more has gone as well.
            gone = {*snapshot.gone_flows, *(row[0] for row in snapshot.flows)} - wanted.keys()
        self._database.executemany(_PART + _BY_KEY, ((netns, key) for key in (*gone, *wanted)))
        self._database.executemany(_DELETE + _BY_KEY, ((netns, key) for key in gone))
        self._database.executemany(
            _UPSERT, ((netns, key, *values, self._seq) for key, values in wanted.items())
        )

    def drop(self, netns: int) -> None:
        """All flows of a namespace that is no more."""
        self._database.execute(_PART, (netns,))
        self._database.execute(_DELETE, (netns,))
        self._database.execute("DELETE FROM flow_source WHERE netns = ?", (netns,))

    def drop_orphans(self, older_than_s: float) -> list[int]:
        """Drops those of namespaces that nobody else has told of for so long; returns which."""
        found = [netns for (netns,) in self._database.execute(_ORPHANS, (older_than_s,))]
        for netns in found:
            self.drop(netns)
        return found

    def settle(self) -> None:
        """After all snapshots: whether the flows of a namespace are those of the one that is known by its inode."""
        for netns, live in self._database.execute(_TURNED).fetchall():
            self._database.execute(_PART, (netns,))
            self._database.execute("UPDATE flow_source SET live = ? WHERE netns = ?", (live, netns))
            self._database.execute(
                "UPDATE flow SET live = ?, changed_seq = ? WHERE netns = ?", (live, self._seq, netns)
            )


def _stored(flow: Flow) -> tuple[Any, ...] | None:
    """The values of _COLUMNS; None for a flow that is not translated, or of a protocol without sockets here."""
    _, proto, _, src, sport, dst, dport, reply_src, reply_sport, reply_dst, reply_dport, *_ = flow
    name = PROTO_NAMES.get(proto)
    # Of what comes back the source is the real server, and the destination what the server sees of the client.
    if name is None or (src, sport, dst, dport) == (reply_dst, reply_dport, reply_src, reply_sport):
        return None
    for address in (src, dst, reply_src, reply_dst):
        address_text(address)
    return (
        name, mapped(src), sport, mapped(dst), dport, mapped(reply_dst), reply_dport, mapped(reply_src), reply_sport,
    )  # fmt: skip


def nat_of(original: Iterable[Any], translated: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """The contract's `nat` of two tuples (source, its port, destination, its port); 16-byte addresses."""
    return {"original": _named(*original), "translated": _named(*translated)}


def _named(src: bytes, sport: int, dst: bytes, dport: int) -> dict[str, Any]:
    return {"src": address_text(src), "sport": sport, "dst": address_text(dst), "dport": dport}
