"""The sockets and flows that may be parts of one connection: the graph that merge/nat.py resolves, read in SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

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


MIRRORED = (
    "d.remote_ip = c.local_ip AND d.remote_port = c.local_port AND d.local_port = c.remote_port"
    " AND d.local_ip = c.remote_ip AND d.proto = c.proto"
)
# Loopback addresses mean something within their namespace only; link-local ones, there, on their device only.
_MIRRORS = (
    f"{MIRRORED}"
    f" AND (d.netns = c.netns OR NOT {_loopback('c.local_ip')} AND NOT {_loopback('c.remote_ip')})"
    f" AND (d.netns <> c.netns OR d.device IS c.device OR NOT {_link_local('c.local_ip')})"
)
# Row c sends what flow f takes in, and row c receives what it sends on.
SENDS = (
    "f.original_src = c.local_ip AND f.original_sport = c.local_port AND f.original_dport = c.remote_port"
    " AND f.original_dst = c.remote_ip AND f.proto = c.proto"
)
RECEIVES = (
    "f.translated_src = c.remote_ip AND f.translated_sport = c.remote_port AND f.translated_dport = c.local_port"
    " AND f.translated_dst = c.local_ip AND f.proto = c.proto"
)
# Flow g takes in what flow f sends on.
PASSES = (
    "g.original_src = f.translated_src AND g.original_sport = f.translated_sport"
    " AND g.original_dport = f.translated_dport AND g.original_dst = f.translated_dst AND g.proto = f.proto"
)
_SAME_NETNS = f"(f.netns = c.netns OR NOT {_loopback('c.local_ip')} AND NOT {_loopback('c.remote_ip')})"
_SAME_FLOW_NETNS = (
    f"(f.netns = g.netns OR NOT {_loopback('g.original_src')} AND NOT {_loopback('g.original_dst')})"
)
_CANDIDATES = f"""
SELECT c.id, c.netns, d.id FROM json_each(?) AS wanted CROSS JOIN connection c ON c.id = wanted.value
LEFT JOIN connection d ON {_MIRRORS} AND {flowing("c")} AND {flowing("d")}"""
_FLOWS_OF_ROWS = " UNION ALL ".join(
    f"SELECT {source}, {target} FROM json_each(?1) AS wanted CROSS JOIN connection c ON c.id = wanted.value"
    f" CROSS JOIN flow f ON {meets} AND f.live AND {_SAME_NETNS} WHERE {flowing('c')}"
    for source, target, meets in (("c.id", "-f.id", SENDS), ("-f.id", "c.id", RECEIVES))
)
_WANTED_FLOW = "json_each(?1) AS wanted CROSS JOIN flow {} ON {}.id = wanted.value AND {}.live"
_ROWS_OF_FLOWS = " UNION ALL ".join(
    f"SELECT {source}, {target} FROM {_WANTED_FLOW.format('f', 'f', 'f')}"
    f" CROSS JOIN connection c ON {meets} AND {_SAME_NETNS} WHERE {flowing('c')}"
    for source, target, meets in (("c.id", "-f.id", SENDS), ("-f.id", "c.id", RECEIVES))
)
_FLOWS_OF_FLOWS = " UNION ALL ".join(
    f"SELECT -f.id, -g.id FROM {_WANTED_FLOW.format(here, here, here)}"
    f" CROSS JOIN flow {there} ON {PASSES} AND {there}.live AND {_SAME_FLOW_NETNS}"
    for here, there in (("f", "g"), ("g", "f"))
)
_NETNS_OF_FLOWS = "SELECT -f.id, f.netns FROM " + _WANTED_FLOW.format("f", "f", "f")


class Graph:
    """All that can be reached from some rows and flows. Nodes as in merge/nat.py: row ids, and minus flow ids.

    `mirrors`: row -> rows with its addresses and ports the other way round. `receivers`: the same, and who receives
    through flows. `netns_of`: of every node.
    """

    def __init__(self, database: sqlite3.Connection, has_flows: bool) -> None:
        self.mirrors: dict[int, set[int]] = {}
        self.receivers: dict[int, set[int]] = self.mirrors
        self.netns_of: dict[int, int] = {}
        self._database = database
        self._has_flows = has_flows
        # Node -> those that flows join it to, in either direction.
        self._near_flows: dict[int, set[int]] = {}

    def explore(self, rows: Iterable[int], flows: Iterable[int]) -> None:
        """Adds these and all that they lead to; `flows` by their ids."""
        frontier = list(rows)
        flow_frontier = [-flow for flow in flows]
        while frontier or flow_frontier:
            found = self._mirrors_of(frontier)
            if self._has_flows:
                found |= self._meet(frontier, flow_frontier)
            fresh = found - self.netns_of.keys()
            frontier = [node for node in fresh if node > 0]
            flow_frontier = [node for node in fresh if node < 0]
        if self.receivers is not self.mirrors:
            self.receivers = {
                node: self.mirrors.get(node, set()) | self.receivers.get(node, set())
                for node in self.netns_of
            }

    def split(self) -> tuple[set[int], set[int]]:
        """The rows that no flow leads to, and all other nodes."""
        todo = [node for node in self.netns_of if node < 0]
        touched = set(todo)
        while todo:
            node = todo.pop()
            fresh = (self.mirrors.get(node, set()) | self._near_flows.get(node, set())) - touched
            touched |= fresh
            todo += fresh
        return self.netns_of.keys() - touched, touched

    def _mirrors_of(self, rows: Collection[int]) -> set[int]:
        found: set[int] = set()
        for row_id, netns, other in self._ask(_CANDIDATES, rows):
            self.netns_of[row_id] = netns
            others = self.mirrors.setdefault(row_id, set())
            if other is not None:
                others.add(other)
                found.add(other)
        return found

    def _meet(self, rows: Collection[int], flows: Collection[int]) -> set[int]:
        found: set[int] = set()
        ids = [-flow for flow in flows]
        self.netns_of.update(self._ask(_NETNS_OF_FLOWS, ids))
        if self.receivers is self.mirrors:
            self.receivers = {}
        for statement, wanted in ((_FLOWS_OF_ROWS, rows), (_ROWS_OF_FLOWS, ids), (_FLOWS_OF_FLOWS, ids)):
            for source, target in self._ask(statement, wanted):
                self.receivers.setdefault(source, set()).add(target)
                self._near_flows.setdefault(source, set()).add(target)
                self._near_flows.setdefault(target, set()).add(source)
                found |= {source, target}
        return found

    def _ask(self, statement: str, ids: Collection[int]) -> Iterable[tuple[Any, ...]]:
        return self._database.execute(statement, (json.dumps(sorted(ids)),)) if ids else ()
