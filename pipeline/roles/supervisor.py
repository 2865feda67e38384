"""The supervisor: discovers namespaces, keeps the gate, forks and reaps, shares out the CPU budget.

It never has a ZeroMQ context (a forked child would see it as its own), and forks from its main thread only.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket

from pipeline.board import CPU_NS, Board
from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.discover import Discovery, diff
from pipeline.errors import SockscopeError
from pipeline.gate import CounterReader, Counters, Gate, GateSettings, Verdict
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.netns import Netns, NetnsInode, WorkerRow
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.roles.child import Child, Forked, start_child
from pipeline.roles.control import Control
from pipeline.roles.ebpf_place import ROLE as EBPF_ROLE
from pipeline.roles.ebpf_place import EbpfPlace, is_possible, open_sources
from pipeline.roles.ebpf_worker import EbpfWorker
from pipeline.roles.fleet import Fleet
from pipeline.roles.flow_watch import FlowWatch
from pipeline.roles.netns_worker import NetnsWorker, rehearse
from pipeline.roles.nursery import Nursery, NurseryLost
from pipeline.roles.roster import SEGMENT_NAME, Roster, RosterWriter
from pipeline.roles.runtime_dir import RuntimeDir
from pipeline.roles.single import Single, stop_all
from pipeline.segment import InstanceFolder, SegmentFull
from pipeline.transport.ingest import Pusher

_log = logging.getLogger(__name__)

_STOP_LIMIT_S = 3.0
_SHARE_PERIOD_S = 2.0
# Of the budget, at least so much is for the workers, whatever supervisor and aggregator use.
_WORKERS_PART = 0.2
# Workers that are told to end still hold their slot for a moment.
_SPARE_SLOTS = 8
# How often namespaces may come due at the gate.
_GATE_PERIOD_S = 0.25
_TELL_AGAIN_S = 60.0
# From so many namespaces on, those that are there at the start are not taken to be busy.
_MANY = 100
# How often the gate's proofs alone are worth writing: well within what makes a namespace stale.
_ROSTER_PERIOD_S = 5.0


class Supervisor:
    """One run of the pipeline."""

    def __init__(
        self,
        config: Config,
        only_netns: tuple[str, ...],
        runtime_dir: RuntimeDir,
        folder: InstanceFolder,
        relay_fd: int,
        clock: Clock,
    ) -> None:
        self._config = config
        self._only_netns = only_netns
        self._told_none = False
        self._runtime_dir = runtime_dir
        self._folder = folder
        self._relay_fd = relay_fd
        self._clock = clock
        self._root = ProcRoot(config.agent.proc_root)
        discovery, tables = config.discovery, config.tables
        self._discovery = Discovery(
            self._root, discovery.mount_dirs, only_netns or discovery.include, discovery.exclude
        )
        self._known: dict[NetnsInode, Netns] = {}
        # Less by the tick that finds it due: nobody waits longer than the setting says.
        idle_interval_s = max(tables.interval_s, tables.idle_interval_s - _GATE_PERIOD_S)
        self._counters = CounterReader()
        self._gate = Gate(GateSettings(tables.interval_s, idle_interval_s, tables.full_interval_s))
        worker_slots = config.workers.max + _SPARE_SLOTS
        self._board = Board(worker_slots + 3)
        self._aggregator_index = worker_slots
        self._conntrack_index = worker_slots + 1
        self._aggregator = Single(
            "aggregator",
            self._aggregator_main,
            self._board,
            self._aggregator_index,
            config.workers.restart_backoff_s,
            self._own_fds,
        )
        self._flow_watch = self._make_flow_watch() if config.conntrack.mode != "off" else None
        self._nursery: Nursery | None = None
        self._ebpf_index = worker_slots + 2
        ebpf = (
            EbpfPlace(self._ebpf_index, self._fork_ebpf_worker)
            if is_possible(config.ebpf, self._root)
            else None
        )
        self._fleet = Fleet(config, folder, self._board, worker_slots, self._fork_worker, ebpf)
        self._roster = RosterWriter(folder.path_of(SEGMENT_NAME))
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pid = os.getpid()
        self._stopping = False
        self._began_s = clock.monotonic_s()
        self._charged_cpu_s = 0.0
        self._told_full_s = self._rostered_s = float("-inf")
        # What the roster in the segment shows: the changes counted so far.
        self._rostered = (-1, -1)

    def run(self, duration_s: float | None) -> None:
        """Returns after a signal or `duration_s`, with every child ended."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # The first of all, while there is little to inherit.
        self._nursery = self._start_nursery()
        try:
            self._loop(self._began_s + duration_s if duration_s is not None else float("inf"))
        finally:
            self._stop_children()
            self._roster.close()
            signal.set_wakeup_fd(-1)
            os.close(self._wake_r)
            os.close(self._wake_w)

    def _loop(self, end_s: float) -> None:
        scan_s = gate_s = share_s = self._clock.monotonic_s()
        ready_fds: set[int] = set()
        while not self._stopping and (now_s := self._clock.monotonic_s()) < end_s:
            if now_s >= scan_s:
                self._discover(now_s)
                scan_s = now_s + self._config.discovery.interval_s
            if now_s >= gate_s:
                self._check_gate(now_s)
                gate_s = now_s + min(self._config.tables.interval_s, _GATE_PERIOD_S)
            if now_s >= share_s + _SHARE_PERIOD_S:
                self._share_out(now_s - share_s, now_s)
                share_s = now_s
            self._tend_workers(now_s, ready_fds)
            if self._flow_watch is not None:
                self._flow_watch.tend(now_s)
            self._tend_aggregator(now_s)
            self._write_roster(now_s)
            ready_fds = self._wait(min(scan_s, gate_s, end_s) - self._clock.monotonic_s())
            for said in self._fleet.hear(ready_fds):
                self._discovery.note_held(NetnsInode(said["netns"]), said["held"], more=said["more"])

    def _discover(self, now_s: float) -> None:
        found = self._discovery.scan(now_s)
        if self._only_netns and not found and not self._told_none:
            self._told_none = True
            _log.warning("no namespace is called %s", " or ".join(self._only_netns))
        changes = diff(self._known, found)
        # Hardly any of many namespaces is at work just now, and to ask each of them every second for a minute would
        # take the budget that their first looks need.
        is_settled = not self._known and len(found) > _MANY
        before, self._known = self._known, found
        for inode in changes.gone:
            self._fleet.remove(inode, now_s)
            if self._flow_watch is not None:
                self._flow_watch.remove(inode, now_s)
            self._gate.remove(inode)
            self._counters.forget(inode)
        for inode in changes.appeared:
            self._fleet.add(found[inode], now_s)
            if self._flow_watch is not None:
                self._flow_watch.add(found[inode], now_s)
            self._gate.add(inode, now_s, is_settled=is_settled)
        for inode in (changes.members.keys() | set(changes.remounted)) & before.keys():
            self._fleet.update(found[inode], changes.members.get(inode), now_s)
            if self._flow_watch is not None:
                self._flow_watch.update(found[inode], now_s)
        for inode in changes.members.keys() & before.keys():
            self._gate.members_changed(inode, now_s)

    def _check_gate(self, now_s: float) -> None:
        looks: list[int] = []
        unproven: set[int] = set()
        for inode in self._gate.due(now_s):
            verdict = self._gate.check(inode, self._read_counters(self._known[NetnsInode(inode)]), now_s)
            if verdict is Verdict.UNCHANGED or verdict is Verdict.REFRESH:
                self._fleet.proven(inode, now_s)
            if verdict is Verdict.LOOK:
                unproven.add(inode)
            if verdict is Verdict.LOOK or verdict is Verdict.REFRESH:
                looks.append(inode)
        self._fleet.order_looks(looks, now_s, unproven)
        if self._flow_watch is not None:
            self._flow_watch.stir(sorted(unproven), now_s)

    def _read_counters(self, netns: Netns) -> Counters | None:
        """The gate's counters; of a namespace without processes, from inside it. None: they cannot be read."""
        if netns.tasks or not netns.paths:
            return self._counters.read(netns.inode, self._root, netns.tasks)
        try:
            netns_fd = open_netns(netns.paths[0], netns.inode)
        except SockscopeError:
            return None  # the next scan, or the look that follows, says what became of it
        try:
            with inside(netns_fd):
                # Our own /proc/PID/net is that of the main thread, which is where we are.
                return self._counters.read(netns.inode, ProcRoot(), [Task(os.getpid(), os.getpid())])
        except SockscopeError:
            return None
        finally:
            os.close(netns_fd)

    def _share_out(self, period_s: float, now_s: float) -> None:
        """Gives the workers what supervisor, aggregator and conntrack worker leave of the budget."""
        singles_ns = sum(
            self._board.slot(index)[CPU_NS] for index in (self._aggregator_index, self._conntrack_index)
        )
        used_cpu_s = self._clock.cpu_s() + singles_ns / 1e9
        others = max(0.0, used_cpu_s - self._charged_cpu_s) / period_s
        self._charged_cpu_s = used_cpu_s
        budget = self._config.budget.cpu_percent / 100
        if self._fleet.is_shared:
            self._fleet.rebalance(self._gate.busy(now_s), now_s)
        self._fleet.set_shares(max(budget - others, budget * _WORKERS_PART), period_s, now_s)

    def _tend_workers(self, now_s: float, ready_fds: set[int]) -> None:
        """A lost nursery takes its workers with it: they are reaped, and started again by the next one."""
        try:
            self._fleet.tend(now_s, ready_fds)
        except NurseryLost as error:
            _log.warning("%s; starting another one", error)
            if self._nursery is not None:
                self._nursery.close()
            self._nursery = None

    def _write_roster(self, now_s: float) -> None:
        """Writes it when it changed, and has the aggregator read it; proofs of the gate alone, now and then."""
        singles = [self._aggregator, *([self._flow_watch.single] if self._flow_watch is not None else [])]
        changes = (self._fleet.changes, sum(single.changes for single in singles))
        if changes == self._rostered and now_s - self._rostered_s < _ROSTER_PERIOD_S:
            return
        self._rostered, self._rostered_s = changes, now_s
        workers = [
            WorkerRow("supervisor", os.getpid(), [], "running", 0, 0.0),
            *(single.row() for single in singles),
            WorkerRow(
                "nursery",
                self._nursery.process.pid if self._nursery is not None else 0,
                [],
                "running" if self._nursery is not None else "restarting",
                0,
                0.0,
            ),
            *self._fleet.worker_rows(),
        ]  # fmt: skip
        try:
            seen = self._discovery
            changed = self._roster.write(
                Roster(self._fleet.roster_rows(), workers, seen.denied, seen.left_out)
            )
        except SegmentFull as error:
            if now_s - self._told_full_s > _TELL_AGAIN_S:
                self._told_full_s = now_s
                _log.warning("%s: %s", error, error.hint)
            return
        if changed:
            self._aggregator.tell({"op": "roster"}, now_s)

    def _tend_aggregator(self, now_s: float) -> None:
        if self._aggregator.is_due(now_s):
            # Before it: without a roster it knows of no segment.
            self._write_roster(now_s)
            self._aggregator.start(now_s)
        for message in self._aggregator.tend(now_s):
            if message["op"] == "ready":
                _log.info(
                    "ready: the first state of %d namespaces is merged; ask with: "
                    "sockscope connections --runtime-dir %s",
                    message["namespaces"],
                    self._runtime_dir.path,
                )

    def _wait(self, timeout_s: float) -> set[int]:
        """Sleeps until something is due, a signal comes, a child ends or speaks. Returns the fds that are ready."""
        poller = select.poll()
        poller.register(self._wake_r, select.POLLIN)
        for child in self._children():
            if child.process is not None:
                poller.register(child.process.pidfd, select.POLLIN)
            if child.control is not None:
                poller.register(child.control.fileno(), select.POLLIN)
        return {fd for fd, _ in poller.poll(max(0.0, timeout_s) * 1000)}

    def _fork_worker(self, control: Control, slot: int, netns: int | None) -> Forked:
        if self._nursery is None:
            self._nursery = self._start_nursery()
        return self._nursery.fork_worker(control.socket, slot, netns)

    def _fork_ebpf_worker(self, control: Control) -> Forked:
        def main() -> None:
            pusher = Pusher(self._runtime_dir.path_of("ingest.ipc"))
            # It would look at all that a pass tells, several times in each; the worker collects now and then.
            gc.disable()
            EbpfWorker(
                control,
                self._board.slot(self._ebpf_index),
                self._config,
                pusher.send,
                self._clock,
                lambda: open_sources(self._config.ebpf),
            ).run()

        return start_child(EBPF_ROLE, None, main, self._own_fds())

    def _start_nursery(self) -> Nursery:
        """With a worker ready made, which every fork of it becomes."""
        rehearse(
            self._config,
            self._clock,
            self._board.slot(self._aggregator_index),
            self._folder.path_of("rehearsal"),
        )
        self._folder.unlink("rehearsal")
        self._board.reset(self._aggregator_index)
        worker = NetnsWorker(self._config, self._clock)
        ingest_path = self._runtime_dir.path_of("ingest.ipc")

        def worker_main(line: socket.socket, slot: int) -> None:
            worker.attach(Control(line), self._board.slot(slot), Pusher(ingest_path).send)
            worker.run()

        return Nursery.start(worker_main, self._own_fds())

    def _aggregator_main(self, control: Control) -> None:
        """In the child."""
        # Imported here: SQLite, psutil and the query code are memory of this child only.
        from pipeline.roles.aggregator import Aggregator

        os.umask(0o077)
        Aggregator(
            control,
            self._board.slot(self._aggregator_index),
            self._config,
            self._runtime_dir.path,
            self._folder.path_of(SEGMENT_NAME),
            self._clock,
        ).run()

    def _make_flow_watch(self) -> FlowWatch:
        config, index = self._config, self._conntrack_index
        backoff_s = config.workers.restart_backoff_s
        single = Single("conntrack", self._conntrack_main, self._board, index, backoff_s, self._own_fds)
        budget_cpu = config.budget.cpu_percent / 100
        slot, idle_interval_s = self._board.slot(index), config.conntrack.idle_interval_s
        return FlowWatch(single, slot, self._folder, self._root, budget_cpu, idle_interval_s)

    def _conntrack_main(self, control: Control) -> None:
        """In the child."""
        from pipeline.roles.conntrack_worker import ConntrackWorker

        pusher = Pusher(self._runtime_dir.path_of("ingest.ipc"))
        slot = self._board.slot(self._conntrack_index)
        ConntrackWorker(self._config, control, slot, pusher.send, self._clock).run()

    def _children(self) -> list[Child]:
        conntrack = [self._flow_watch.single.child] if self._flow_watch is not None else []
        return [self._aggregator.child, *conntrack, *(worker.child for worker in self._fleet)]

    def _own_fds(self) -> list[int]:
        """What is the supervisor's alone, to be closed in a child."""
        own = [self._runtime_dir.lock_fd, self._folder.lock_fd, self._relay_fd, self._wake_r, self._wake_w]
        nursery = self._nursery.fds() if self._nursery is not None else []
        conntrack = self._flow_watch.single.child.fds() if self._flow_watch is not None else []
        singles = [*self._aggregator.child.fds(), *conntrack]
        return [*own, *nursery, *self._roster.fds(), *singles, *self._fleet.fds()]

    def _on_signal(self, number: int, _frame: object) -> None:
        if os.getpid() != self._pid:
            os._exit(128 + number)  # children inherit this handler; setting their own costs memory in each
        self._stopping = True

    def _stop_children(self) -> None:
        stop_all(self._children(), _STOP_LIMIT_S, self._clock)
        if self._nursery is not None:
            self._nursery.close()
