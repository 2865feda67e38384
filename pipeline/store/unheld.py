"""Owners of rows that no process holds: who accepts them (pending), who held them last (last), or the kernel.

A row that had a holder remembers the last one in its `last_*` columns, also while it still has an inode: its process
may be seen to end before the socket is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

from pipeline.merge.owners import Listener, listeners_of, waits_at
from pipeline.model.connection import SocketKey
from pipeline.store.history import History
from pipeline.store.ownership import NOBODY, Choice, Owners, Place
from pipeline.store.schema import UNHELD, WAITING

_REMEMBERED = (
    "SELECT c.id, c.netns, c.key, c.pid, c.start_ticks, max(c.holder_seen_s, coalesce(h.walked_at_s, c.holder_seen_s)),"
    " p.comm, p.netns, p.container FROM {rows}"
    " LEFT JOIN process p ON p.pid = c.pid AND p.start_ticks = c.start_ticks AND p.shown"
    " LEFT JOIN namespace h ON h.netns = c.holder_netns WHERE c.owner_role = 'holder'"
)
_OF_INODES = _REMEMBERED.format(
    rows="json_each(?) AS wanted CROSS JOIN connection c ON c.inode = wanted.value"
)
_OF_KEY = _REMEMBERED.format(rows="connection c") + " AND c.netns = ? AND c.key = ?"
_WITHOUT = """
SELECT c.id, c.netns, c.key FROM json_each(?) AS wanted CROSS JOIN connection c ON c.id = wanted.value
WHERE c.owner_role IS NULL"""
_REMEMBER = """
UPDATE connection SET last_pid = ?, last_start_ticks = ?, last_seen_s = ?, last_comm = ?, last_netns = ?,
last_container = ? WHERE id = ?"""
_SET_LAST = """
UPDATE connection INDEXED BY connection_changed
SET owner_role = 'last', pid = last_pid, start_ticks = last_start_ticks, holder_seen_s = last_seen_s
WHERE changed_seq = ? AND inode = 0 AND owner_role IS NULL AND last_pid NOT NULL"""
# Their indexes are named: to the planner inode 0 is one of many inodes, and not that of every row in TIME_WAIT.
_WAITS = f"""
SELECT id, netns, local_port, local_ip, device, listener_inode, owner_role FROM connection INDEXED BY {{index}}
WHERE {WAITING} AND netns = ? AND proto = 'tcp' AND owner_role IS NOT 'last'"""
_WAITING_NEW = _WAITS.format(index="connection_changed") + " AND changed_seq = ?"
_WAITING_AT = _WAITS.format(index="connection_waiting") + " AND local_port = ?"
_LISTENERS_AT = """
SELECT inode, local_ip, device FROM connection
WHERE netns = ? AND local_port = ? AND state = 'LISTEN' AND proto = 'tcp' AND inode <> 0"""
_SET_PENDING = """
UPDATE connection SET pid = ?, start_ticks = ?, holder_netns = ?, holder_seen_s = ?, owner_role = ?,
listener_inode = ?, changed_seq = ? WHERE id = ?"""
# Since when nothing was missed: each process of every namespace was looked at after it.
_SEARCHED_SINCE = """
SELECT min(pass_began_s), count(*) = count(pass_began_s) AND total(denied) = 0
  AND NOT EXISTS (SELECT 1 FROM loss WHERE name IN ('processes_denied', 'namespaces_left_out') AND count > 0)
FROM namespace"""
_NEVER_HELD = f"SELECT id FROM connection WHERE {UNHELD} AND inode_seen_s <= ?"
_SET_KERNEL = "UPDATE connection SET owner_role = 'kernel', changed_seq = ? WHERE id = ?"


class Unheld:
    """Within one transaction: first the notes, before what they speak of changes, then `update` once."""

    def __init__(self, database: sqlite3.Connection, history: History) -> None:
        self._database = database
        self._history = history
        # Row id -> which row it was, by namespace and key, and who owned it when the transaction began, as _REMEMBER
        # wants it. The id of one that goes may be given to another in the same transaction.
        self._before: dict[int, tuple[tuple[int, SocketKey], tuple[Any, ...]]] = {}
        self._places: set[Place] = set()
        self._new_in: set[int] = set()

    def note_holders(self, inodes: Iterable[int]) -> None:
        """Before a holder of these goes, or what is known of it."""
        if not self._history.first:
            wanted = json.dumps(sorted(inode for inode in inodes if inode))
            self._note(self._database.execute(_OF_INODES, (wanted,)))

    def note_closed(self, netns: int, keys: Iterable[SocketKey]) -> None:
        """Before rows of a namespace lose their inode, or are written with none for the first time."""
        for key in keys:
            self._new_in.add(netns)
            if not self._history.first:
                self._note(self._database.execute(_OF_KEY, (netns, key)))

    def note_places(self, places: Iterable[Place]) -> None:
        """Where listeners, or their holders, come or go."""
        self._places.update(places)

    def update(self) -> None:
        """Sets the owners of rows without holder that this transaction wrote, or whose reasons it changed."""
        seq = self._history.seq
        without = self._database.execute(_WITHOUT, (json.dumps(sorted(self._before)),)).fetchall()
        self._database.executemany(
            _REMEMBER,
            (
                (*self._before[row_id][1], row_id)
                for row_id, *row in without
                if self._before[row_id][0] == tuple(row)
            ),
        )
        if self._new_in and not self._history.first:
            self._database.execute(_SET_LAST, (seq,))
        self._update_pending(seq)
        self._update_kernel(seq)

    def _note(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for row_id, netns, key, *owner in rows:
            # The first is the one from before, when its process was still known.
            self._before.setdefault(row_id, ((netns, key), tuple(owner)))

    def _update_pending(self, seq: int) -> None:
        waiting: dict[int, tuple[Any, ...]] = {}
        for netns in self._new_in:
            waiting.update((row[0], row) for row in self._database.execute(_WAITING_NEW, (netns, seq)))
        for place in self._places:
            waiting.update((row[0], row) for row in self._database.execute(_WAITING_AT, place))
        if not waiting:
            return
        listeners = {place: [Listener(*row) for row in self._database.execute(_LISTENERS_AT, place)]
                     for place in {(row[1], row[2]) for row in waiting.values()}}  # fmt: skip
        owners = Owners(self._database, {one.inode for found in listeners.values() for one in found})
        chosen: list[tuple[Any, ...]] = []
        for row_id, netns, port, local_ip, device, listener_inode, role in waiting.values():
            inode, choice = _pending(listeners_of(local_ip, device, listeners[netns, port]), owners)
            # One that had nobody and has nobody is as before.
            if role is not None or listener_inode is not None or inode is not None:
                chosen.append((*choice, inode, seq, row_id))
        self._history.keep_changing_roles([row[-1] for row in chosen])
        self._database.executemany(_SET_PENDING, chosen)

    def _update_kernel(self, seq: int) -> None:
        since_s, complete = self._database.execute(_SEARCHED_SINCE).fetchone()
        if not complete or since_s is None:
            return
        found = [row_id for (row_id,) in self._database.execute(_NEVER_HELD, (since_s,))]
        self._history.keep_changing_roles(found)
        self._database.executemany(_SET_KERNEL, ((seq, row_id) for row_id in found))


def _pending(listeners: Collection[Listener], owners: Owners) -> tuple[int | None, Choice]:
    """The inode of the listener, and its owner."""
    inode = waits_at(listeners, owners.processes)
    choice = NOBODY if inode is None else owners.choice(inode, True, "pending")
    return (None, NOBODY) if choice is NOBODY else (inode, choice)
