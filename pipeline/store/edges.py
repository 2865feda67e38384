"""Who talks to whom: both ends of each connection as one row, grouped by processes and addresses."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from pipeline.model.connection import SocketKey
from pipeline.store.graph import flowing
from pipeline.store.schema import WALL_OFFSET

SIDE_FIELDS = ("netns", "pid", "start_ticks", "comm", "container", "addr", "port")
SIDES = ("client", "server")
_WHO = ("netns", "pid", "start_ticks")
EDGE_FIELDS = (*SIDES, "proto", "connections", "ambiguous", "nat", "first_seen", "last_seen")
# How long, and of how many, it is known when a pair that talks no more did so first.
_REMEMBERED_S = 600.0
_MAX_REMEMBERED = 20_000


def _rank(row: str) -> str:
    """SQL: of two ends the one with the greater rank is the server."""
    # Of two that nothing is known of, the server has the lower port: clients get theirs from the ephemeral range.
    return f"(CASE {row}.direction WHEN 'inbound' THEN 2 WHEN 'unknown' THEN 1 ELSE 0 END, -{row}.local_port, {row}.id)"


# An end whose other end is not known to be on this host.
_SERVES = (
    "(c.peer_side IS 'server' OR c.peer_side IS NULL"
    " AND (c.direction = 'inbound' OR c.direction = 'unknown' AND c.local_port < c.remote_port))"
)
# Its other end's address, which is not the one that this end sees where it is translated on the way.
_FAR = {
    ("client", "addr"): "$.original.src",
    ("client", "port"): "$.original.sport",
    ("server", "addr"): "$.translated.dst",
    ("server", "port"): "$.translated.dport",
}


def _who(side: str, row: str) -> str:
    # The last owner as it was then: its process may have ended.
    last = ", ".join(
        f"CASE {row}.owner_role WHEN 'last' THEN {row}.last_{name} END AS {side}_last_{name}"
        for name in ("comm", "container")
    )
    return ", ".join(f"{row}.{name} AS {side}_{name}" for name in _WHO) + f", {last}"


def _here(side: str, row: str) -> str:
    address = f"{row}.local_addr"
    if row == "d":
        # One that is bound to a wildcard is reached by an address that only its peer knows.
        address = f"iif(d.state = 'UNCONN', {_far(side, 'addr')}, {address})"
    return f"{_who(side, row)}, {address} AS {side}_addr, {row}.local_port AS {side}_port"


def _away(side: str) -> str:
    nothing = ", ".join(f"NULL AS {side}_{name}" for name in (*_WHO, "last_comm", "last_container"))
    return f"{nothing}, {_far(side, 'addr')} AS {side}_addr, {_far(side, 'port')} AS {side}_port"


def _far(side: str, what: str) -> str:
    """SQL: the address or port at the other end of row c, which is on this side."""
    return f"ifnull(json_extract(c.nat, '{_FAR[side, what]}'), c.remote_{what})"


def _pair(client: str, server: str, where: str) -> str:
    """SQL of the connections with both ends here, of which c is the row and d its peer."""
    return f"""
SELECT {_here("client", client)}, {_here("server", server)}, c.proto AS proto, 0 AS ambiguous, c.nat AS nat,
  min(c.first_seen_s, d.first_seen_s) AS first_s, max(n.taken_at_s, m.taken_at_s) AS last_s
FROM connection c CROSS JOIN connection d ON d.id = c.peer_id
JOIN namespace n ON n.netns = c.netns JOIN namespace m ON m.netns = d.netns
WHERE {where} AND {{only}}"""


def _alone(here: str, where: str) -> str:
    """SQL of the connections with one end here, which is on the side `here`."""
    ends = {side: _here(side, "c") if side == here else _away(side) for side in SIDES}
    return f"""
SELECT {ends["client"]}, {ends["server"]}, c.proto, c.peer_ambiguous, c.nat, c.first_seen_s, n.taken_at_s
FROM connection c JOIN namespace n ON n.netns = c.netns
WHERE c.peer_id IS NULL AND {flowing("c")} AND {where} AND {{only}}"""


# A bound UDP socket is the peer of many, and has none itself.
_ONE_WAY = "d.state = 'UNCONN' AND c.proto = 'udp'"
# One row per connection, however many of its ends are here.
_LINKS = " UNION ALL ".join((
    _pair("c", "d", "c.peer_id NOT NULL AND CASE WHEN c.peer_side IS NULL"
          f" THEN {_rank('c')} <= {_rank('d')} ELSE c.peer_side = 'client' END"),
    _pair("d", "c", f"c.peer_side = 'server' AND {_ONE_WAY}"),
    _alone("client", f"NOT {_SERVES}"),
    _alone("server", _SERVES),
))  # fmt: skip
# Of a translated connection its ports on the way are its own, all else is the edge's.
_NAT_GROUP = "json_set(nat, '$.original.sport', NULL, '$.translated.sport', NULL)"
_GROUP = (
    "client_netns", "client_pid", "client_start_ticks", "client_addr",
    "server_netns", "server_pid", "server_start_ticks", "server_addr", "server_port", "proto", "ambiguous",
)  # fmt: skip
_KEYED = f"SELECT *, {_NAT_GROUP} AS nat_group FROM ({_LINKS})"
_GROUPED = f"""
SELECT {", ".join(_GROUP)}, nat_group, CASE WHEN count(*) = 1 THEN min(nat) ELSE nat_group END AS nat,
  CASE WHEN count(*) = 1 THEN min(client_port) END AS client_port, count(*) AS connections,
  min(first_s) AS first_s, max(last_s) AS last_s,
  max(client_last_comm) AS client_last_comm, max(client_last_container) AS client_last_container,
  max(server_last_comm) AS server_last_comm, max(server_last_container) AS server_last_container
FROM ({_KEYED.format(only="1")}) GROUP BY {", ".join(_GROUP)}, nat_group"""


def _column(side: str, name: str) -> str:
    if name in ("comm", "container"):
        return f"coalesce({'cp' if side == 'client' else 'sp'}.{name}, e.{side}_last_{name})"
    return f"e.{side}_{name}"


# A group's columns and its nat as one text: table `talked`.
_IDENTITY = f"json_array({', '.join(_GROUP)}, nat_group)"
# The view's columns; an answer has those of each side as one map.
EDGE_COLUMNS = {f"{side}_{name}": _column(side, name) for side in SIDES for name in SIDE_FIELDS} | {
    "proto": "e.proto",
    "connections": "e.connections",
    "ambiguous": "e.ambiguous",
    "nat": "e.nat",
    "first_seen": f"min(e.first_s, ifnull(t.first_s, e.first_s)) + {WALL_OFFSET}",
    "last_seen": f"e.last_s + {WALL_OFFSET}",
}
EDGES_SOURCE = (
    f"(SELECT *, {_IDENTITY} AS identity FROM ({_GROUPED})) e"
    " LEFT JOIN process cp ON cp.pid = e.client_pid AND cp.start_ticks = e.client_start_ticks AND cp.shown"
    " LEFT JOIN process sp ON sp.pid = e.server_pid AND sp.start_ticks = e.server_start_ticks AND sp.shown"
    " LEFT JOIN talked t ON t.identity = e.identity"
)
_SHOWN = ", ".join(f"{sql} AS {name}" for name, sql in EDGE_COLUMNS.items())
EDGES_VIEW = f"CREATE VIEW edges AS SELECT {_SHOWN} FROM {EDGES_SOURCE};"
_KEY_DEFAULTS: dict[str, int | str] = {
    name: "" if name.endswith("_addr") or name in ("proto", "nat_group") else 0
    for name in (*_GROUP, "nat_group")
}
# What no two edges have in common, in a stable order that compares: that of the grouping.
EDGE_KEY = tuple(f"ifnull(e.{name}, {default!r})" for name, default in _KEY_DEFAULTS.items())
EDGE_KEY_TYPES = tuple(type(default) for default in _KEY_DEFAULTS.values())

_GOING = """
SELECT id, peer_id FROM connection WHERE netns = ? AND key = ? AND (peer_id NOT NULL OR {flowing})""".format(
    flowing=flowing("connection")
)
_REMEMBER = f"""
INSERT INTO talked SELECT {_IDENTITY}, min(first_s), max(last_s)
FROM ({_KEYED.format(only="c.id IN (SELECT value FROM json_each(?1))")}) WHERE 1 GROUP BY 1
ON CONFLICT(identity) DO UPDATE SET first_s = min(first_s, excluded.first_s), last_s = max(last_s, excluded.last_s)"""
_FORGET = """
DELETE FROM talked WHERE last_s < ?1 OR rowid <= (SELECT max(rowid) FROM talked) - ?2"""


def remember(database: sqlite3.Connection, netns: int, keys: Iterable[SocketKey]) -> None:
    """Before these connections go: since when their ends talked, for the case that they do so again."""
    wanted: set[int] = set()
    for key in keys:
        for row_id, peer_id in database.execute(_GOING, (netns, key)):
            # A pair is one row, of either end.
            wanted |= {row_id} if peer_id is None else {row_id, peer_id}
    if wanted:
        database.execute(_REMEMBER, (json.dumps(sorted(wanted)),))


def forget(database: sqlite3.Connection, now_s: float) -> None:
    """Drops what `remember` kept of pairs that have not talked for long, and the oldest of very many."""
    database.execute(_FORGET, (now_s - _REMEMBERED_S, _MAX_REMEMBERED))
