"""The netns workers: which one serves which namespace, starting, restarting with back-off, killing the stuck."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from pipeline.board import ANSWERED, CPU_NS, DEBT_NS, DUMP_STARTED_NS, Board
from pipeline.config import Config
from pipeline.discover import Membership
from pipeline.model.netns import Netns, RosterRow, WorkerRow
from pipeline.roles.child import Child, Forked
from pipeline.roles.control import Control, assignment, member_messages
from pipeline.roles.ebpf_place import ROLE as EBPF_ROLE
from pipeline.roles.ebpf_place import EbpfPlace
from pipeline.roles.sharing import SETTLED_S, plan
from pipeline.segment import InstanceFolder, netns_segment
from pipeline.walk.budget import share_out

_log = logging.getLogger(__name__)

ROLE = "netns"
# A worker that takes none of its orders for so long, or stays inside one dump for so long, is killed.
_BACKLOG_LIMIT_S = 30.0
_DUMP_LIMIT_S = 5.0
# The limit for a namespace that is gone: the dump is what keeps it, and its devices, alive.
_GONE_DUMP_LIMIT_S = 0.5
# How long a worker that was told to stop may take.
_END_LIMIT_S = 2.0
_NEED_WINDOW_S = 5.0
_GOLDEN = 0.6180339887498949

# Starts a worker process: (its end of the control line, its slot, netns for its log lines) -> process.
StartWorker = Callable[[Control, int, int | None], Forked]


@dataclass(slots=True)
class Worker:
    """One worker and the namespaces it serves. `lives`: of each, which start of a walk this is. `dropped`: those that
    it says to have let go."""

    index: int
    child: Child
    namespaces: dict[int, Netns] = field(default_factory=dict)
    lives: dict[int, int] = field(default_factory=dict)
    share: float = 0.0
    used_cpu_ns: int = 0
    ending_since_s: float | None = None
    killed_pid: int = 0
    dropped: set[int] = field(default_factory=set)
    role: str = ROLE


class Fleet:
    """All netns workers, or the eBPF worker in place of them. Its caller tells it what discovery found, and calls
    `tend` often."""

    def __init__(
        self, config: Config, folder: InstanceFolder, board: Board, slots: int, start: StartWorker,
        ebpf: EbpfPlace | None = None,
    ) -> None:  # fmt: skip
        """`slots`: how many of the board's are for netns workers, from 0 on."""
        self._ebpf = ebpf
        self._config = config
        self._slots = slots
        self._folder = folder
        self._board = board
        self._segment_paths: dict[int, str] = {}
        # Counts what the roster shows of namespaces and workers, but for the gate's proofs.
        self.changes = 0
        self._start = start
        self._workers: dict[int, Worker] = {}
        self._serving: dict[int, Worker] = {}
        self._checked_s: dict[int, float] = {}
        self._lives = itertools.count(1)
        # The newest order to look at each namespace, by number.
        self._ordered: dict[int, int] = {}
        self._orders = itertools.count(1)
        # Namespaces on their way to another worker, by index: their old one was told to let them go.
        self._moving: dict[int, int] = {}
        self._placed_s: dict[int, float] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def add(self, netns: Netns, now_s: float) -> None:
        """Gives a new namespace to the eBPF worker if there is one, else to a new worker, or, above `workers.max`, to
        the one with the fewest."""
        self.changes += 1
        if self._ebpf is not None:
            self._place(netns, self._ebpf_worker(self._ebpf), now_s)
            return
        staying = [worker for worker in self._workers.values() if worker.ending_since_s is None]
        free = next((index for index in range(self._slots) if index not in self._workers), None)
        if free is not None and len(staying) < self._config.workers.max:
            worker = self._workers[free] = Worker(free, Child(self._config.workers.restart_backoff_s))
        else:
            # One that is just ending is started again for it once it is reaped.
            worker = min(staying or self._workers.values(), key=lambda one: len(one.namespaces))
        self._place(netns, worker, now_s)

    def _ebpf_worker(self, place: EbpfPlace) -> Worker:
        if place.index not in self._workers:
            self._workers[place.index] = Worker(place.index, Child(0.0), role=EBPF_ROLE)
        return self._workers[place.index]

    def remove(self, inode: int, now_s: float) -> None:
        """The namespace is gone: its worker forgets it, and ends when it has no other."""
        self.changes += 1
        worker = self._serving.pop(inode)
        del worker.namespaces[inode]
        worker.lives.pop(inode, None)
        self._placed_s.pop(inode, None)
        moving_to = self._moving.pop(inode, None)
        self._checked_s.pop(inode, None)
        self._ordered.pop(inode, None)
        self._folder.unlink(netns_segment(inode))
        self._segment_paths.pop(inode, None)
        if worker.child.control is not None and moving_to is None:
            worker.child.control.send({"op": "drop", "netns": inode, "tell": False}, now_s)
        self._end_if_idle(worker, now_s)
        if moving_to in self._workers:
            self._end_if_idle(self._workers[moving_to], now_s)
        if self._dump_age_s(worker, now_s) > _GONE_DUMP_LIMIT_S:
            self._kill(worker, f"is inside a dump while namespace {inode} is gone")

    def _end_if_idle(self, worker: Worker, now_s: float) -> None:
        """Ends a worker without namespaces, unless one is on its way."""
        if worker.namespaces or worker.index in self._moving.values() or worker.ending_since_s is not None:
            return
        if worker.role == EBPF_ROLE:
            return  # the next namespace is its, too
        if worker.child.control is None:
            del self._workers[worker.index]
            return
        worker.ending_since_s = now_s
        worker.child.control.send({"op": "stop"}, now_s)

    def update(self, netns: Netns, members: Membership | None, now_s: float) -> None:
        """Tells the worker how a namespace's tasks (None: not at all) and ways in changed."""
        self.changes += 1
        worker = self._serving[netns.inode]
        before, worker.namespaces[netns.inode] = worker.namespaces[netns.inode], netns
        if worker.child.control is None or netns.inode in self._moving:
            return  # the assignment that follows has all of it
        if before.paths != netns.paths:
            worker.child.control.send({"op": "paths", "netns": netns.inode, "paths": netns.paths}, now_s)
        if members is not None:
            for message in member_messages(netns.inode, members.added, members.removed):
                worker.child.control.send(message, now_s)

    def hear(self, fds: Set[int]) -> Iterator[dict[str, Any]]:
        """What those workers say whose lines are among `fds`: held messages. What they let go, `tend` hands on."""
        for worker in self._workers.values() if fds else ():
            control = worker.child.control
            if control is None or control.fileno() not in fds:
                continue
            for message in control.receive() or ():
                if message["op"] == "dropped":
                    worker.dropped.add(message["netns"])
                elif self._ebpf is None or not self._ebpf.hear(message):
                    yield message

    def order_looks(self, inodes: list[int], now_s: float, unproven: Set[int]) -> None:
        """Has these namespaces looked at now. Of those `unproven` nothing is known to hold before it is done; the
        others only if there is something that the gate's counters do not show."""
        orders: dict[int, list[int]] = {}
        number = next(self._orders)
        for inode in inodes:
            if inode in self._moving:
                continue  # it is looked at as soon as it has arrived
            if inode in unproven:
                self._ordered[inode] = number
            orders.setdefault(self._serving[inode].index, []).append(inode)
        for index, wanted in orders.items():
            control = self._workers[index].child.control
            # Orders do not pile up before a worker that is not reading: it will look when it is told again.
            if control is not None and control.backlog_since_s is None:
                still = [inode for inode in wanted if inode not in unproven]
                control.send({"op": "look", "netns": wanted, "still": still, "order": number}, now_s)

    def proven(self, inode: int, now_s: float) -> None:
        """The gate found proof that nothing changed since the last look it asked for: that says something of what
        we know only if the look was taken."""
        answered = self._board.slot(self._serving[inode].index)[ANSWERED]
        if inode not in self._moving and answered >= self._ordered[inode]:
            self._checked_s[inode] = now_s

    def tend(self, now_s: float, ended_fds: Set[int] | None = None) -> None:
        """Sends what waits, kills who is stuck, reaps who died, starts who is due.

        `ended_fds`: pidfds that can be read, so that only those are asked; None: all are.
        """
        for worker in list(self._workers.values()):
            control = worker.child.control
            if control is None:
                if now_s >= worker.child.start_at_s:
                    self._launch(worker, now_s)
                continue
            control.flush(now_s)
            backlog_s = control.backlog_since_s
            if backlog_s is not None and now_s - backlog_s > _BACKLOG_LIMIT_S:
                self._kill(worker, "takes no orders")
            elif self._dump_age_s(worker, now_s) > _DUMP_LIMIT_S:
                self._kill(worker, "is stuck inside a dump")
            elif worker.ending_since_s is not None and now_s - worker.ending_since_s > _END_LIMIT_S:
                self._kill(worker, "does not end")
            process = worker.child.process
            if ended_fds is None or process is None or process.pidfd in ended_fds:
                self._reap(worker, now_s)
        self._finish_moves(now_s)

    @property
    def is_shared(self) -> bool:
        """Whether any worker has more than one namespace."""
        return self._ebpf is None and len(self._serving) > len(self._workers)

    def rebalance(self, busy: Set[int], now_s: float) -> None:
        """Begins to move namespaces so that one more of the busy ones has a worker of its own, see sharing.py.

        Nothing is lost on the way: the old worker says that it has let go before the new one is told of it, what was
        published last stays answerable, and the new worker's first look is a whole state of a later life.
        """
        if self._moving or not self.is_shared:
            return
        unsettled = {inode for inode, placed_s in self._placed_s.items() if now_s - placed_s < SETTLED_S}
        staying = {
            one.index: one.namespaces.keys() for one in self._workers.values() if one.ending_since_s is None
        }
        free = next((index for index in range(self._slots) if index not in self._workers), None)
        if free is not None and len(staying) < self._config.workers.max:
            staying[free] = {}.keys()
        for move in plan(staying, busy, unsettled):
            if move.to not in self._workers:
                self._workers[move.to] = Worker(move.to, Child(self._config.workers.restart_backoff_s))
            control = self._serving[move.netns].child.control
            self._moving[move.netns] = move.to
            if control is not None:
                control.send({"op": "drop", "netns": move.netns, "tell": True}, now_s)
        self._finish_moves(now_s)

    def _finish_moves(self, now_s: float) -> None:
        """Hands on what its old worker has let go, or cannot hold any more since it has ended."""
        for inode, index in list(self._moving.items()):
            old, new = self._serving[inode], self._workers.get(index)
            if old.child.control is not None and inode not in old.dropped:
                continue
            self.changes += 1
            old.dropped.discard(inode)
            del self._moving[inode]
            netns = old.namespaces.pop(inode)
            old.lives.pop(inode, None)
            # Back to where it was if the new one ended meanwhile.
            self._place(netns, old if new is None else new, now_s)
            self._end_if_idle(old, now_s)
        for worker in self._workers.values():
            worker.dropped.clear()

    def _place(self, netns: Netns, worker: Worker, now_s: float) -> None:
        worker.namespaces[netns.inode] = netns
        self._serving[netns.inode] = worker
        self._placed_s[netns.inode] = now_s
        if worker.child.control is not None:
            for order in self._assignment(worker, netns, now_s):
                worker.child.control.send(order, now_s)

    def set_shares(self, total: float, period_s: float, now_s: float) -> None:
        """Shares out `total` (CPU seconds per second) by what each worker used and owes since the last call."""
        alive = [worker for worker in self._workers.values() if worker.child.control is not None]
        needs = []
        for worker in alive:
            slot = self._board.slot(worker.index)
            used_ns, worker.used_cpu_ns = slot[CPU_NS] - worker.used_cpu_ns, slot[CPU_NS]
            needs.append(used_ns / 1e9 / period_s * 1.25 + slot[DEBT_NS] / 1e9 / _NEED_WINDOW_S)
        for worker, share in zip(alive, share_out(total, needs), strict=True):
            if abs(share - worker.share) > 0.1 * worker.share:
                worker.share = share
                assert worker.child.control is not None
                worker.child.control.send({"op": "share", "cpu": share}, now_s)

    def roster_rows(self) -> list[RosterRow]:
        """A row per namespace, by inode."""
        return [
            RosterRow(
                inode,
                list(worker.namespaces[inode].names),
                worker.child.pid,
                worker.lives.get(inode, 0),
                "walking" if worker.child.pid else "restarting",
                self._segment_path(inode),
                self._checked_s.get(inode, 0.0),
            )
            for inode, worker in sorted(self._serving.items())
        ]

    def worker_rows(self) -> list[WorkerRow]:
        return [
            WorkerRow(
                worker.role,
                worker.child.pid,
                sorted(worker.namespaces),
                "running" if worker.child.pid else "restarting",
                worker.child.restarts,
                round(worker.share, 4),
            )
            for worker in self._workers.values()
        ]

    def fds(self) -> list[int]:
        """Our ends of the lines to the workers and their pidfds: nothing for another child."""
        return [fd for worker in self._workers.values() for fd in worker.child.fds()]

    def _launch(self, worker: Worker, now_s: float) -> None:
        self.changes += 1
        self._board.reset(worker.index)
        worker.used_cpu_ns = 0
        worker.ending_since_s = None
        worker.share = self._config.budget.cpu_percent / 100 / len(self._workers)
        only = next(iter(worker.namespaces)) if len(worker.namespaces) == 1 else None
        orders: list[dict[str, Any]] = [{"op": "share", "cpu": worker.share}]
        for netns in worker.namespaces.values():
            orders += self._assignment(worker, netns, now_s)
        if worker.role == EBPF_ROLE and self._ebpf is not None:
            self._ebpf.began()
            control = worker.child.start(self._ebpf.start, now_s)
        else:
            control = worker.child.start(lambda theirs: self._start(theirs, worker.index, only), now_s)
        for order in orders:
            control.send(order, now_s)

    def _assignment(self, worker: Worker, netns: Netns, now_s: float) -> list[dict[str, Any]]:
        life = worker.lives[netns.inode] = next(self._lives)
        segment = self._segment_path(netns.inode)
        order = self._ordered[netns.inode] = next(self._orders)
        # Starts are spread over the length of a pass, or all workers would wake together: multiples of the golden
        # ratio's fraction never bunch. A worker walks all of its namespaces one after the other: its memory is warm
        # then, and most of what a short pass costs alone is to find it cold.
        target_s = self._config.walk.target_s
        delay_s = (worker.index * _GOLDEN * target_s - now_s) % target_s
        return assignment(netns.inode, life, segment, netns.paths, sorted(netns.tasks), order, delay_s)

    def _segment_path(self, inode: int) -> str:
        path = self._segment_paths.get(inode)
        if path is None:
            path = self._segment_paths[inode] = self._folder.path_of(netns_segment(inode))
        return path

    def _reap(self, worker: Worker, now_s: float) -> None:
        if worker.role == EBPF_ROLE:
            self._reap_ebpf(worker, now_s)
            return
        ended = worker.child.reap(now_s)
        if ended is None:
            return
        self.changes += 1
        if not worker.namespaces and worker.index not in self._moving.values():
            del self._workers[worker.index]
            return
        _log.warning(
            "the worker of %d namespaces ended (%s); starting it again in %.1f s",
            len(worker.namespaces),
            ended,
            worker.child.start_at_s - now_s,
        )

    def _reap_ebpf(self, worker: Worker, now_s: float) -> None:
        """Starts it once more, or gives all its namespaces to netns workers; what it published stays answerable."""
        place, control = self._ebpf, worker.child.control
        assert place is not None and control is not None
        if not worker.child.has_ended:
            return
        for message in control.receive() or ():
            place.hear(message)  # its last words
        ended = worker.child.reap(now_s)
        if ended is None:
            return
        self.changes += 1
        if place.ended(ended, now_s):
            worker.child.start_at_s = now_s
            return
        self._ebpf = None
        del self._workers[worker.index]
        for netns in worker.namespaces.values():
            self.add(netns, now_s)

    def _kill(self, worker: Worker, why: str) -> None:
        if worker.killed_pid == worker.child.pid:
            return  # it is on its way out
        worker.killed_pid = worker.child.pid
        _log.warning("worker %d %s: killed", worker.child.pid, why)
        worker.child.kill()

    def _dump_age_s(self, worker: Worker, now_s: float) -> float:
        started_ns = self._board.slot(worker.index)[DUMP_STARTED_NS]
        return now_s - started_ns / 1e9 if started_ns else 0.0
