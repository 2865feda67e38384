"""The chosen owner of each connection, kept on its row: the join across namespaces, by socket inode.

Rows that no process holds get theirs from store/unheld.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable

from pipeline.merge.owners import Holder, primary

# pid, start_ticks, holder_netns, holder_seen_s, owner_role: columns of a connection row, in this order.
Choice = tuple[int | None, int | None, int | None, float | None, str | None]
NOBODY: Choice = (None, None, None, None, None)

_HOLDERS_OF = """
SELECT h.inode, h.pid, h.start_ticks, h.fd, h.reporter, h.seen_s
FROM json_each(?) AS wanted CROSS JOIN holding AS h ON h.inode = wanted.value"""
_ROWS_OF = """
SELECT c.inode, c.id, c.state = 'LISTEN', c.netns, c.local_port
FROM json_each(?) AS wanted CROSS JOIN connection AS c ON c.inode = wanted.value"""
_SET_OWNER = """
UPDATE connection SET pid = ?, start_ticks = ?, holder_netns = ?, holder_seen_s = ?, owner_role = ?, changed_seq = ?
WHERE id = ?"""
# Where somebody listens: (namespace inode, port).
Place = tuple[int, int]


class Owners:
    """The holders of some inodes, read at once, and what follows from them for the rows of those inodes."""

    def __init__(self, database: sqlite3.Connection, inodes: Collection[int]) -> None:
        self._database = database
        self._holders: dict[int, list[Holder]] = {}
        # Sorted: neighbours in the index are read one after the other.
        wanted = json.dumps(sorted(inodes))
        for inode, *holder in database.execute(_HOLDERS_OF, (wanted,)):
            held = Holder(*holder)
            if inode in self._holders:
                self._holders[inode].append(held)
            else:
                self._holders[inode] = [held]

    def choice(self, inode: int, listening: bool, role: str = "holder") -> Choice:
        """The owner columns of a row with this inode, which must be one of those asked for, or 0."""
        holders = self._holders.get(inode) if inode else None
        if holders is None:
            return NOBODY
        pid, start_ticks, _, reporter, seen_s = primary(holders, listening)
        return (pid, start_ticks, reporter, seen_s, role)

    def processes(self, inode: int) -> set[tuple[int, int]]:
        """(pid, start_ticks) of all holders of an inode that was asked for."""
        return {(held.pid, held.start_ticks) for held in self._holders.get(inode, ())}

    def update_rows(self, inodes: Iterable[int], seq: int) -> set[Place]:
        """Rewrites the owner of the stored rows of these inodes, which count as changed by commit `seq`; returns where
        some of them listen."""
        wanted = json.dumps(sorted(inode for inode in inodes if inode))
        rows = self._database.execute(_ROWS_OF, (wanted,)).fetchall()
        self._database.executemany(
            _SET_OWNER,
            ((*self.choice(inode, bool(listening)), seq, row_id) for inode, row_id, listening, *_ in rows),
        )
        return {(netns, port) for _, _, listening, netns, port in rows if listening}
