"""The other end of each connection, kept on its row: rows of this host with mirrored addresses and ports."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from pipeline.merge.ends import NO_PEER, pair
from pipeline.model.connection import SocketKey

# States in which data may flow or has flowed; TIME_WAIT is nobody's any more.
FLOWING_STATES = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING")


def flowing(row: str) -> str:
    """SQL: whether this row is one end of a connection that has two."""
    return f"{row}.state IN ({', '.join(map(repr, FLOWING_STATES))})"


def _loopback(column: str) -> str:
    first, last = "00" * 10 + "ffff7f000000", "00" * 10 + "ffff7fffffff"
    return f"({column} BETWEEN x'{first}' AND x'{last}' OR {column} = x'{'00' * 15}01')"


def _link_local(column: str) -> str:
    v4 = f"{column} BETWEEN x'{'00' * 10}ffffa9fe0000' AND x'{'00' * 10}ffffa9feffff'"
    return f"({v4} OR {column} BETWEEN x'fe80{'00' * 14}' AND x'febf{'ff' * 14}')"


_MIRRORED = (
    "d.remote_ip = c.local_ip AND d.remote_port = c.local_port AND d.local_port = c.remote_port"
    " AND d.local_ip = c.remote_ip AND d.proto = c.proto"
)
# Loopback addresses mean something within their namespace only; link-local ones, there, on their device only.
_MIRRORS = (
    f"{_MIRRORED}"
    f" AND (d.netns = c.netns OR NOT {_loopback('c.local_ip')} AND NOT {_loopback('c.remote_ip')})"
    f" AND (d.netns <> c.netns OR d.device IS c.device OR NOT {_link_local('c.local_ip')})"
)
_CHANGED = f"""
SELECT c.id FROM connection c WHERE c.changed_seq = ? AND (c.peer_id NOT NULL OR c.peer_ambiguous
  OR {flowing("c")} AND EXISTS (SELECT 1 FROM connection d WHERE {_MIRRORED} AND {flowing("d")}))"""
_PARTED = f"""
SELECT d.id FROM parted p CROSS JOIN connection d ON d.id = p.peer_id
UNION SELECT d.id FROM parted c CROSS JOIN connection d ON {_MIRRORED} WHERE c.peer_id IS NULL"""
_PART = """
INSERT INTO parted SELECT peer_id, proto, local_ip, local_port, remote_ip, remote_port FROM connection
WHERE netns = ? AND (peer_id NOT NULL OR peer_ambiguous)"""
_CANDIDATES = f"""
SELECT c.id, c.netns, d.id FROM json_each(?) AS wanted CROSS JOIN connection c ON c.id = wanted.value
LEFT JOIN connection d ON {_MIRRORS} AND {flowing("c")} AND {flowing("d")}"""
_SET = """
UPDATE connection SET peer_id = ?1, peer_ambiguous = ?2 WHERE id = ?3
AND (peer_id IS NOT ?1 OR peer_ambiguous <> ?2)"""


def part(database: sqlite3.Connection, netns: int, keys: Iterable[SocketKey] | None) -> None:
    """Notes what rows mirror that are about to go or to be written over; `keys` None: all of the namespace."""
    if keys is None:
        database.execute(_PART, (netns,))
    else:
        database.executemany(f"{_PART} AND key = ?", ((netns, key) for key in keys))


def update_peers(database: sqlite3.Connection, seq: int) -> None:
    """Sets the peers of the rows that commit `seq` wrote, and of all whose mirrors it wrote, changed or removed."""
    frontier = [row_id for (row_id,) in database.execute(_CHANGED, (seq,))]
    parted = {row_id for (row_id,) in database.execute(_PARTED)} - set(frontier)
    if parted:
        frontier += parted
    database.execute("DELETE FROM parted")
    candidates: dict[int, set[int]] = {}
    netns_of: dict[int, int] = {}
    # All that mirror each other, one way or the other, are settled together.
    while frontier:
        for row_id, netns, other in _pairs(database, frontier):
            netns_of[row_id] = netns
            others = candidates.setdefault(row_id, set())
            if other is not None:
                others.add(other)
        known = candidates.keys()
        frontier = list({other for row_id in frontier for other in candidates.get(row_id, ())} - known)
    peers = pair(candidates, netns_of)
    database.executemany(_SET, ((*peers.get(row_id, NO_PEER), row_id) for row_id in candidates))


def _pairs(database: sqlite3.Connection, row_ids: Iterable[int]) -> Iterable[tuple[int, int, int | None]]:
    return database.execute(_CANDIDATES, (json.dumps(sorted(row_ids)),))
