"""Who talks to whom: both ends of each connection as one row, grouped by processes and addresses."""

from __future__ import annotations

from pipeline.store.peers import flowing
from pipeline.store.schema import WALL_OFFSET

SIDE_FIELDS = ("netns", "pid", "start_ticks", "comm", "container", "addr", "port")
SIDES = ("client", "server")
_WHO = ("netns", "pid", "start_ticks")
EDGE_FIELDS = (*SIDES, "proto", "connections", "ambiguous", "nat", "first_seen", "last_seen")


def _rank(row: str) -> str:
    """SQL: of two ends the one with the greater rank is the server."""
    # Of two that nothing is known of, the server has the lower port: clients get theirs from the ephemeral range.
    return f"(CASE {row}.direction WHEN 'inbound' THEN 2 WHEN 'unknown' THEN 1 ELSE 0 END, -{row}.local_port, {row}.id)"


# An end whose other end is not known to be on this host.
_SERVES = "(c.direction = 'inbound' OR c.direction = 'unknown' AND c.local_port < c.remote_port)"


def _alone(side: str) -> str:
    """SQL columns of one side of a connection that has one end here, row c."""
    here, there = (f"NOT {_SERVES}", _SERVES) if side == "client" else (_SERVES, f"NOT {_SERVES}")
    known = ", ".join(f"CASE WHEN {here} THEN c.{name} END AS {side}_{name}" for name in _WHO)
    address = f"CASE WHEN {there} THEN c.remote_addr ELSE c.local_addr END AS {side}_addr"
    return f"{known}, {address}, CASE WHEN {there} THEN c.remote_port ELSE c.local_port END AS {side}_port"


def _both(side: str, row: str) -> str:
    known = ", ".join(f"{row}.{name} AS {side}_{name}" for name in _WHO)
    return f"{known}, {row}.local_addr AS {side}_addr, {row}.local_port AS {side}_port"


# One row per connection, however many of its ends are here.
_LINKS = f"""
SELECT {_both("client", "c")}, {_both("server", "d")}, c.proto AS proto, 0 AS ambiguous,
  min(c.first_seen_s, d.first_seen_s) AS first_s, max(n.taken_at_s, m.taken_at_s) AS last_s
FROM connection c CROSS JOIN connection d ON d.id = c.peer_id
JOIN namespace n ON n.netns = c.netns JOIN namespace m ON m.netns = d.netns
WHERE c.peer_id NOT NULL AND {_rank("c")} <= {_rank("d")}
UNION ALL
SELECT {_alone("client")}, {_alone("server")}, c.proto, c.peer_ambiguous, c.first_seen_s, n.taken_at_s
FROM connection c JOIN namespace n ON n.netns = c.netns WHERE c.peer_id IS NULL AND {flowing("c")}"""
_GROUP = (
    "client_netns", "client_pid", "client_start_ticks", "client_addr",
    "server_netns", "server_pid", "server_start_ticks", "server_addr", "server_port", "proto", "ambiguous",
)  # fmt: skip
_GROUPED = f"""
SELECT {", ".join(_GROUP)}, CASE WHEN count(*) = 1 THEN min(client_port) END AS client_port,
  count(*) AS connections, min(first_s) AS first_s, max(last_s) AS last_s
FROM ({_LINKS}) GROUP BY {", ".join(_GROUP)}"""


def _column(side: str, name: str) -> str:
    source = "cp" if side == "client" else "sp"
    return f"{source}.{name}" if name in ("comm", "container") else f"e.{side}_{name}"


# The view's columns; an answer has those of each side as one map.
EDGE_COLUMNS = {f"{side}_{name}": _column(side, name) for side in SIDES for name in SIDE_FIELDS} | {
    "proto": "e.proto",
    "connections": "e.connections",
    "ambiguous": "e.ambiguous",
    "nat": "NULL",
    "first_seen": f"e.first_s + {WALL_OFFSET}",
    "last_seen": f"e.last_s + {WALL_OFFSET}",
}
EDGES_SOURCE = (
    f"({_GROUPED}) e"
    " LEFT JOIN process cp ON cp.pid = e.client_pid AND cp.start_ticks = e.client_start_ticks AND cp.shown"
    " LEFT JOIN process sp ON sp.pid = e.server_pid AND sp.start_ticks = e.server_start_ticks AND sp.shown"
)
_SHOWN = ", ".join(f"{sql} AS {name}" for name, sql in EDGE_COLUMNS.items())
EDGES_VIEW = f"CREATE VIEW edges AS SELECT {_SHOWN} FROM {EDGES_SOURCE};"
# A stable order: that of the grouping.
EDGES_ORDER = ", ".join(f"e.{name}" for name in _GROUP)
