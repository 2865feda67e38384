"""The aggregator: merges what workers publish and answers queries. The only process with the store.

It can die at any time: its successor reads the roster and every segment and is complete again.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from pipeline.board import CPU_NS, Slot
from pipeline.clock import Clock
from pipeline.codec import decode_map
from pipeline.config import Config, group_id
from pipeline.errors import Malformed, Vanished
from pipeline.kernel.support import host_name
from pipeline.merge.latest import Latest, Verdict
from pipeline.model.deferred import Heavy, Later
from pipeline.model.flow_snapshot import FLOW_ROLE, LOSSES, FlowHealth, FlowSnapshot, flows_from_wire
from pipeline.model.snapshot import Snapshot, from_wire
from pipeline.procfs.root import ProcRoot
from pipeline.query import Lookups, handle, refuse_bytes
from pipeline.roles.control import Control
from pipeline.roles.publisher import Publisher
from pipeline.roles.roster import Roster, read_roster
from pipeline.roles.spending import Spending
from pipeline.roles.usage import UsageMeter
from pipeline.segment import flows_segment, read_segment
from pipeline.store import Commit, Reader, Store
from pipeline.store.closed import Limits
from pipeline.transport.feed import FeedSocket
from pipeline.transport.front_thread import FrontThread
from pipeline.transport.ingest import Puller
from pipeline.transport.poller import Poller
from pipeline.transport.query_socket import QueryFront

_log = logging.getLogger(__name__)

# Snapshots that arrive within this time become one commit: fewer transactions for the price of a little age. The more
# a commit costs the longer it is, so that commits take this part of a core, up to the most.
_BATCH_S = 0.05
_BATCH_PART = 0.025
_BATCH_MOST_S = 0.2
_MAX_BATCH = 1024
_TICK_S = 1.0
_SWITCH_INTERVAL_S = 0.0002
_COLLECT_PERIOD_S = 60.0
_HEAVY_NICE = 10
_QUERY_THREADS = 4
_FOLLOWED_FOR_S = 60.0
# What a lookup may take: a few hundred rows of a namespace or two.
_LOOKUP_STEPS = 50_000

# What workers publish.
News = Snapshot | FlowSnapshot


class Aggregator:
    """One run of it. `run` returns when told to stop or when the supervisor has gone."""

    def __init__(
        self, control: Control, slot: Slot, config: Config, runtime_dir: str, roster_path: str, clock: Clock
    ) -> None:
        self._control = control
        self._slot = slot
        self._config = config
        self._runtime_dir = runtime_dir
        self._roster_path = roster_path
        self._clock = clock
        self._latest = Latest()
        self._segments: dict[int, str] = {}
        self._flow_healths: dict[int, FlowHealth] = {}
        self._new_roster: Roster | None = None
        self._usage = UsageMeter(clock, ProcRoot(config.agent.proc_root))
        self._spending = Spending(config.budget.cpu_percent, clock.monotonic_s())
        self._poller = Poller()
        self._front: FrontThread | None = None
        self._feed: FeedSocket | None = None
        self._publisher: Publisher | None = None
        self._puller = Puller(f"{runtime_dir}/ingest.ipc")
        self._store = Store(
            f"{runtime_dir}/state.db",
            secrets.token_hex(8),
            config.agent.host_name or host_name(),
            clock,
            config.workers.stale_after_s,
            Limits(config.closed.retention_s, config.closed.max_rows),
        )
        self._pids: list[int] = []
        self._next_collect_s = clock.monotonic_s() + _COLLECT_PERIOD_S
        self._malformed = self._denied = self._left_out = 0
        self._stopped = False
        self._followed_s = float("-inf")

    def run(self) -> None:
        # A thread that builds a great answer hands over the interpreter after this long instead of 5 ms: a lookup
        # changes threads four times on its way.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        # The collector would look at every row of it, again and again, and hold the interpreter for 100 ms. Rows make
        # no cycles; what does is collected now and then.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._poller.register(self._control.fileno())
        self._read_roster()
        self._merge(self._read_segments())
        next_tick_s = self._clock.monotonic_s()
        merge_s = next_tick_s
        listening = False
        while not self._stopped:
            now_s = self._clock.monotonic_s()
            if not listening and now_s >= merge_s:
                self._poller.register(self._puller.socket)
                listening = True
            wake_s = next_tick_s if listening else min(next_tick_s, merge_s)
            if self._publisher is not None:
                wake_s = min(wake_s, self._publisher.due_s)
            ready = self._poller.wait(max(0.0, wake_s - now_s))
            if self._control.fileno() in ready:
                self._obey()
            if self._puller.socket in ready:
                began_cpu_s = time.thread_time()
                self._merge(self._decode(self._puller.drain(_MAX_BATCH)))
                # News that comes within the next moments is merged together.
                batch_s = (time.thread_time() - began_cpu_s) / _BATCH_PART
                merge_s = self._clock.monotonic_s() + min(max(batch_s, _BATCH_S), _BATCH_MOST_S)
                self._poller.unregister(self._puller.socket)
                listening = False
            if self._clock.monotonic_s() >= next_tick_s:
                next_tick_s = self._clock.monotonic_s() + _TICK_S
                self._tick()
            if self._publisher is not None:
                self._publisher.pump()
        self._close()

    def _merge(self, news: list[News]) -> None:
        """One commit. A snapshot that cannot be stored is dropped and counted, the others are not."""
        roster, self._new_roster = self._new_roster, None
        snapshots = [one for one in news if isinstance(one, Snapshot)]
        flows = [one for one in news if isinstance(one, FlowSnapshot)]
        self._store.keeps_past = self._is_followed()
        if roster is not None:
            # First: who holds a socket is not sure to be known where some processes are hidden.
            self._denied, self._left_out = roster.denied, roster.left_out
            self._store.set_losses({"processes_denied": self._denied, "namespaces_left_out": self._left_out})
        try:
            commit = self._store.apply(snapshots, roster.namespaces if roster is not None else None, flows)
        except ValueError as error:
            self._new_roster = roster
            if len(news) == 1:
                self._count_malformed(error)
                # What follows it is a gap then, and its segment is read.
                self._latest.forget(news[0].netns)
            else:
                for snapshot in news:
                    self._merge([snapshot])
            return
        self._wake(commit)
        if self._publisher is not None:
            self._publisher.publish(commit, snapshots)
        self._flow_healths.update((one.netns, one.health) for one in flows)
        for netns in commit.removed:
            self._latest.forget(netns)
            self._flow_healths.pop(netns, None)
        if roster is not None:
            self._store.set_workers(roster.workers)
            self._pids = [worker.pid for worker in roster.workers]
        if self._store.ready and self._front is None:
            self._open_front()
            self._open_feed()

    def _open_front(self) -> None:
        """Queries are answered from the first complete state on, not before: half an answer is a wrong one."""
        query = self._config.query
        state_path = self._store.path
        front = QueryFront(
            f"{self._runtime_dir}/query.ipc",
            lambda: partial(handle, Reader(state_path, self._clock, query.sql_timeout_s)),
            refuse=refuse_bytes,
            threads=_QUERY_THREADS,
            quick=Lookups(lambda: Reader(state_path, self._clock, max_steps=_LOOKUP_STEPS)),
            make_heavy_handler=self._make_heavy_handler,
            max_request_bytes=query.max_request_bytes,
            gid=group_id(self._config),
        )
        self._front = FrontThread(front)
        self._control.send({"op": "ready", "namespaces": len(self._segments)}, self._clock.monotonic_s())

    def _open_feed(self) -> None:
        feed, agent = self._config.feed, self._config.agent
        self._feed = FeedSocket(
            f"{self._runtime_dir}/feed.ipc",
            self._poller,
            high_water_mark=feed.high_water_mark,
            gid=group_id(self._config),
        )
        self._publisher = Publisher(
            self._store,
            self._feed,
            agent.host_name or host_name(),
            self._clock,
            feed.heartbeat_s,
            self._config.query.sql_timeout_s,
        )

    def _make_heavy_handler(self) -> Callable[[bytes], bytes | Later | Heavy]:
        """In a thread for statements of SQL: it yields to all others where there are too few cores."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _HEAVY_NICE)
        reader = Reader(self._store.path, self._clock, self._config.query.sql_timeout_s)
        return partial(handle, reader, may_defer=False)

    def _tick(self) -> None:
        if self._clock.monotonic_s() >= self._next_collect_s:
            self._next_collect_s = self._clock.monotonic_s() + _COLLECT_PERIOD_S
            gc.collect()
        if self._front is not None and self._front.failure is not None:
            raise self._front.failure
        if self._new_roster is not None:
            self._merge([])
        self._store.keeps_past = self._is_followed()
        commit = self._store.tick()
        self._wake(commit)
        if self._publisher is not None:
            self._publisher.publish(commit)
        for netns in commit.removed:
            self._latest.forget(netns)
        self._store.set_losses(
            {
                "processes_denied": self._denied,
                "namespaces_left_out": self._left_out,
                **self._flow_losses(),
                "messages_malformed": self._malformed,
                "ingest_garbage": self._puller.garbage,
                "queries_garbage": self._front.front.garbage if self._front else 0,
                "queries_refused": self._front.front.refused if self._front else 0,
                "answers_lost": self._front.front.answers_lost if self._front else 0,
                "feed_resets": self._feed.resets if self._feed else 0,
            }
        )
        usage = self._usage.measure_if_due(self._pids)
        if usage is not None:
            self._store.set_usage(
                usage,
                self._spending.add(usage, os.getpid(), time.thread_time(), self._clock.monotonic_s()),
            )
        # The main thread alone: query work is not the pipeline's.
        self._slot[CPU_NS] = time.thread_time_ns()

    def _flow_losses(self) -> dict[str, int]:
        """What the conntrack worker could not read, of all namespaces together."""
        summed = [0] * len(LOSSES)
        for health in self._flow_healths.values():
            summed = [sum(pair) for pair in zip(summed, health.losses(), strict=True)]
        return {f"conntrack_{name}": count for name, count in zip(LOSSES, summed, strict=True)}

    def _is_followed(self) -> bool:
        """Whether anybody wants to know what the next commit changes, or did lately: who waits comes again."""
        now_s = self._clock.monotonic_s()
        if (self._front is not None and self._front.front.parked) or (
            self._feed is not None and self._feed.has_subscribers
        ):
            self._followed_s = now_s
        return now_s < self._followed_s + _FOLLOWED_FOR_S

    def _wake(self, commit: Commit) -> None:
        if commit.touched and self._front is not None:
            self._front.wake()

    def _count_malformed(self, error: Exception) -> None:
        self._malformed += 1
        _log.warning("a message was dropped: %s", error)

    def _close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if self._feed is not None:
            self._feed.close()
        if self._front is not None:
            self._front.close()
        self._puller.close()
        self._store.close()

    def _obey(self) -> None:
        messages = self._control.receive()
        if messages is None or any(message["op"] == "stop" for message in messages):
            self._stopped = True
        elif messages:
            self._read_roster()

    def _read_roster(self) -> None:
        """Takes the newest roster, to be written with the next merge."""
        try:
            self._new_roster = read_roster(self._roster_path)
        except (Vanished, Malformed) as error:
            _log.warning("no roster: %s", error)
            return
        self._segments = {row.netns: row.segment for row in self._new_roster.namespaces}

    def _read_segments(self) -> list[News]:
        """What every segment of the roster's namespaces holds, as far as it is new."""
        paths = [path for netns, path in self._segments.items() for path in (path, self._flows_path(netns))]
        return [snapshot for path in paths for snapshot in self._read_segment(path)]

    def _read_segment(self, path: str) -> list[News]:
        try:
            payloads = read_segment(path).payloads
        except Vanished:
            return []  # a new worker that has not published yet, or a namespace that does not translate
        except Malformed as error:
            _log.warning("a segment cannot be read: %s", error)
            return []
        found = [self._from_payload(payload) for payload in payloads]
        return [one for one in found if one is not None and self._latest.offer(one) is Verdict.APPLY]

    def _flows_path(self, netns: int) -> str:
        """Where the segment of a namespace's flows is, if there is one: beside the roster."""
        return os.path.join(os.path.dirname(self._roster_path), flows_segment(netns))

    def _decode(self, messages: list[bytes]) -> list[News]:
        """The snapshots that are new, in order; where one before it is missing, the segment's instead."""
        wanted: list[News] = []
        for message in messages:
            snapshot = self._from_payload(message)
            if snapshot is None:
                continue
            verdict = self._latest.offer(snapshot)
            if verdict is Verdict.APPLY:
                wanted.append(snapshot)
            elif verdict is Verdict.GAP:
                netns = snapshot.netns
                path = self._flows_path(netns) if snapshot.role == FLOW_ROLE else self._segments.get(netns)
                wanted += self._read_segment(path) if path is not None else []
        return wanted

    def _from_payload(self, payload: bytes) -> News | None:
        try:
            wire = decode_map(payload)
            return flows_from_wire(wire) if wire.get("role") == FLOW_ROLE else from_wire(wire)
        except Malformed as error:
            self._count_malformed(error)
            return None
