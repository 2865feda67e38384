"""The eBPF worker: one process for all namespaces. It reads what programs in the kernel tell, and publishes for each
namespace what a netns worker would, so that nobody after it knows the difference.

Events come first: they are read every `ebpf.drain_interval_ms`, whatever else there is to do. A pass of the iterator
follows an order to look, at most once a second, or comes when the last one is old; a dump shows what no process holds;
a sweep, what is held otherwise. It believes events completely, so it ends when one is lost or out of order: the
supervisor decides what comes then, see track/trust.py.
"""

from __future__ import annotations

import gc
import itertools
import logging
import operator
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.board import ANSWERED, CPU_NS, DEBT_NS, DUMP_STARTED_NS, LOOKS, Slot
from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.errors import Denied, EventsLost, Malformed, Unsupported, Vanished
from pipeline.model.event import EventKind, SocketEvent
from pipeline.model.held_socket import HeldSocket
from pipeline.model.process import Task
from pipeline.procfs.fd import fd_path
from pipeline.procfs.root import ProcRoot
from pipeline.roles.control import Control, held_messages
from pipeline.roles.ebpf_namespace import EbpfNamespace
from pipeline.roles.ebpf_sweep import Sweep
from pipeline.roles.publication import Publication
from pipeline.segment import SegmentWriter
from pipeline.walk.budget import CpuBudget
from pipeline.walk.reading import TableReader

_log = logging.getLogger(__name__)

_LOOK_APART_S = 1.0
# Passes may take this part of the time: what opens and closes is told by events in between.
_PASS_SHARE = 0.05
# What changes between is told with the next: a busy namespace is published so often at most.
_PUBLISH_APART_S = 0.1
# Any one descriptor is a way into the namespace of its socket; some more, as each may be closed at any moment.
_WAYS = 4
_LOOPBACK = "127.0.0.1"
# How soon the programs have to tell of what we did ourselves, if they are there.
_TOLD_WITHIN_S = 2.0
# Reading one process's descriptors may take this part of the time.
_PROCESS_SHARE = 0.05
# Passes and dumps wait for what such reading will have earned by then: it gives new connections their owners.
_READS_AHEAD_S = 10.0
_COLLECT_PERIOD_S = 60.0
# Events of namespaces that discovery has not found yet.
_EARLY_EVENTS = 10_000
_EARLY_S = 5.0


class Iterator(Protocol):
    """ebpf.SocketIterator."""

    def read_all(self) -> list[HeldSocket]: ...
    def read_process(self, pid: int) -> list[HeldSocket]: ...


class Ring(Protocol):
    """ebpf.EventRing."""

    def drain(self) -> list[SocketEvent]: ...
    def lost(self) -> int: ...


@dataclass(slots=True)
class _Served:
    namespace: EbpfNamespace
    publication: Publication
    published_s: float = float("-inf")
    told_denied: bool = False
    told_held: list[tuple[int, list[str]]] = field(default_factory=list)


class EbpfWorker:
    """One life of it. `open_sources` loads the programs, events first. Raises: Unsupported, Denied."""

    def __init__(
        self, control: Control, slot: Slot, config: Config, send: Callable[[bytes], bool], clock: Clock,
        open_sources: Callable[[], tuple[Ring, Iterator]],
    ) -> None:  # fmt: skip
        self._control = control
        self._slot = slot
        self._config = config
        self._send = send
        self._clock = clock
        self._open_sources = open_sources
        self._root = ProcRoot(config.agent.proc_root)
        self._budget = CpuBudget(config.budget.cpu_percent / 100, clock.monotonic_s())
        self._drain_s = config.ebpf.drain_interval_ms / 1000
        self._served: dict[int, _Served] = {}
        self._early: deque[SocketEvent] = deque(maxlen=_EARLY_EVENTS)
        # Namespaces that have anything to be done: of hundreds, only these are looked through.
        self._active: set[int] = set()
        # Namespaces to look at, and the newest order to do so.
        self._ordered: set[int] = set()
        self._order = 0
        self._next_look_s = self._next_pass_s = self._next_drain_s = clock.monotonic_s()
        self._passed_s = float("-inf")
        self._next_check_s = self._expected_until_s = clock.monotonic_s()
        self._expected_port = 0
        self._next_collect_s = clock.monotonic_s() + _COLLECT_PERIOD_S
        # When each process may be read again.
        self._read_again_s: dict[int, float] = {}
        self._sweep = Sweep(self._root, config)
        self._held: dict[int, dict[int, list[str]]] = {}
        self._stopped = self._settled = False
        self._ring: Ring
        self._iterator: Iterator

    def run(self) -> None:
        """Returns when told to stop, when the supervisor has gone, or when the events cannot be trusted."""
        try:
            self._ring, self._iterator = self._open_sources()
            while not self._stopped:
                if self._control.wait(self._next_drain_s - self._clock.monotonic_s()):
                    self._obey_all()
                if self._clock.monotonic_s() >= self._next_drain_s:
                    self._work()
        except (EventsLost, Malformed, Unsupported, Denied) as error:
            now_s = self._clock.monotonic_s()
            self._control.send({"op": "ebpf_failed", "reason": str(error)}, now_s)

    def _work(self) -> None:
        began_s = self._clock.monotonic_s()
        self._next_drain_s = began_s + self._drain_s
        self._drain()
        if began_s >= self._next_collect_s:
            self._next_collect_s = began_s + _COLLECT_PERIOD_S
            gc.collect()
        # Events come whether they can be afforded or not: paid from the budget, a busy host's would leave nothing for
        # reading, without which no owner is ever known.
        drained_cpu_s = self._clock.cpu_s()
        self._check_programs(began_s)
        if self._budget.ready_s(began_s) <= began_s + _READS_AHEAD_S:
            self._read_wanted()
        if self._budget.ready_s(began_s) <= began_s:
            # Who inherits a descriptor or is handed one moves no counter that would bring an order.
            is_old = self._served and began_s >= self._passed_s + self._config.tables.full_interval_s
            if (self._ordered or is_old) and began_s >= self._next_look_s:
                self._look(began_s)
            self._dump_wanted()
            self._sweep_on(began_s)
        for netns in self._active:
            served = self._served[netns]
            if served.namespace.has_news and began_s >= served.published_s + _PUBLISH_APART_S:
                self._publish(served)
        self._active = {netns for netns in self._active if self._served[netns].namespace.is_active}
        used_cpu_s, now_s = self._clock.cpu_s(), self._clock.monotonic_s()
        self._budget.charge(used_cpu_s - drained_cpu_s, now_s)
        self._slot[CPU_NS] = int(used_cpu_s * 1e9)
        self._slot[DEBT_NS] = int(self._budget.debt_cpu_s(now_s) * 1e9)

    def _check_programs(self, now_s: float) -> None:
        """Programs that were unloaded tell nothing, as on a quiet host: a listener of our own has to be told of, not at
        once, as whatever is being written to the ring holds up what comes after it. Raises: EventsLost."""
        if self._expected_port:
            if now_s >= self._expected_until_s:
                raise EventsLost("the programs in the kernel tell nothing any more")
        elif now_s >= self._next_check_s:
            self._next_check_s = now_s + self._config.tables.full_interval_s
            self._expected_until_s = now_s + _TOLD_WITHIN_S
            # A namespace without a loopback address tells us nothing either way.
            with suppress(OSError), socket.create_server((_LOOPBACK, 0)) as listener:
                self._expected_port = listener.getsockname()[1]

    def _drain(self) -> None:
        """Reads the events since the last time. Raises: EventsLost."""
        events = self._ring.drain()
        lost = self._ring.lost()
        if lost:
            raise EventsLost(f"{lost} events were lost, more came than ebpf.ring_bytes holds", lost)
        for event in events:
            if event.local_port == self._expected_port and event.kind == EventKind.LISTEN:
                self._expected_port = 0
            served = self._served.get(event.netns)
            if served is None:
                self._early.append(event)
            else:
                served.namespace.apply(event)
                self._active.add(event.netns)

    def _read_wanted(self) -> None:
        """Reads the descriptors of processes that opened something which is still open."""
        now_s = self._clock.monotonic_s()
        wanted = {
            self._served[netns].namespace.sockets.open[key].pid
            for netns in self._active
            for key in self._served[netns].namespace.sockets.unplaced
        }
        for pid in [pid for pid in wanted if self._read_again_s.get(pid, 0.0) <= now_s]:
            began_s, began_cpu_s = self._clock.monotonic_s(), self._clock.cpu_s()
            held = self._iterator.read_process(pid)
            # What closed while it was read.
            self._drain()
            by_socket = _grouped(held, 9)
            # Where it names an owner, too, of a socket that it holds no more.
            for netns in self._active | (by_socket.keys() & self._served.keys()):
                sockets = self._served[netns].namespace.sockets
                sockets.take_process(pid, by_socket.get(netns, ()), began_s)
            for netns, rows in _grouped(held, 4).items():
                if netns in self._served:
                    self._served[netns].namespace.take_process(pid, rows)
                    self._active.add(netns)
            took_cpu_s = self._clock.cpu_s() - began_cpu_s
            self._read_again_s[pid] = self._clock.monotonic_s() + took_cpu_s / _PROCESS_SHARE

    def _look(self, now_s: float) -> None:
        """Carries out the orders to look: with a pass, unless the last one is young and no counter moved since."""
        self._next_look_s = now_s + _LOOK_APART_S
        ordered = [self._served[netns].namespace for netns in self._ordered & self._served.keys()]
        moved = [namespace for namespace in ordered if namespace.has_moved()]
        if (
            moved and now_s >= self._next_pass_s
        ) or now_s >= self._passed_s + self._config.tables.full_interval_s:
            self._pass()
        elif moved:
            return  # soon
        self._ordered.clear()
        for namespace in ordered:
            self._slot[LOOKS] += 1
            namespace.look()
            self._active.add(namespace.netns)
        self._slot[ANSWERED] = self._order

    def _pass(self) -> None:
        """One pass over everything, then what it showed for each namespace."""
        began_s, began_cpu_s = self._clock.monotonic_s(), self._clock.cpu_s()
        self._passed_s = began_s
        held = self._iterator.read_all()
        # What closed while it ran must not come back.
        self._drain()
        by_socket = _grouped(held, 9)
        by_process = {netns: _grouped(rows, 0) for netns, rows in _grouped(held, 4).items()}
        for netns, served in self._served.items():
            served.namespace.take_pass(by_socket.get(netns, []), by_process.get(netns, {}), began_s)
        self._active.update(self._served)
        self._sweep.prune(self._namespaces(), held)
        self._note_held(by_socket)
        self._tell_held()
        self._read_again_s = {
            pid: again_s for pid, again_s in self._read_again_s.items() if again_s > began_s
        }
        apart_s = (self._clock.cpu_s() - began_cpu_s) / _PASS_SHARE
        self._next_pass_s = began_s + min(apart_s, self._config.tables.full_interval_s)

    def _namespaces(self) -> dict[int, EbpfNamespace]:
        return {netns: served.namespace for netns, served in self._served.items()}

    def _sweep_on(self, now_s: float) -> None:
        """A block of a sweep, if one is due: of what no pass shows."""
        if not self._settled or not self._sweep.is_due(self._passed_s, now_s):
            return
        if told := self._sweep.step(self._namespaces(), self._passed_s, now_s):
            self._active |= told
            self._tell_held()

    def _note_held(self, by_socket: Mapping[int, list[HeldSocket]]) -> None:
        """Which namespaces the processes of each hold sockets of: they may be all that tells of those."""
        self._held = {}
        for netns, rows in by_socket.items():
            for home in {one[4] for one in rows} - {netns}:
                ways = [one for one in rows if one[4] == home][:_WAYS]
                paths = [fd_path(self._root, Task(one[0], one[0]), one[2]) for one in ways]
                self._held.setdefault(home, {})[netns] = paths

    def _tell_held(self) -> None:
        """Tells the supervisor what namespaces are held, by sockets or by descriptors: it may know no other way in."""
        now_s = self._clock.monotonic_s()
        for netns, served in self._served.items():
            by_socket, by_descriptor = self._held.get(netns, {}), self._sweep.ways(served.namespace)
            now_held = [
                (inode, [*by_descriptor.get(inode, ()), *by_socket.get(inode, ())][:_WAYS])
                for inode in sorted(by_descriptor.keys() | by_socket.keys())
            ]
            if now_held != served.told_held:
                served.told_held = now_held
                for message in held_messages(netns, now_held):
                    self._control.send(message, now_s)

    def _dump_wanted(self) -> None:
        for netns in sorted(self._active):
            served = self._served[netns]
            namespace = served.namespace
            wanted = namespace.dump_wanted or namespace.sockets.doubtful
            # Before a pass every row would be one that nobody holds.
            if not wanted or not namespace.health.passes:
                continue
            if self._clock.monotonic_s() < namespace.dump_allowed_s:
                continue
            try:
                namespace.dump(self._drain)
            except Vanished:
                namespace.health.dumps_vanished += 1  # on its way out: the supervisor will say so
            except (Denied, Unsupported) as error:
                namespace.health.dumps_denied += 1
                if not served.told_denied:
                    _log.warning("the tables may not be read: %s", error, extra={"netns": netns})
                served.told_denied = True
            self._drain()
            if self._budget.ready_s(self._clock.monotonic_s()) > self._clock.monotonic_s():
                return
        if not self._settled and self._served:
            self._settled = all(served.namespace.is_complete for served in self._served.values())
            if self._settled:
                self._control.send({"op": "ebpf_settled"}, self._clock.monotonic_s())

    def _publish(self, served: _Served) -> None:
        namespace = served.namespace
        if not namespace.is_complete:
            return  # a first base without its owners would take them from what is known from before
        now_s = self._clock.monotonic_s()
        served.published_s = now_s
        if not served.publication.publish(namespace.take_snapshot(), namespace.base, now_s):
            namespace.want_base()

    def _obey_all(self) -> None:
        messages = self._control.receive()
        if messages is None:
            self._stopped = True
        for message in messages or ():
            getattr(self, "_obey_" + message["op"])(message)

    def _obey_assign(self, message: dict[str, Any]) -> None:
        netns = message["netns"]
        tables = self._config.tables
        reader = TableReader(
            self._root, netns, tables.source, self._clock, self._mark_dump, traffic=tables.tcp_info
        )
        namespace = EbpfNamespace(netns, message["life"], self._root, reader, self._clock, self._config)
        namespace.paths = tuple(message["paths"])
        namespace.set_members([Task(*task) for task in message["tasks"]], ())
        segment = SegmentWriter("")
        segment.path = message["segment"]
        self._served[netns] = _Served(namespace, Publication(segment, self._send, namespace.health))
        oldest_s = self._clock.monotonic_s() - _EARLY_S
        early, self._early = self._early, deque(maxlen=_EARLY_EVENTS)
        for event in early:
            if event.netns != netns:
                self._early.append(event)
            elif event.time_s >= oldest_s:
                namespace.apply(event)
        self._active.add(netns)

    def _obey_members(self, message: dict[str, Any]) -> None:
        self._served[message["netns"]].namespace.set_members(
            [Task(*task) for task in message["added"]], [Task(*task) for task in message["removed"]]
        )
        self._active.add(message["netns"])

    def _obey_paths(self, message: dict[str, Any]) -> None:
        self._served[message["netns"]].namespace.paths = tuple(message["paths"])

    def _obey_look(self, message: dict[str, Any]) -> None:
        self._ordered.update(message["netns"])
        self._order = message["order"]

    def _obey_share(self, message: dict[str, Any]) -> None:
        self._budget.set_share(message["cpu"], self._clock.monotonic_s())

    def _obey_drop(self, message: dict[str, Any]) -> None:
        served = self._served.pop(message["netns"], None)
        self._ordered.discard(message["netns"])
        self._active.discard(message["netns"])
        if served is not None:
            served.publication.segment.close()

    def _obey_stop(self, message: dict[str, Any]) -> None:
        self._stopped = True

    def _mark_dump(self, inside: bool) -> None:
        """Notes on the board that a socket of a namespace is open: the supervisor kills who stays there."""
        self._slot[DUMP_STARTED_NS] = int(self._clock.monotonic_s() * 1e9) if inside else 0


def _grouped(held: Iterable[HeldSocket], column: int) -> dict[Any, list[HeldSocket]]:
    """By a column, in which neighbours are mostly alike."""
    groups: dict[Any, list[HeldSocket]] = {}
    for value, rows in itertools.groupby(held, operator.itemgetter(column)):
        groups.setdefault(value, []).extend(rows)
    return groups
