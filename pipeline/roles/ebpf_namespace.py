"""One namespace as the eBPF worker sees it: its sockets, the processes that live in it, the snapshots of both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.gate import Counters, read_counters
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Connection, SocketKey
from pipeline.model.container import Container
from pipeline.model.event import SocketEvent
from pipeline.model.held_socket import HeldSocket
from pipeline.model.netns import NetnsInode
from pipeline.model.process import Process, Task, registered
from pipeline.model.snapshot import Health, Snapshot
from pipeline.model.socket_row import to_connection
from pipeline.procfs.root import ProcRoot
from pipeline.track.sockets import Sockets
from pipeline.walk.addresses import OwnAddresses
from pipeline.walk.carried import Carried
from pipeline.walk.holdings import Holdings, HoldingsChange, TaskFiles
from pipeline.walk.namespace import ROLE
from pipeline.walk.reading import TableReader
from pipeline.walk.walker import Walker

SOURCE = "ebpf"
# Of a base, for an aggregator that starts later: the newest that ended.
_CLOSED_IN_BASE = 1000
# A dump may take this part of the time, and comes at most so long after the one before.
_DUMP_SHARE = 0.05
_DUMP_APART_MIN_S, _DUMP_APART_MAX_S = 0.2, 2.0
# A namespace whose counters stand still is dumped so seldom.
_DUMP_IDLE_S = 60.0
# Every so many passes each process is asked for its name and container again.
_RENAME_PASSES = 6


class EbpfNamespace:
    """Does nothing by itself: the worker calls it when something is due. The first snapshot is a base."""

    def __init__(
        self, netns: int, life: int, root: ProcRoot, reader: TableReader, clock: Clock, config: Config
    ) -> None:
        self.netns = netns
        self.life = life
        self.health = Health()
        self.paths: tuple[str, ...] = ()
        self.sockets = Sockets()
        # Pids of the processes that live here, as discovery found them.
        self.members: set[int] = set()
        self.dump_wanted = True
        self.dump_allowed_s = 0.0
        self._root = root
        self._reader = reader
        self._clock = clock
        self._retention_s = config.closed.retention_s
        self._asks_traffic = config.tables.tcp_info
        self._carried = Carried(config.tables.full_interval_s)
        self._walker = Walker(root, netns, Holdings(), self.health)
        self.files: Mapping[Task, TaskFiles] = self._walker.holdings.files
        self._unidentified: set[int] = set()
        self._devices: dict[int, str] = {}
        self._addresses = OwnAddresses()
        self._cookie: int | None = None
        self._generation = 0
        self._taken_at_s = clock.monotonic_s()
        self._passed_s: float | None = None
        self._pass_wanted = True
        # At the last dump, and at the last order to look.
        self._counters: Counters | None = None
        self._seen_counters: Counters | None = None
        self._dumped_s = float("-inf")
        self._dump_tried = False
        # By pid: a process that was put into another container has another cgroup, and the same name.
        self._cgroups: dict[int, int] = {}
        # By pid, what only reading it tells: sockets by descriptor, and descriptors of namespaces.
        self.beside: dict[int, tuple[dict[int, int], dict[int, NetnsInode]]] = {}
        self._searched_since_s: float | None = None
        # Of the sockets that the last pass left without holder: those of the pass before it, too, and those that a
        # sweep looked for in vain.
        self._unheld: set[int] = set()
        self._lasting: set[int] = set()
        self._in_vain: set[int] = set()
        self._closed: deque[ClosedConnection] = deque(maxlen=_CLOSED_IN_BASE)
        self._needs_base = True
        self._seen_again = False

    def set_members(self, added: Iterable[Task], removed: Iterable[Task]) -> None:
        """Changes who lives here. Threads are no members of their own: what they hold is their process's."""
        for task in removed:
            if task.tid == task.pid:
                self.members.discard(task.pid)
                self._unidentified.discard(task.pid)
                self.beside.pop(task.pid, None)
                self._cgroups.pop(task.pid, None)
                self._walker.forget(task)
        new = {task.pid for task in added if task.tid == task.pid}
        self.members |= new
        self._unidentified |= new

    def apply(self, event: SocketEvent) -> None:
        """Takes an event of this namespace. Raises: EventsLost."""
        self.sockets.apply(event)
        self._taken_at_s = max(self._taken_at_s, event.time_s)

    def take_pass(
        self, held: Sequence[HeldSocket], processes: Mapping[int, list[HeldSocket]], began_s: float
    ) -> None:
        """Takes a pass that began at `began_s`: all descriptors on this namespace's sockets, and all that the
        processes that live here hold anywhere."""
        if held:
            self._note_cookie(held[0][10])
        self.sockets.take_pass(held, began_s)
        renamed = self.health.passes % _RENAME_PASSES == 0
        for pid, rows in processes.items():
            self.take_process(pid, rows, anew=renamed)
        for task in [task for task in self.files if task.pid not in processes]:
            if task.pid not in self.members:
                self._walker.forget(task)  # never a member, and without sockets by now
            elif renamed or self.files[task].fds:
                self._identify(task.pid, self._fds_beside(task.pid), anew=renamed)
        self.identify_members()
        unheld = {known.row[9] for known in self.sockets.open.values() if known.row[9] and not known.held}
        self._unheld, self._lasting = unheld, self._unheld & unheld
        self._in_vain &= unheld
        self._cgroups = {pid: cgroup for pid, cgroup in self._cgroups.items() if pid in processes}
        self._pass_wanted = False
        self.health.passes += 1
        self._passed_s = self._clock.monotonic_s()
        self._taken_at_s = max(self._taken_at_s, began_s)

    def take_process(self, pid: int, rows: Sequence[HeldSocket], *, anew: bool = False) -> None:
        """Takes all that a process that lives here holds now. `anew`: who it is, is read in any case."""
        self._unidentified.discard(pid)
        known = self.files.get(Task(pid, pid))
        start_ticks, comm, cgroup = rows[0][1], rows[0][3], rows[0][5]
        fds: dict[int, int] = {}
        for row in rows:
            fd, inode = row[2], row[7][9]
            # Threads with descriptors of their own use the same numbers as others.
            fds[registered(fd, inode) if fd in fds else fd] = inode
        if known is not None and known.process.start_ticks != start_ticks:
            self.beside.pop(pid, None)  # another process's
        fds |= self._fds_beside(pid)
        moved = self._cgroups.get(pid, cgroup) != cgroup
        self._cgroups[pid] = cgroup
        if (
            known is not None
            and not (anew or moved)
            and known.process.start_ticks == start_ticks
            and known.process.comm.encode() == comm.rstrip(b"\0")
        ):
            if known.fds != fds:
                self._walker.holdings.put(Task(pid, pid), known.process, fds, len(fds))
        else:
            self._identify(pid, fds, anew=True)

    def identify_members(self) -> None:
        """Reads who the new members are."""
        for pid in self._unidentified:
            if Task(pid, pid) not in self.files:
                self._identify(pid, {})
        self._unidentified.clear()

    def _identify(self, pid: int, fds: dict[int, int], *, anew: bool = False) -> None:
        task = Task(pid, pid)
        process = self._walker.identify(task, anew=anew)
        if process is not None:
            self._walker.holdings.put(task, process, fds, len(fds))

    def take_beside(self, pid: int, fds: dict[int, int], netns_fds: dict[int, NetnsInode]) -> None:
        """Takes what a sweep read of a member beside what passes show."""
        before = self._fds_beside(pid)
        if fds or netns_fds:
            self.beside[pid] = fds, netns_fds
        else:
            self.beside.pop(pid, None)
        known = self.files.get(Task(pid, pid))
        if known is not None and before != fds:
            shown = {fd: inode for fd, inode in known.fds.items() if before.get(fd) != inode}
            self._walker.holdings.put(Task(pid, pid), known.process, shown | fds, len(shown))

    def prune_beside(self, shown: Set[int]) -> None:
        """Leaves to passes the sockets (inodes) that the last one showed; none shows who registered one."""
        for pid, (fds, netns_fds) in list(self.beside.items()):
            left = {fd: inode for fd, inode in fds.items() if fd < 0 or inode not in shown}
            if left != fds:
                self.take_beside(pid, left, netns_fds)

    def swept(self, wanted: Set[int], since_s: float | None) -> None:
        """A sweep over all processes looked for `wanted` (inodes); since `since_s` it missed nothing, None: it did."""
        self._in_vain |= self._unheld & wanted
        self._searched_since_s = since_s
        self._seen_again = True

    @property
    def telling(self) -> list[int]:
        """The members of whom a sweep told sockets."""
        return [pid for pid, (fds, _) in self.beside.items() if fds]

    @property
    def unsearched(self) -> set[int]:
        """Sockets that two passes did not show, and that no sweep has looked for."""
        return self._lasting - self._in_vain

    def _fds_beside(self, pid: int) -> dict[int, int]:
        return self.beside[pid][0] if pid in self.beside else {}

    def has_moved(self) -> bool:
        """Whether the kernel's counters moved since the last pass began; without members nobody can tell."""
        before, self._seen_counters = self._seen_counters, self._read_counters()
        self._pass_wanted = self._pass_wanted or self._seen_counters != before
        return self._pass_wanted

    def look(self) -> bool:
        """After an order to look: whether a dump is wanted. Only it shows sockets that nobody holds; without any, and
        with counters that stand still, it would show nothing new."""
        self.health.looks += 1
        self._seen_again = True
        now_s = self._clock.monotonic_s()
        if not self.dump_wanted:
            counters = self._seen_counters
            self.dump_wanted = (
                self._asks_traffic
                or counters is None
                or counters != self._counters
                or now_s >= self._dumped_s + _DUMP_IDLE_S
                or self.sockets.has_unheld
            )
        self._taken_at_s = max(self._taken_at_s, now_s if not self.dump_wanted else 0.0)
        return self.dump_wanted

    def dump(self, drain: Callable[[], None]) -> None:
        """Reads the tables, then has `drain` take the events, which know better what closed meanwhile.

        Raises: Vanished, Denied, Unsupported; then what is in doubt is believed to be gone.
        """
        began_s, began_cpu_s = self._clock.monotonic_s(), self._clock.cpu_s()
        self.dump_wanted, self._dump_tried = False, True
        try:
            self._counters = self._read_counters()
            reading = self._reader.read(self.paths, self._tasks())
            drain()
        except BaseException:
            self.sockets.drop_doubtful(began_s)
            self.dump_allowed_s = began_s + _DUMP_APART_MAX_S
            raise
        self.health.dumps_interrupted += reading.interrupted
        self.health.rows_malformed += reading.malformed
        self._devices.update(reading.devices)
        self._note_cookie(reading.cookie)
        self._addresses.note(reading.addresses)
        self.sockets.take_dump(reading.rows, began_s, whole=reading.source == "sock_diag")
        if self._asks_traffic:
            self._carried.update(reading.traffic, self.sockets.changed_cookies(), began_s)
        self._dumped_s = self._taken_at_s = self._clock.monotonic_s()
        apart_s = (self._clock.cpu_s() - began_cpu_s) / _DUMP_SHARE
        self.dump_allowed_s = self._dumped_s + min(max(apart_s, _DUMP_APART_MIN_S), _DUMP_APART_MAX_S)

    @property
    def has_changes(self) -> bool:
        return self.sockets.has_changes or self._walker.holdings.changed or self._addresses.changed

    @property
    def has_news(self) -> bool:
        """Changes, or proof that there are none."""
        return self._seen_again or self.has_changes

    @property
    def is_active(self) -> bool:
        """Whether there is anything to be read or told."""
        sockets = self.sockets
        return bool(self.has_news or self.dump_wanted or sockets.doubtful or sockets.unplaced)

    @property
    def is_complete(self) -> bool:
        """Whether a pass has told of it, and a dump if one can be had."""
        return self._passed_s is not None and self._dump_tried

    def take_snapshot(self) -> Snapshot:
        """The next generation: a base at first and after `want_base`, else the changes to the last one."""
        self._generation += 1
        self._seen_again = False
        changes, held = self.sockets.take_changes(), self._walker.holdings.take_change()
        closed = [self._with_container(one) for one in changes.closed]
        self._closed += closed
        if self._needs_base:
            self._needs_base = False
            snapshot = self.base()
        else:
            connections = [self._connection(key) for key in changes.changed]
            snapshot = self._snapshot(False, connections, changes.gone, held, closed)
        self._addresses.told()
        return snapshot

    def want_base(self) -> None:
        """Makes the next snapshot whole: a generation was lost on the way."""
        self._needs_base = True

    def base(self) -> Snapshot:
        """The current generation as a whole."""
        oldest_s = self._clock.monotonic_s() - self._retention_s
        while self._closed and self._closed[0].closed_at_s < oldest_s:
            self._closed.popleft()
        connections = [self._connection(key) for key in self.sockets.open]
        return self._snapshot(True, connections, [], self._walker.holdings.everything(), list(self._closed))

    def _snapshot(
        self, base: bool, connections: Sequence[Connection], gone: Sequence[SocketKey], held: HoldingsChange,
        closed: Sequence[ClosedConnection],
    ) -> Snapshot:  # fmt: skip
        return Snapshot(
            ROLE, self.netns, self._cookie, self.life, self._generation, base, self._taken_at_s, self._passed_s,
            SOURCE, len(self._walker.denied), self.health.copy(), connections, gone, held.processes,
            held.gone_processes, held.holdings, held.gone_holdings, self._containers_of(held.processes),
            self._searched_since_s, closed,
            self._carried.tell(self.sockets, everything=base), self._addresses.news(base),
        )  # fmt: skip

    def _connection(self, key: SocketKey) -> Connection:
        known = self.sockets.open[key]
        row = known.row
        return to_connection(row, known.proto, key, self._devices.get(row[6]) if row[6] else None)

    def _with_container(self, closed: ClosedConnection) -> ClosedConnection:
        if closed.pid is None:
            return closed
        files = self.files.get(Task(closed.pid, closed.pid))
        if files is None or files.process.start_ticks != closed.start_ticks:
            return closed
        return closed._replace(container=files.process.container)

    def _containers_of(self, processes: Sequence[Process]) -> list[Container]:
        """By name."""
        containers = self._walker.containers
        if not containers:
            return []
        names = {process.container for process in processes if process.container is not None}
        return [containers[name] for name in sorted(names) if name in containers]

    def _tasks(self) -> list[Task]:
        return [Task(pid, pid) for pid in sorted(self.members)]

    def _note_cookie(self, cookie: int | None) -> None:
        if None not in (cookie, self._cookie) and cookie != self._cookie:
            # The inode was given to another namespace: nothing of the old one may live on.
            self.sockets = Sockets()
            self._needs_base = True
        self._cookie = cookie or self._cookie

    def _read_counters(self) -> Counters | None:
        return read_counters(self._root, self._tasks()) if self.members else None
