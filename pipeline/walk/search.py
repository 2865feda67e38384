"""Looking for the holders of new sockets first where they most likely are, before the paced pass gets there.

Only descriptors in doubt are read again at first: a socket that is still missing in the next search has every
descriptor read, as its number may have been a file's before. What it can miss, until the next pass: that a process
closed one of several descriptors of a socket and opened, under the same number, what is no socket; a socket held only
from another namespace (that namespace's worker finds it).
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from pipeline.clock import Clock
from pipeline.model.process import Task
from pipeline.walk.table import ConnectionTable
from pipeline.walk.walker import Walker


class OwnerSearch:
    """Keeps what is worth searching: sockets searched everywhere in vain are left to the pass."""

    def __init__(self, walker: Walker, table: ConnectionTable, clock: Clock) -> None:
        self._walker = walker
        self._table = table
        self._clock = clock
        self._in_vain: set[int] = set()
        # Sockets that one search did not find: many have gone by the next one.
        self._missed: set[int] = set()
        # Sockets that left the tables while a task is still listed as their holder: it closed a descriptor.
        self._lost: set[int] = set()
        # A search that stopped at its limit: the tasks that it asked already, and the sockets it asks for.
        self._asked: set[Task] = set()
        self._asked_for: set[int] = set()

    def wanted(self) -> set[int]:
        """Inodes in the tables that nobody is known to hold, without those searched in vain."""
        unowned = self._table.inodes - self._walker.holdings.holders.keys()
        self._in_vain &= unowned
        self._missed &= unowned
        return unowned - self._in_vain

    def run(self, tasks: Iterable[Task], limit_cpu_s: float) -> bool:
        """One search, after a reading of the tables: new tasks and those whose number of descriptors changed
        are read in any case; the others only while a socket is without holder. False: it stopped at
        `limit_cpu_s` of CPU time and is to be run again."""
        walker, files = self._walker, self._walker.holdings.files
        self._lost = (self._lost | self._table.take_left()) & walker.holdings.holders.keys()
        stop_at_s = self._clock.cpu_s() + limit_cpu_s
        # Not only those that left the tables: a pass may have seen a socket that came and went between two readings,
        # and its number may be another's by now.
        # Nor is one of several holders known to hold it still.
        wanted, doubtful = self.wanted(), self._lost
        if wanted:
            doubtful = (walker.holdings.holders.keys() - self._table.inodes) | walker.holdings.shared
        thorough = not wanted.isdisjoint(self._missed)
        unchanged: list[Task] = []
        for task in tasks:
            if not walker.is_known(task):
                walker.visit(task)
            elif task in files:
                changed = walker.count_changed(task)
                if changed:
                    walker.refresh(task, doubtful)
                if thorough or not changed:
                    unchanged.append(task)
            if self._clock.cpu_s() > stop_at_s:
                return False
        return self._ask_unchanged(unchanged, doubtful, thorough, stop_at_s)

    def _ask_unchanged(self, tasks: list[Task], doubtful: Set[int], thorough: bool, stop_at_s: float) -> bool:
        """Refreshes `tasks`, or reads all of them, until every socket has a holder, going on where the limit stopped
        it the last time.

        False: to be run again, also for sockets that appeared when a part of the tasks had been asked already.
        """
        missing = self.wanted()
        if not self._asked:
            self._asked_for = set(missing)
        remaining = [task for task in tasks if task not in self._asked] if missing else []
        for task in self._likely_first(remaining, missing):
            if thorough:
                self._walker.visit(task)
            else:
                self._walker.refresh(task, doubtful | self._walker.holdings.shared)
            self._asked.add(task)
            missing -= self._walker.holdings.holders.keys()
            if not missing:
                break
            if self._clock.cpu_s() > stop_at_s:
                return False
        self._asked.clear()
        # Where all tasks were read just now there is nothing left to read again.
        (self._in_vain if thorough or not tasks else self._missed).update(missing & self._asked_for)
        return missing <= self._asked_for

    def _likely_first(self, tasks: list[Task], missing: set[int]) -> list[Task]:
        """Tasks that lost a socket first (a close and an open leave the count as it was), then those with the
        uid of a missing socket, then the others."""
        holders, files = self._walker.holdings.holders, self._walker.holdings.files
        lost_by = {task for inode in self._lost for task in holders.get(inode, ())}
        uids = self._table.uids_of(missing)

        def rank(task: Task) -> int:
            return 0 if task in lost_by else 1 if files[task].process.uid in uids else 2

        return sorted((task for task in tasks if task in files), key=rank)
