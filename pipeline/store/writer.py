"""The store: the latest state of every namespace, joined; one transaction per batch of snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.clock import Clock
from pipeline.errors import Malformed
from pipeline.merge.changes import combine
from pipeline.model.delta import Delta
from pipeline.model.flow_snapshot import FlowSnapshot
from pipeline.model.netns import BudgetRow, RosterRow, UsageRow, WorkerRow
from pipeline.model.snapshot import Snapshot
from pipeline.store import database
from pipeline.store.closed import Ended, Limits
from pipeline.store.content import ContentWriter
from pipeline.store.delta import read_delta
from pipeline.store.edges import forget
from pipeline.store.history import Past
from pipeline.store.reader import Reader

# A smaller difference is two clock readings that were not made at the same instant.
_WALL_STEP_S = 0.05

_LIST = """
INSERT INTO namespace(netns, name, names, listed, listed_at_s, worker_pid, state, checked_at_s)
VALUES (?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT(netns) DO UPDATE SET
name = excluded.name, names = excluded.names, listed = 1, listed_at_s = coalesce(listed_at_s, excluded.listed_at_s),
worker_pid = excluded.worker_pid, state = excluded.state, checked_at_s = excluded.checked_at_s
WHERE (name, names, listed, worker_pid, state, checked_at_s)
IS NOT (excluded.name, excluded.names, 1, excluded.worker_pid, excluded.state, excluded.checked_at_s)"""
# A dead worker's rows are known to be left behind; those of a live one, once nothing proved them for too long.
_MARK_STALE = """
UPDATE namespace SET stale = now.stale FROM (
  SELECT netns, taken_at_s IS NULL OR state IS 'restarting'
    OR max(taken_at_s, coalesce(checked_at_s, taken_at_s)) < ? AS stale FROM namespace) AS now
WHERE namespace.netns = now.netns AND namespace.stale <> now.stale"""
# Ready once every listed namespace was seen. One that never is (its worker cannot start) holds up no longer than it
# takes to call a namespace stale.
_MARK_READY = """
UPDATE meta SET ready = 1 WHERE ready = 0 AND NOT EXISTS (
  SELECT 1 FROM namespace WHERE listed AND taken_at_s IS NULL AND listed_at_s >= ?)"""


class Commit(NamedTuple):
    """One committed state. `removed`: namespace inodes that it dropped, for `Latest.forget`.

    `touched`: namespace inodes whose connections it added, changed or removed, sorted; a namespace that was only seen
    again is none. `edges`: whether one of those connections is part of an edge. `ended`: those in which a connection
    ended, whether or not there ever was a row of it, sorted.
    """

    seq: int
    removed: tuple[int, ...] = ()
    touched: tuple[int, ...] = ()
    edges: bool = False
    ended: tuple[int, ...] = ()


# What a write inside a transaction tells: Commit without its seq.
_Outcome = tuple[tuple[int, ...], tuple[int, ...], bool, tuple[int, ...]]
_NOTHING: _Outcome = ((), (), False, ())
# As [closed] has them unless set otherwise.
_ENDED_LIMITS = Limits(60.0, 20_000)


class Store:
    """Written by one thread; `reader()` and `Reader(path)` are for asking.

    `seq` grows by one with every call that changed something. Opening replaces what a predecessor left at `path`.
    `keeps_past`: whether rows that change or go are kept for a minute, for `delta` and for those who wait. It costs
    a fifth of the work of a change, and may be set at any time; it takes effect with the next commit.
    """

    def __init__(
        self, path: str, epoch: str, host: str, clock: Clock, stale_after_s: float,
        ended_limits: Limits = _ENDED_LIMITS,
    ) -> None:  # fmt: skip
        self.path = path
        self.epoch = epoch
        self.seq = 0
        self.ready = False
        self._clock = clock
        self._stale_after_s = stale_after_s
        self._ended_limits = ended_limits
        self._has_roster = False
        self.keeps_past = True
        self._workers: list[WorkerRow] | None = None
        self._wall_offset_s = clock.wall_s() - clock.monotonic_s()
        self._database = database.create(path, clock)
        self._past = Past(self._database, clock)
        self._own_reader = Reader(path, clock, shared=self._database)
        self._database.execute(
            "INSERT INTO meta(epoch, host, seq, started_s, wall_offset_s, ready, log_from_seq)"
            " VALUES (?, ?, 0, ?, ?, 0, 1)",
            (epoch, host, clock.monotonic_s(), self._wall_offset_s),
        )

    def apply(
        self,
        snapshots: Sequence[Snapshot],
        roster: Sequence[RosterRow] | None = None,
        flows: Sequence[FlowSnapshot] = (),
    ) -> Commit:
        """Merges snapshots that `Latest` let through, in that order, flow snapshots likewise, and the roster if it was
        read anew: one commit of all.

        A namespace that the roster names no more is removed. One that it never named (its snapshot came first) stays
        until it is stale. Raises: Malformed for a snapshot with values that no worker of ours sends; nothing is changed
        then.
        """

        def write() -> _Outcome:
            content = self._content()
            for change in combine(snapshots).values():
                content.write(change)
            for flow_snapshot in flows:
                content.write_flows(flow_snapshot)
            removed = self._write_roster(roster, content) if roster is not None else ()
            content.finish()
            self._mark()
            return (removed, *content.touched(), tuple(sorted(content.ended.netns)))

        try:
            return self._transaction(write)
        except (
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            OverflowError,
            *database.VALUE_ERRORS,
        ) as error:
            raise Malformed(f"a snapshot with values that cannot be stored: {error}") from error

    def apply_flows(self, flows: Sequence[FlowSnapshot]) -> Commit:
        """Merges flow snapshots that `Latest` let through, in that order. Raises: Malformed, as `apply`."""
        return self.apply((), flows=flows)

    def tick(self) -> Commit:
        """Marks namespaces that nothing proved for too long, drops unlisted ones, follows steps of the wall clock."""

        def write() -> _Outcome:
            self._mark()
            wall_offset_s = self._clock.wall_s() - self._clock.monotonic_s()
            if abs(wall_offset_s - self._wall_offset_s) > _WALL_STEP_S:
                self._wall_offset_s = wall_offset_s
                self._database.execute("UPDATE meta SET wall_offset_s = ?", (wall_offset_s,))
            forget(self._database, self._clock.monotonic_s())
            content = self._content()
            content.ended.tidy()
            if not self._has_roster:
                return _NOTHING
            removed = self._remove("NOT listed AND stale", content)
            orphans = content.remove_flows(self._clock.monotonic_s() - self._stale_after_s)
            content.finish()
            return ((*removed, *orphans), *content.touched(), ())

        return self._transaction(write)

    def set_workers(self, workers: Sequence[WorkerRow]) -> Commit:
        """Replaces what `status` says of our own processes."""

        def write() -> _Outcome:
            if list(workers) != self._workers:
                self._database.execute("DELETE FROM worker")
                self._database.executemany(
                    "INSERT INTO worker(role, pid, netns, state, restarts, cpu_share) VALUES (?, ?, ?, ?, ?, ?)",
                    ((role, pid, json.dumps(netns), *rest) for role, pid, netns, *rest in workers),
                )
            return _NOTHING

        commit = self._transaction(write)
        self._workers = list(workers)
        return commit

    def set_usage(self, usage: Sequence[UsageRow], budget: BudgetRow | None = None) -> Commit:
        """Replaces the measured CPU and memory of our own processes, joined to the workers by pid, and their sum."""

        def write() -> _Outcome:
            self._database.execute("DELETE FROM usage")
            self._database.execute("DELETE FROM budget")
            if budget is not None:
                self._database.execute("INSERT INTO budget VALUES (?, ?)", budget)
            self._database.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?)", usage)
            return _NOTHING

        return self._transaction(write)

    def set_losses(self, losses: Mapping[str, int]) -> Commit:
        """Replaces the aggregator's own counters of what it dropped; `status` shows them beside the workers'."""

        def write() -> _Outcome:
            self._database.executemany(
                "INSERT INTO loss VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET count = excluded.count"
                " WHERE count <> excluded.count",
                losses.items(),
            )
            return _NOTHING

        return self._transaction(write)

    def delta(self, netns: int, seq: int) -> Delta:
        """What commit `seq` and any later one changed in a namespace's connections."""
        with self._own_reader.moment():
            return read_delta(self._own_reader, netns, seq)

    def reader(self, time_limit_s: float = 5.0) -> Reader:
        """A reader for the calling thread; of a store in memory it shares the connection, hence the thread."""
        shared = self._database if self.path == database.MEMORY else None
        return Reader(self.path, self._clock, time_limit_s, shared=shared)

    def close(self) -> None:
        """Closes the file; it stays where it is."""
        self._database.close()

    def _transaction(self, write: Callable[[], _Outcome]) -> Commit:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            before = self._database.total_changes
            self._past.tidy(self.seq + 1, self.keeps_past)
            outcome = write()
            if self._database.total_changes == before:
                self._database.execute("ROLLBACK")
                return Commit(self.seq)
            self._database.execute("UPDATE meta SET seq = ?", (self.seq + 1,))
            (ready,) = self._database.execute("SELECT ready FROM meta").fetchone()
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self.seq += 1
        self.ready = bool(ready)
        return Commit(self.seq, *outcome)

    def _content(self) -> ContentWriter:
        seq = self.seq + 1
        ended = Ended(self._database, seq, self._clock.monotonic_s(), self._ended_limits)
        return ContentWriter(self._database, self._past.history(seq), ended)

    def _write_roster(self, roster: Sequence[RosterRow], content: ContentWriter) -> tuple[int, ...]:
        self._has_roster = True
        now_s = self._clock.monotonic_s()
        named = [row for row in roster if row.state != "gone"]
        removed = self._remove(
            "listed AND netns NOT IN (SELECT value FROM json_each(?))", content,
            json.dumps([row.netns for row in named]),
        )  # fmt: skip
        self._database.executemany(
            _LIST,
            ((row.netns, row.names[0] if row.names else None, json.dumps(row.names), now_s, row.worker_pid, row.state,
              row.checked_at_s) for row in named),
        )  # fmt: skip
        return removed

    def _remove(self, where: str, content: ContentWriter, *params: str) -> tuple[int, ...]:
        found = self._database.execute(f"SELECT netns FROM namespace WHERE {where}", params).fetchall()
        for (netns,) in found:
            content.remove(netns)
        self._database.executemany("DELETE FROM namespace WHERE netns = ?", found)
        return tuple(netns for (netns,) in found)

    def _mark(self) -> None:
        limit_s = self._clock.monotonic_s() - self._stale_after_s
        self._database.execute(_MARK_STALE, (limit_s,))
        if self._has_roster and not self.ready:
            self._database.execute(_MARK_READY, (limit_s,))
