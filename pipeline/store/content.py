"""Writing the changes of namespaces into the tables: only rows that differ are touched."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.merge.changes import Change
from pipeline.merge.direction import Listeners, decide
from pipeline.model.address import mapped
from pipeline.model.connection import Connection, Proto, SocketKey, State
from pipeline.model.flow_snapshot import FlowSnapshot
from pipeline.store.addresses import write_addresses
from pipeline.store.closed import TELLS, Ended
from pipeline.store.containers import write_containers
from pipeline.store.edges import remember
from pipeline.store.flows import FlowWriter
from pipeline.store.graph import flowing
from pipeline.store.history import History
from pipeline.store.ownership import Owners
from pipeline.store.peers import part, update_peers
from pipeline.store.rows import CONNECTION_COLUMNS, stored_row
from pipeline.store.traffic import write_traffic
from pipeline.store.unheld import Unheld

_WRITTEN = ("netns", "key", *CONNECTION_COLUMNS, "direction",
            "pid", "start_ticks", "holder_netns", "holder_seen_s", "owner_role",
            "changed_seq", "first_seen_s")  # fmt: skip
_STAYING = ("netns", "key", "direction", "first_seen_s")
# The direction stays as first decided, except that a socket may start to listen, or leave the undecided states.
_UPSERT = (
    f"INSERT INTO connection({', '.join(_WRITTEN)}, added_seq, inode_seen_s)"
    f" VALUES ({', '.join(f'?{at + 1}' for at in range(len(_WRITTEN)))}, ?{len(_WRITTEN) - 1}, ?{len(_WRITTEN)})"
    " ON CONFLICT(netns, key) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _WRITTEN if name not in _STAYING)
    + ", direction = CASE WHEN excluded.direction = 'listen' OR direction IN ('listen', 'unknown')"
    " THEN excluded.direction ELSE direction END"
    ", listener_inode = NULL"
    ", inode_seen_s = CASE WHEN inode = excluded.inode THEN inode_seen_s ELSE excluded.inode_seen_s END"
)
_SHOW = """
UPDATE process SET shown = reporter = (
  SELECT q.reporter FROM process q WHERE q.pid = process.pid AND q.start_ticks = process.start_ticks
  ORDER BY q.reporter <> q.netns, q.reporter LIMIT 1) WHERE pid = ? AND start_ticks = ?"""
_HELD_BY = "SELECT inode FROM holding WHERE pid = ? AND start_ticks = ?"
_CHANGED_IN = "SELECT DISTINCT netns FROM connection WHERE changed_seq = ?"
# A bound UDP socket is part of an edge where somebody sends to it.
_EDGES_CHANGED = f"""
SELECT EXISTS (SELECT 1 FROM connection c WHERE c.changed_seq = ? AND ({flowing("c")} OR c.proto = 'udp'
  AND EXISTS (SELECT 1 FROM connection d WHERE d.peer_id = c.id AND d.peer_id NOT NULL AND d.proto = 'udp')))"""
_STORED_LISTENERS = """
SELECT local_port, local_ip, key FROM connection WHERE netns = ? AND state = 'LISTEN' AND proto = 'tcp'"""
_HEAD = """
INSERT INTO namespace(netns, cookie, life, generation, source, taken_at_s, walked_at_s, denied, health, pass_began_s)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(netns) DO UPDATE SET
cookie = coalesce(excluded.cookie, cookie), life = excluded.life, generation = excluded.generation,
source = excluded.source, taken_at_s = excluded.taken_at_s, walked_at_s = excluded.walked_at_s,
denied = excluded.denied, health = excluded.health, pass_began_s = excluded.pass_began_s"""


@dataclass(slots=True)
class _Arrivals:
    """Rows of one namespace to write, and the listeners that decide which of them came from outside."""

    netns: int
    taken_at_s: float
    rows: list[Connection]
    listeners: Listeners


@dataclass(slots=True)
class ContentWriter:
    """Writes within the caller's transaction: first any number of changes, then `finish` once."""

    database: sqlite3.Connection
    history: History
    ended: Ended
    _held_inodes: set[int] = field(default_factory=set)
    _processes: set[tuple[int, int]] = field(default_factory=set)
    _arrivals: list[_Arrivals] = field(default_factory=list)
    # Namespaces that lost a connection.
    _lessened: set[int] = field(default_factory=set)
    _edges_changed: bool = False
    # Addresses that came to a namespace or went from it.
    _moved: set[bytes] = field(default_factory=set)
    _unheld: Unheld = field(init=False)
    _flows: FlowWriter = field(init=False)

    def __post_init__(self) -> None:
        self._unheld = Unheld(self.database, self.history)
        self._flows = FlowWriter(self.database, self.history.seq)

    def write(self, change: Change) -> None:
        """One namespace's changes."""
        netns, cookie = change.head.netns, change.head.cookie
        stored = self.database.execute(
            "SELECT cookie, life FROM namespace WHERE netns = ?", (netns,)
        ).fetchone()
        if stored is not None and None not in (cookie, stored[0]) and cookie != stored[0]:
            self.clear(netns)  # another namespace under a reused inode: nothing of the old one carries over
            stored = None
        self.ended.note_told(netns, cookie, change.closed)
        # What another life of the walk does not show may be all that it has not seen yet.
        shows_ends = stored is not None and stored[1] == change.head.life and change.head.source != TELLS
        self._write_head(change)
        # In this order a row that goes takes along who held it.
        if change.addresses is not None:
            self._moved |= write_addresses(self.database, netns, change.addresses)
        self._write_connections(netns, change, shows_ends)
        self._write_holdings(netns, change)
        self._write_processes(netns, change)
        write_containers(self.database, change.containers.values())
        gone = [key for key, row in change.connections.items() if row is None]
        write_traffic(self.database, netns, change.traffic.values(), gone, whole=change.base)

    def write_flows(self, snapshot: FlowSnapshot) -> None:
        """One namespace's translated flows, or the changes to them."""
        self._flows.write(snapshot)

    def remove(self, netns: int) -> None:
        """Drops all that is known of a namespace that is no more."""
        self.clear(netns)
        self._flows.drop(netns)

    def remove_flows(self, older_than_s: float) -> list[int]:
        """Drops the flows of namespaces that nothing else is known of for so long; returns which."""
        return self._flows.drop_orphans(older_than_s)

    def clear(self, netns: int) -> None:
        """Drops everything that this namespace's worker published, its row in `namespace` too."""
        # What this transaction was about to write for it goes too: the roster has the last word.
        self._arrivals = [arrivals for arrivals in self._arrivals if arrivals.netns != netns]
        self.history.keep_all_going(netns)
        part(self.database, netns, None)
        self._moved |= write_addresses(self.database, netns, ())
        if self.database.execute("DELETE FROM connection WHERE netns = ?", (netns,)).rowcount:
            self._lessened.add(netns)
        held = self.database.execute("SELECT DISTINCT inode FROM holding WHERE reporter = ?", (netns,))
        self._note_holders({inode for (inode,) in held})
        self.database.execute("DELETE FROM holding WHERE reporter = ?", (netns,))
        self._note_processes(set(self.database.execute(
            "SELECT pid, start_ticks FROM process WHERE reporter = ?", (netns,)
        )))  # fmt: skip
        self.database.execute("DELETE FROM process WHERE reporter = ?", (netns,))
        write_traffic(self.database, netns, (), (), whole=True)
        self.database.execute(
            "UPDATE namespace SET cookie = NULL, life = NULL, generation = NULL, source = NULL, taken_at_s = NULL,"
            " walked_at_s = NULL, pass_began_s = NULL, denied = 0, health = '{}' WHERE netns = ?", (netns,),
        )  # fmt: skip

    def finish(self) -> None:
        """Joins: the owners of the rows written, and of stored rows whose holders changed in any namespace."""
        self.database.executemany(_SHOW, self._processes)
        seq = self.history.seq
        inodes = {row[9] for arrivals in self._arrivals for row in arrivals.rows}
        owners = Owners(self.database, inodes | self._held_inodes)
        # Before the new rows come in: those are written with their owner.
        self._unheld.note_places(owners.update_rows(self._held_inodes, seq))
        for arrivals in self._arrivals:
            self.database.executemany(_UPSERT, _upsert_values(arrivals, owners, seq))
        self._unheld.update()
        self._flows.settle()
        self._edges_changed = update_peers(self.database, self.history, self._moved)

    def touched(self) -> tuple[tuple[int, ...], bool]:
        """After `finish`: namespace inodes whose connections were added, changed or removed, sorted; whether one of
        those may be part of an edge."""
        seq = self.history.seq
        found = self._lessened.union(netns for (netns,) in self.database.execute(_CHANGED_IN, (seq,)))
        if not found or self._lessened or self._edges_changed:
            return tuple(sorted(found)), bool(found) or self._edges_changed
        (edges,) = self.database.execute(_EDGES_CHANGED, (seq,)).fetchone()
        return tuple(sorted(found)), bool(edges)

    def _write_head(self, change: Change) -> None:
        head = change.head
        self.database.execute(
            _HEAD,
            (head.netns, head.cookie, head.life, head.generation, head.source, head.taken_at_s, head.walked_at_s,
             head.denied, json.dumps(asdict(head.health)), head.searched_since_s),
        )  # fmt: skip

    def _write_processes(self, netns: int, change: Change) -> None:
        wanted = dict(change.processes)
        if change.base:
            for pid, start_ticks, *rest in self.database.execute(
                "SELECT pid, start_ticks, comm, uid, netns, container FROM process WHERE reporter = ?",
                (netns,),
            ):
                row = wanted.setdefault((pid, start_ticks), None)
                if row is not None and list(row[2:]) == rest:
                    del wanted[pid, start_ticks]
        self._note_processes(wanted.keys())
        gone = [(netns, *key) for key, row in wanted.items() if row is None]
        self.database.executemany(
            "DELETE FROM process WHERE reporter = ? AND pid = ? AND start_ticks = ?", gone
        )
        self.database.executemany(
            "INSERT OR REPLACE INTO process(pid, start_ticks, comm, uid, netns, container, reporter)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((*row, netns) for row in wanted.values() if row is not None),
        )

    def _write_holdings(self, netns: int, change: Change) -> None:
        held = {tuple(row) for row, is_held in change.holdings.items() if is_held}
        gone = {tuple(row) for row, is_held in change.holdings.items() if not is_held}
        if change.base:
            stored = set(self.database.execute(
                "SELECT pid, start_ticks, fd, inode FROM holding WHERE reporter = ?", (netns,)
            ))  # fmt: skip
            gone = stored - held
            held -= stored
        self._note_holders({row[3] for row in held} | {row[3] for row in gone})
        self.database.executemany(
            "DELETE FROM holding WHERE reporter = ? AND pid = ? AND start_ticks = ? AND fd = ? AND inode = ?",
            ((netns, *row) for row in gone),
        )
        seen_s = change.head.taken_at_s
        self.database.executemany(
            "INSERT OR IGNORE INTO holding VALUES (?, ?, ?, ?, ?, ?)",
            ((*row, netns, seen_s) for row in sorted(held)),
        )

    def _note_holders(self, inodes: Collection[int]) -> None:
        """Before a holder of these comes or goes."""
        self._unheld.note_holders(inodes)
        self.history.keep_changing_owners(inodes)
        self._held_inodes.update(inodes)

    def _note_processes(self, processes: Collection[tuple[int, int]]) -> None:
        """Before what is known of these changes: it is shown with the connections they hold."""
        self._processes.update(processes)
        if self.history.first:
            return  # no row is older than this transaction
        inodes: set[int] = set()
        for key in processes:
            inodes.update(inode for (inode,) in self.database.execute(_HELD_BY, key))
        self._note_holders(inodes - self._held_inodes)

    def _write_connections(self, netns: int, change: Change, shows_ends: bool) -> None:
        rows = [row for row in change.connections.values() if row is not None]
        listeners = _listeners_of(rows)
        # Also those that go in this very change: they were there when the row came.
        places = {}
        for port, local_ip, key in self.database.execute(_STORED_LISTENERS, (netns,)):
            listeners.add((port, local_ip))
            places[key] = (netns, port)
        gone: Collection[SocketKey] = [key for key, row in change.connections.items() if row is None]
        if change.base:
            stored = {key: tuple(values) for key, *values in self.database.execute(
                f"SELECT key, {', '.join(CONNECTION_COLUMNS)} FROM connection WHERE netns = ?", (netns,)
            )}  # fmt: skip
            gone = stored.keys() - {row[0] for row in rows}
            if stored:
                rows = [row for row in rows if stored.get(row[0]) != stored_row(row)]
            older: Collection[SocketKey] = stored.keys() & {row[0] for row in rows}
        else:
            older = () if self.history.first else [row[0] for row in rows]
        if shows_ends:
            waiting = [row[0] for row in rows if row[3] == State.TIME_WAIT]
            head = change.head
            self.ended.note_leaving(netns, (*gone, *waiting), head.taken_at_s, head.source)
        part(self.database, netns, (*older, *gone))
        self._unheld.note_closed(netns, [row[0] for row in rows if not row[9]])
        self._unheld.note_places(places[key] for key in places.keys() & {*older, *gone})
        self._unheld.note_places((netns, port) for port, _ in _listeners_of(rows))
        self.history.keep_changing(netns, older)
        self.history.keep_going(netns, gone)
        remember(self.database, netns, gone)
        deleted = self.database.executemany(
            "DELETE FROM connection WHERE netns = ? AND key = ?", ((netns, key) for key in gone)
        )
        if deleted.rowcount > 0:
            self._lessened.add(netns)
        if rows:
            self._arrivals.append(_Arrivals(netns, change.head.taken_at_s, rows, listeners))


def _listeners_of(rows: list[Connection]) -> Listeners:
    return {(row[5], mapped(row[4])) for row in rows if row[3] == State.LISTEN and row[1] == Proto.TCP}


def _upsert_values(arrivals: _Arrivals, owners: Owners, seq: int) -> Iterable[tuple[Any, ...]]:
    netns, listeners, seen_s = arrivals.netns, arrivals.listeners, arrivals.taken_at_s
    for row in arrivals.rows:
        values = stored_row(row)
        direction = decide(row[1], row[3], values[7], row[5], listeners)
        yield (netns, row[0], *values, direction, *owners.choice(row[9], values[2] == "LISTEN"),
               seq, seen_s)  # fmt: skip
