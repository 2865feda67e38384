"""One namespace as its worker sees it: looks, the paced pass, and the snapshots that come of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.clock import Clock
from pipeline.model.connection import Connection, SocketKey
from pipeline.model.container import Container
from pipeline.model.process import Process, Task
from pipeline.model.snapshot import Health, Snapshot
from pipeline.procfs.root import ProcRoot
from pipeline.walk.addresses import OwnAddresses
from pipeline.walk.carried import Carried
from pipeline.walk.elsewhere import Elsewhere, ElsewhereSearch
from pipeline.walk.holdings import Holdings, HoldingsChange, TaskFiles
from pipeline.walk.pacer import Pacer, Pacing
from pipeline.walk.reading import TableReader
from pipeline.walk.search import OwnerSearch
from pipeline.walk.table import ConnectionTable
from pipeline.walk.walker import Walker

_log = logging.getLogger(__name__)

ROLE = "netns"
_RELIST_PASSES = 6
# How old a look may become where the gate has proof that nothing changed, and nothing waits to be accepted: a look
# walks the host's whole TCP hash, whatever is in it of this namespace.
_STILL_LOOK_S = 600.0


class NamespaceWalk:
    """Everything known of one namespace. Does nothing by itself: its worker calls it when something is due.

    `life` and `generation` order the snapshots: the first one taken is a base with `generation + 1`.
    """

    def __init__(
        self,
        netns: int,
        root: ProcRoot,
        reader: TableReader,
        pacing: Pacing,
        clock: Clock,
        life: int = 0,
        generation: int = 0,
        start_s: float | None = None,
        traffic_interval_s: float | None = None,
    ) -> None:
        self.netns = netns
        self.health = Health()
        self.pacer = Pacer(pacing, clock.monotonic_s() if start_s is None else start_s)
        # Ways into the namespace that need no task of it, for open_netns.
        self.paths: tuple[str, ...] = ()
        self.look_again = False
        self._tasks: set[Task] = set()
        self._reader = reader
        self._clock = clock
        self._life = life
        self._generation = generation
        self._block = pacing.fd_block
        self._table = ConnectionTable()
        self._carried = None if traffic_interval_s is None else Carried(traffic_interval_s)
        self._walker = Walker(root, netns, Holdings(), self.health)
        # What is known of each task; only to be looked at.
        self.files: Mapping[Task, TaskFiles] = self._walker.holdings.files
        self._search = OwnerSearch(self._walker, self._table, clock)
        self._elsewhere = ElsewhereSearch(root, self._walker)
        self._pass: Iterator[None] | None = None
        self._was_late = False
        self._source = "sock_diag"
        self._cookie: int | None = None
        self._taken_at_s = clock.monotonic_s()
        self._walked_at_s: float | None = None
        # When the last pass that left out nothing began, and the one that runs if it leaves out nothing.
        self._first_look_s: float | None = None
        self._searched_since_s: float | None = None
        self._pass_began_s: float | None = None
        self._changed: dict[SocketKey, Connection] = {}
        self._gone: set[SocketKey] = set()
        self._needs_base = True
        self._tables_changed = True
        self._addresses = OwnAddresses()

    def begin(self, netns: int, life: int, start_s: float) -> None:
        """Makes it the walk of another namespace, whose first pass begins at `start_s`; only before the first look."""
        self.netns = self._reader.netns_inode = self._walker.netns_inode = netns
        self._life = life
        self.pacer.begin(start_s)

    def set_members(self, added: Iterable[Task], removed: Iterable[Task]) -> None:
        """Changes the tasks that live in this namespace."""
        for task in removed:
            self._tasks.discard(task)
            self._walker.forget(task)
        self._tasks.update(added)

    def look(self, limit_cpu_s: float = 3600.0) -> None:
        """Reads the tables, then looks for the holders of sockets that have none, for `limit_cpu_s` of CPU
        time at most; `look_again` says that this was not enough. Raises: Vanished, Denied (nothing read)."""
        tasks = sorted(self._tasks)
        reading = self._reader.read(self.paths, tasks)
        self._taken_at_s = self._clock.monotonic_s()
        self.health.looks += 1
        self.health.dumps_interrupted += reading.interrupted
        self.health.rows_malformed += reading.malformed
        if reading.cookie != self._cookie and None not in (reading.cookie, self._cookie):
            # The inode was given to another namespace: nothing of the old one may live on.
            self._table = ConnectionTable()
            self._search = OwnerSearch(self._walker, self._table, self._clock)
            self._changed, self._gone = {}, set()
            self._needs_base = True
        self._source, self._cookie = reading.source, reading.cookie or self._cookie
        self._addresses.note(reading.addresses)
        change = self._table.update(reading)
        self._tables_changed = self._tables_changed or bool(change.changed or change.gone)
        for key in change.gone:
            self._changed.pop(key, None)
            self._gone.add(key)
        if self._carried is not None:
            cookies = [connection.cookie for connection in change.changed]
            self._carried.update(reading.traffic, cookies, self._taken_at_s)
        for connection in change.changed:
            self._gone.discard(connection.key)
            self._changed[connection.key] = connection
        self.look_again = not self._search.run(tasks, limit_cpu_s)
        if self._walked_at_s is None:
            if self._first_look_s is None:
                self._first_look_s = self._taken_at_s
            if not self.look_again:
                # A first search visits every task.
                self._walked_at_s, self._searched_since_s = self._taken_at_s, self._first_look_s

    @property
    def is_as_seen(self) -> bool:
        """Whether the last look still holds where the gate's counters stand still."""
        age_s = self._clock.monotonic_s() - self._taken_at_s
        return self.health.looks > 0 and not self._table.has_waiting and age_s < _STILL_LOOK_S

    def walk_block(self) -> bool:
        """The next block of the paced pass; True when it ended the pass.

        While the tables stay as they are, processes with as many descriptors as before are listed again in every
        sixth pass only. Missed until then, for a minute: a descriptor that was closed while another one was opened,
        for a socket that another namespace's tables have or that was there before.
        """
        if self._pass is None:
            relist = self._tables_changed or self.health.passes % _RELIST_PASSES == 0
            self._tables_changed = False
            self._pass = self._walker.pass_in_blocks(self._tasks, self._block, relist)
            self._pass_began_s = self._clock.monotonic_s() if relist else None
        now_s = self._clock.monotonic_s()
        for _ in self._pass:
            self.pacer.block_done(now_s)
            return False
        self._pass = None
        plan = self.pacer.pass_done(now_s)
        self._walked_at_s = now_s
        if self._pass_began_s is not None:
            self._searched_since_s = self._pass_began_s
        self.health.passes += 1
        if plan.late:
            self.health.passes_late += 1
            # Of many in a row the counter tells; the first may have to wait until the first looks are paid for.
            if not self._was_late and self.health.passes > 1:
                _log.warning("a pass over %d tasks took longer than its target allows", len(self._tasks))
        self._was_late = plan.late and self.health.passes > 1
        return True

    def held_elsewhere(self) -> list[Elsewhere]:
        """Other namespaces that the processes of this one hold, by what was read so far."""
        return self._elsewhere.find(self._table.inodes)

    @property
    def has_changes(self) -> bool:
        return bool(self._changed or self._gone or self._addresses.changed or self._walker.holdings.changed)

    def take_snapshot(self) -> Snapshot:
        """The next generation: a base at first and after `want_base`, else the changes to the last one."""
        self._generation += 1
        held = self._walker.holdings.take_change()
        changed, gone = list(self._changed.values()), list(self._gone)
        self._changed, self._gone = {}, set()
        if self._needs_base:
            self._needs_base = False
            # Of the first look, every row was just converted.
            everything = changed if self._generation == 1 else self._table.connections()
            snapshot = self._snapshot(True, everything, [], self._walker.holdings.everything())
        else:
            snapshot = self._snapshot(False, changed, gone, held)
        self._addresses.told()
        return snapshot

    def want_base(self) -> None:
        """Makes the next snapshot whole: a generation was lost on the way."""
        self._needs_base = True

    def base(self) -> Snapshot:
        """The current generation as a whole."""
        return self._snapshot(True, self._table.connections(), [], self._walker.holdings.everything())

    def _snapshot(
        self, base: bool, connections: Sequence[Connection], gone: Sequence[SocketKey], held: HoldingsChange
    ) -> Snapshot:
        return Snapshot(
            ROLE, self.netns, self._cookie, self._life, self._generation, base,
            self._taken_at_s, self._walked_at_s, self._source, len(self._walker.denied), self.health.copy(),
            connections, gone, held.processes, held.gone_processes, held.holdings, held.gone_holdings,
            self._containers_of(held.processes) if self._walker.containers else (), self._searched_since_s,
            traffic=() if self._carried is None else self._carried.tell(self._table, everything=base),
            addresses=self._addresses.news(base),
        )  # fmt: skip

    def _containers_of(self, processes: Sequence[Process]) -> list[Container]:
        """By name."""
        containers = self._walker.containers
        names = {process.container for process in processes if process.container is not None}
        return [containers[name] for name in sorted(names) if name in containers]
