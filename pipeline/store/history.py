"""What rows were before they changed or went, for whoever follows: table `past`."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Collection, Iterable

from pipeline.clock import Clock
from pipeline.model.connection import SocketKey
from pipeline.store.rows import CONNECTION_COLUMNS

_KEPT_S = 60.0
_MAX_IMAGES = 20_000

_KEPT = (
    "id",
    "netns",
    "key",
    *CONNECTION_COLUMNS,
    "direction",
    "pid",
    "start_ticks",
    "owner_role",
    "nat",
    "added_seq",
)
_OWNERS = (
    "CASE WHEN c.owner_role = 'last' THEN json_array(json_array(c.last_pid, c.last_comm, c.last_container)) ELSE"
    " (SELECT json_group_array(json_array(h.pid, p.comm, p.container)) FROM holding h LEFT JOIN process p"
    " ON p.pid = h.pid AND p.start_ticks = h.start_ticks AND p.shown"
    " WHERE h.inode = nullif(coalesce(c.listener_inode, c.inode), 0)) END"
)
_KEEP = (
    f"INSERT INTO past(until_seq, gone, {', '.join(_KEPT)}, owners)"
    f" SELECT ?, {{gone}}, {', '.join('c.' + name for name in _KEPT)}, {_OWNERS} FROM {{rows}}"
    # The first image of a commit is the one from before it.
    " ON CONFLICT(until_seq, id) DO {conflict}"
)


def _keep(rows: str, *, gone: bool) -> str:
    return _KEEP.format(rows=rows, gone=int(gone), conflict="UPDATE SET gone = 1" if gone else "NOTHING")


_BY_KEY = "connection c WHERE c.netns = ? AND c.key = ?"
_BY_INODE = "json_each(?) AS wanted CROSS JOIN connection c ON c.inode = wanted.value WHERE 1"
_BY_LISTENER = "json_each(?) AS wanted CROSS JOIN connection c ON c.listener_inode = wanted.value WHERE 1"
_BY_ID = "json_each(?) AS wanted CROSS JOIN connection c ON c.id = wanted.value WHERE 1"
_CHANGING = _keep(_BY_KEY, gone=False)
_GOING = _keep(_BY_KEY, gone=True)
_CHANGING_OWNERS = _keep(_BY_INODE, gone=False)
_CHANGING_PENDING = _keep(_BY_LISTENER, gone=False)
_CHANGING_ROLES = _keep(_BY_ID, gone=False)
_ALL_GOING = _keep("connection c WHERE c.netns = ?", gone=True)


class History:
    """Keeps the images of rows within the transaction of commit `seq`; call before what is kept is written over."""

    def __init__(self, database: sqlite3.Connection, seq: int, keeps: bool) -> None:
        self.seq = seq
        self._database = database
        # Nothing was there before: there is nothing to keep.
        (self.first,) = database.execute("SELECT NOT EXISTS (SELECT 1 FROM connection)").fetchone()
        self._keeps = keeps and not self.first

    def keep_changing(self, netns: int, keys: Iterable[SocketKey]) -> None:
        """Rows about to be written over; keys without a row are none."""
        if self._keeps:
            self._database.executemany(_CHANGING, ((self.seq, netns, key) for key in keys))

    def keep_going(self, netns: int, keys: Iterable[SocketKey]) -> None:
        """Rows about to be deleted."""
        if self._keeps:
            self._database.executemany(_GOING, ((self.seq, netns, key) for key in keys))

    def keep_all_going(self, netns: int) -> None:
        """All rows of a namespace, about to be deleted."""
        if self._keeps:
            self._database.execute(_ALL_GOING, (self.seq, netns))

    def keep_changing_owners(self, inodes: Collection[int]) -> None:
        """Rows of any namespace whose holders, or what is shown of them, are about to change."""
        if self._keeps and inodes:
            wanted = json.dumps(sorted(inode for inode in inodes if inode))
            self._database.execute(_CHANGING_OWNERS, (self.seq, wanted))
            self._database.execute(_CHANGING_PENDING, (self.seq, wanted))

    def keep_changing_roles(self, row_ids: Collection[int]) -> None:
        """Rows about to get another owner although none of their holders changed."""
        if self._keeps and row_ids:
            self._database.execute(_CHANGING_ROLES, (self.seq, json.dumps(sorted(row_ids))))


class Past:
    """How long images are kept, and whether. `meta.log_from_seq` says for which commits they are whole."""

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._keeps = True
        # (CLOCK_MONOTONIC, seq, images) of commits, oldest first; without the newest, which is not yet counted.
        self._commits: deque[tuple[float, int, int]] = deque()
        self._images = 0
        self._newest_seq = 0

    def history(self, seq: int) -> History:
        """For the transaction of commit `seq`."""
        self._newest_seq = seq
        return History(self._database, seq, self._keeps)

    def tidy(self, seq: int, keeps: bool) -> None:
        """At the beginning of the transaction of commit `seq`: drops what is old, begins or ends the keeping."""
        if keeps != self._keeps:
            self._keeps = keeps
            self._commits.clear()
            self._images = self._newest_seq = 0
            self._database.execute("DELETE FROM past")
            self._database.execute("UPDATE meta SET log_from_seq = ?", (seq if keeps else None,))
        if self._keeps:
            self._count()
            self._drop()

    def _count(self) -> None:
        seq, self._newest_seq = self._newest_seq, 0
        if seq:
            (images,) = self._database.execute(
                "SELECT count(*) FROM past WHERE until_seq = ?", (seq,)
            ).fetchone()
            if images:
                self._commits.append((self._clock.monotonic_s(), seq, images))
                self._images += images

    def _drop(self) -> None:
        oldest_s = self._clock.monotonic_s() - _KEPT_S
        dropped_seq = 0
        while self._commits and (self._commits[0][0] < oldest_s or self._images > _MAX_IMAGES):
            _, dropped_seq, images = self._commits.popleft()
            self._images -= images
        if dropped_seq:
            self._database.execute("DELETE FROM past WHERE until_seq <= ?", (dropped_seq,))
            self._database.execute("UPDATE meta SET log_from_seq = ?", (dropped_seq + 1,))
