"""The conntrack worker: which namespaces translate addresses, and their translated flows. One process for all.

It lives in the host's namespace. Events come by one socket there, of our own namespace and of those that have an nsid
in it; the others are asked again and again, those that track nothing ever more seldom. It enters a namespace only to
open the socket of one question or dump.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from typing import Any

from pipeline.board import CPU_NS, DUMP_STARTED_NS, LOOKS, Slot
from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.errors import Denied, EventsLost, Malformed, Unsupported, Vanished
from pipeline.netlink.conntrack_events import FlowEvent, FlowEvents, FlowGroup
from pipeline.netlink.conntrack_message import FlowDecoder
from pipeline.netlink.nsid import open_route
from pipeline.procfs.conntrack import has_conntrack
from pipeline.procfs.root import ProcRoot
from pipeline.roles.control import Control
from pipeline.roles.flow_namespace import Asking, FlowNamespace
from pipeline.segment import SegmentWriter
from pipeline.walk.budget import CpuBudget

_log = logging.getLogger(__name__)

# An UPDATE changes no tuple, and a flow has five of them: the kernel need not even make those messages.
_GROUPS = (FlowGroup.NEW, FlowGroup.DESTROY)
# Events that come within this time are read, and published, together.
_GATHER_S = 0.1
# At most so many at once, 0.2 s of work.
_MAX_EVENTS = 20_000
# What is lost once is lost again while the burst lasts.
_RESYNC_BACKOFF_S = 1.0
# Checks that come due within this time are made together: a round looks through all namespaces.
_ROUND_S = 0.25
_ROUND_LIMIT_CPU_S = 0.02
# How often to see whether there is connection tracking by now.
_ABSENT_RETRY_S = 60.0


class ConntrackWorker:
    """One worker; `run` returns when told to stop or when the supervisor has gone."""

    def __init__(
        self, config: Config, control: Control, slot: Slot, send: Callable[[bytes], bool], clock: Clock
    ) -> None:
        """`slot`: on the board. `send`: publishes (False: dropped)."""
        self._settings = config.conntrack
        self._control = control
        self._slot = slot
        self._send = send
        self._clock = clock
        self._share = config.budget.cpu_percent / 100
        self._budget = CpuBudget(self._share, clock.monotonic_s())
        self._root = ProcRoot()
        self._namespaces: dict[int, FlowNamespace] = {}
        self._by_nsid: dict[int | None, FlowNamespace] = {}
        self._decoder = FlowDecoder()
        self._asking = Asking(open_route(), self._decoder, self._subscribe, self._mark_dump)
        self._events: FlowEvents | None = None
        self._drain_s: float | None = None
        self._absent_until_s = self._next_round_s = float("-inf")
        self._told: set[str] = set()
        self._stopped = False

    def run(self) -> None:
        while not self._stopped:
            self._wait()
            self._work()
        self._close()

    def _wait(self) -> None:
        """Until told something, until something is due, or until events come: those are left to gather."""
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        if self._events is not None and self._drain_s is None:
            poller.register(self._events.fileno(), select.POLLIN)
        now_s = self._clock.monotonic_s()
        due_s = self._due_s(now_s)
        timeout_ms = None if due_s is None else max(0.0, due_s - now_s) * 1000 + 1
        ready = {fd for fd, _ in poller.poll(timeout_ms)}
        if self._control.fileno() in ready:
            self._obey_all()
        elif ready:
            self._drain_s = self._clock.monotonic_s() + _GATHER_S

    def _due_s(self, now_s: float) -> float | None:
        """When there is something to do; None: when told."""
        dues_s = [namespace.due_s for namespace in self._namespaces.values()]
        if dues_s:
            dues_s = [max(min(dues_s), self._absent_until_s, self._next_round_s)]
        if self._drain_s is not None:
            dues_s.append(self._drain_s)
        return max(min(dues_s), self._budget.ready_s(now_s)) if dues_s else None

    def _work(self) -> None:
        """Reads the events, or checks the namespaces that are due, if the budget allows; then publishes."""
        now_s = self._clock.monotonic_s()
        if self._budget.ready_s(now_s) > now_s:
            return
        began_cpu_s = self._clock.cpu_s()
        if self._drain_s is not None and now_s >= self._drain_s:
            self._drain(now_s)
            self._publish_all()
        elif now_s >= max(self._absent_until_s, self._next_round_s):
            self._check_due(now_s)
            self._publish_all()
        used_cpu_s = self._clock.cpu_s()
        self._budget.charge(used_cpu_s - began_cpu_s, self._clock.monotonic_s())
        self._slot[CPU_NS] = int(used_cpu_s * 1e9)

    def _check_due(self, now_s: float) -> None:
        """One round: the longest due first, up to a limit of CPU time; the others stay due."""
        due = sorted(
            (one for one in self._namespaces.values() if one.due_s <= now_s), key=lambda one: one.due_s
        )
        if not due:
            return
        if not has_conntrack(self._root):
            self._tell_once("absent", "connections are not tracked on this host: nothing is translated")
            self._absent_until_s = now_s + _ABSENT_RETRY_S
            return
        stop_at_s = self._clock.cpu_s() + _ROUND_LIMIT_CPU_S
        for namespace in due:
            self._check(namespace, self._clock.monotonic_s())
            if self._clock.cpu_s() > stop_at_s or self._absent_until_s > now_s:
                break
        else:
            self._next_round_s = now_s + _ROUND_S
        self._index()

    def _check(self, namespace: FlowNamespace, now_s: float) -> None:
        began_cpu_s = self._clock.cpu_s()
        self._drain(now_s)
        try:
            namespace.check(self._asking, now_s)
        except Vanished:
            namespace.health.dumps_vanished += 1  # on its way out: the supervisor will say so
        except Denied as error:
            if namespace.health.dumps_denied == 0:
                namespace.want_base()  # an empty one, whose counts tell that it is blind
            namespace.health.dumps_denied += 1
            self._tell_once(
                "denied", f"NAT is not resolved where it may not be read: {error}", namespace.netns
            )
        except Unsupported as error:
            namespace.health.dumps_denied += 1
            self._tell_once("unsupported", f"NAT is not resolved: {error}")
            self._absent_until_s = now_s + _ABSENT_RETRY_S
        except Malformed as error:
            namespace.health.rows_malformed += 1
            self._tell_once("malformed", f"conntrack: {error}", namespace.netns)
        self._slot[LOOKS] += 1
        if namespace.hears:
            self._by_nsid[namespace.nsid] = namespace
        self._drain(now_s)
        now_s = self._clock.monotonic_s()
        namespace.plan(now_s, self._clock.cpu_s() - began_cpu_s, self._share)

    def _drain(self, now_s: float) -> None:
        """Applies what events there are; all namespaces that hear are read again when some were lost."""
        self._drain_s = None
        events: list[FlowEvent] | None = [] if self._events is None else None
        while events is None:
            assert self._events is not None
            try:
                events = self._events.receive(self._decoder, _MAX_EVENTS)
            except EventsLost:
                for namespace in self._by_nsid.values():
                    namespace.health.events_lost += 1
                    namespace.want_dump(now_s + _RESYNC_BACKOFF_S)
        for event in events:
            heard = self._by_nsid.get(event.nsid)
            if heard is not None:
                heard.apply(event)

    def _subscribe(self) -> bool:
        """Whether events are heard from now on."""
        if self._events is None:
            try:
                self._events = FlowEvents(_GROUPS)
            except (Denied, Unsupported) as error:
                self._tell_once("events", f"translated flows are read without events: {error}")
                return False
        return True

    def _index(self) -> None:
        """Whose events are whose, after a check; without anybody to hear, the subscription ends."""
        self._by_nsid = {
            one.nsid: one for one in self._namespaces.values() if one.nsid is not None or one.is_home
        }
        if self._events is not None and not any(one.hears for one in self._by_nsid.values()):
            self._events.close()
            self._events = self._drain_s = None

    def _publish_all(self) -> None:
        for namespace in self._namespaces.values():
            if namespace.is_worth_telling:
                snapshot = namespace.take_snapshot()
                if not namespace.publication.publish(snapshot, namespace.base, self._clock.monotonic_s()):
                    namespace.want_base()

    def _tell_once(self, what: str, message: str, netns: int | None = None) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.info("%s", message, extra={} if netns is None else {"netns": netns})

    def _obey_all(self) -> None:
        messages = self._control.receive()
        if messages is None:
            self._stopped = True
        for message in messages or ():
            getattr(self, "_obey_" + message["op"])(message)

    def _obey_assign(self, message: dict[str, Any]) -> None:
        self._namespaces[message["netns"]] = FlowNamespace(
            message["netns"],
            message["life"],
            SegmentWriter(message["segment"]),
            self._send,
            message["ways"],
            self._settings,
            self._clock.monotonic_s(),
        )

    def _obey_ways(self, message: dict[str, Any]) -> None:
        namespace = self._namespaces.get(message["netns"])
        if namespace is not None:
            namespace.ways = message["ways"]
            namespace.stir()

    def _obey_stir(self, message: dict[str, Any]) -> None:
        for netns in message["netns"]:
            namespace = self._namespaces.get(netns)
            if namespace is not None:
                namespace.stir()

    def _obey_drop(self, message: dict[str, Any]) -> None:
        namespace = self._namespaces.pop(message["netns"], None)
        if namespace is not None:
            namespace.publication.segment.close()
            self._index()

    def _obey_share(self, message: dict[str, Any]) -> None:
        self._share = message["cpu"]
        self._budget.set_share(self._share, self._clock.monotonic_s())

    def _obey_stop(self, message: dict[str, Any]) -> None:
        self._stopped = True

    def _mark_dump(self, inside: bool) -> None:
        """Notes on the board that a socket of a namespace is open: the supervisor kills who stays there."""
        self._slot[DUMP_STARTED_NS] = int(self._clock.monotonic_s() * 1e9) if inside else 0

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
        self._asking.route.close()
        for namespace in self._namespaces.values():
            namespace.publication.segment.close()
