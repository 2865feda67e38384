"""The aggregator's feed: what is said after each commit, to whom it is of interest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from pipeline.clock import Clock
from pipeline.codec import encode
from pipeline.feed import (
    EDGES,
    HEARTBEAT,
    EdgeChanges,
    Envelope,
    Topics,
    connection_events,
    delta_content,
    delta_topic,
    event_topic,
    namespace_events,
    snapshot_topic,
)
from pipeline.model.delta import Delta
from pipeline.model.snapshot import Snapshot
from pipeline.query import CONNECTION_FIELDS
from pipeline.roles.feed_jobs import FeedJobs
from pipeline.store import Reader, Store
from pipeline.store.edges import EDGE_FIELDS
from pipeline.store.endings import read_endings
from pipeline.store.envelope import NAMESPACE_FIELDS
from pipeline.store.filters import Condition
from pipeline.store.schema import NAMESPACES
from pipeline.store.select import select, select_connections, select_edges
from pipeline.store.writer import Commit

# A heartbeat names the topics that spoke within this time, or since the last heartbeat.
_RECENT_S = 10.0
# Subscribers that come are told at once that they are there, but not each one.
_BEATS_APART_S = 0.1
# Reading all edges takes at most this part of the time.
_EDGES_SHARE = 0.02
# How soon what the thread made is sent.
_COLLECT_S = 0.05
_SNAPSHOT_FIELDS = ("key", *CONNECTION_FIELDS)
_EVERYTHING = Condition("1", ())


class Outlet(Protocol):
    """Where messages go: transport.feed.FeedSocket."""

    def wants(self, topic: str) -> bool: ...
    def send(self, topic: str, body: bytes) -> None: ...
    def pump(self) -> list[str]: ...


class Publisher:
    """Tell it of every commit, call `pump` often. Messages are built only for topics that somebody subscribes to;
    which seq a topic spoke with last is kept for all."""

    def __init__(
        self,
        store: Store,
        outlet: Outlet,
        host: str,
        clock: Clock,
        heartbeat_s: float,
        time_limit_s: float = 5.0,
    ) -> None:
        self._store = store
        self._outlet = outlet
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._topics = Topics()
        self._envelope = Envelope(host, store.epoch)
        self._reader = store.reader(time_limit_s)
        self._jobs = FeedJobs(lambda: Reader(store.path, clock, time_limit_s))
        self._seq = store.seq
        self._names: dict[int, str | None] = {}
        self._stale = self._read_stale()
        self._walked_s: dict[int, float] = {}
        self._edges = EdgeChanges(EDGE_FIELDS)
        self._edges_due_s: float | None = None
        self._edges_after_s = 0.0
        self._edges_base = True
        self._beat_s = clock.monotonic_s()
        self._due_s = self._beat_s

    @property
    def due_s(self) -> float:
        """When `pump` has something to do although nobody subscribes or commits, CLOCK_MONOTONIC."""
        if self._jobs.busy:
            return min(self._due_s, self._clock.monotonic_s() + _COLLECT_S)
        return self._due_s if self._edges_due_s is None else min(self._due_s, self._edges_due_s)

    def publish(self, commit: Commit, snapshots: Iterable[Snapshot] = ()) -> None:
        """Says what `commit`, the newest of the store, changed. `snapshots`: those merged with it."""
        if commit.seq != self._seq:
            self._seq = commit.seq
            before, names_before = self._stale, self._names
            stale = self._stale = self._read_stale()
            names = {**names_before, **self._names}
            happened = {
                netns: {"event": event, "netns": netns, "netns_name": names[netns]}
                for netns, event in namespace_events(before, stale).items()
            }
            for netns in sorted({*commit.touched, *commit.ended, *happened}):
                self._publish_netns(
                    netns, netns in commit.touched, happened.get(netns), netns in commit.ended
                )
            for netns in before.keys() - stale.keys():
                self._topics.gone(netns, self._clock.monotonic_s())
                self._walked_s.pop(netns, None)
            if commit.edges:
                self._note_edges()
        for snapshot in snapshots:
            if snapshot.walked_at_s not in (None, self._walked_s.get(snapshot.netns)):
                self._walked_s[snapshot.netns] = snapshot.walked_at_s or 0.0
                self._note_walk(snapshot.netns)

    def pump(self) -> None:
        """Takes subscriptions in and says what is due."""
        now_s = self._clock.monotonic_s()
        for subscribed in self._outlet.pump():
            if HEARTBEAT.startswith(subscribed):
                self._due_s = min(self._due_s, max(now_s, self._beat_s + _BEATS_APART_S))
            if EDGES.startswith(subscribed):
                self._edges_base = True
                self._edges_due_s = max(now_s, self._edges_after_s)
        for topic, result in self._jobs.collect():
            if topic == EDGES:
                self._finish_edges(now_s, result)
            elif result is not None:
                seq, content = result
                self._say(topic, seq, self._topics.advance(topic, seq, now_s), content)
        if self._edges_due_s is not None and now_s >= self._edges_due_s:
            self._order_edges()
        if now_s >= self._due_s:
            self._beat(now_s)

    def close(self) -> None:
        self._jobs.close()
        self._reader.close()

    def _publish_netns(self, netns: int, touched: bool, happened: dict[str, Any] | None, ended: bool) -> None:
        topic, events_topic = delta_topic(netns), event_topic(netns)
        follows, listens = self._outlet.wants(topic), self._outlet.wants(events_topic)
        wanted = (touched and (follows or listens)) or (ended and listens)
        delta = self._store.delta(netns, self._seq) if wanted else None
        namespace = self._read_namespace(netns) if follows or listens else None
        if touched:
            prev = self._advance(topic)
            if follows and delta is not None:
                self._say(topic, self._seq, prev, delta_content(delta, namespace))
        if not listens:
            # There may have been none, but nobody looked.
            self._advance(events_topic)
            return
        events = _events(happened, delta, self._read_endings(netns) if ended else ())
        if events:
            prev = self._advance(events_topic)
            self._say(events_topic, self._seq, prev, {"namespace": namespace, "events": events})

    def _note_edges(self) -> None:
        if self._outlet.wants(EDGES):
            self._edges_due_s = max(self._clock.monotonic_s(), self._edges_after_s)
            return
        self._advance(EDGES)
        if not self._jobs.is_under_way(EDGES):
            self._edges.forget()
        self._edges_base = True

    def _order_edges(self) -> None:
        if self._jobs.is_under_way(EDGES):
            return
        self._edges_due_s = None
        if self._outlet.wants(EDGES):
            if self._edges_base:
                self._edges.forget()
                self._edges_base = False
            self._jobs.order(EDGES, self._read_edges)

    def _read_edges(self, reader: Reader) -> tuple[int, dict[str, Any] | None, float]:
        began_s = self._clock.monotonic_s()
        with reader.moment():
            seq = _seq_of(reader)
            found = select_edges(reader, _EVERYTHING, None).rows
        content = self._edges.next_message([[edge[name] for name in EDGE_FIELDS] for edge in found])
        return seq, content, self._clock.monotonic_s() - began_s

    def _finish_edges(self, now_s: float, result: tuple[int, dict[str, Any] | None, float] | None) -> None:
        if result is None:
            self._edges_due_s = self._edges_after_s = now_s + _RECENT_S
            return
        seq, content, took_s = result
        self._edges_after_s = now_s + took_s / _EDGES_SHARE
        if content is not None:
            prev = self._topics.advance(EDGES, seq, now_s)
            self._say(EDGES, seq, prev, content)

    def _note_walk(self, netns: int) -> None:
        # Each is whole: one that nobody wanted is nothing that anybody missed.
        topic = snapshot_topic(netns)
        if self._outlet.wants(topic) and not self._jobs.is_under_way(topic):
            self._jobs.order(topic, partial(_read_whole, netns))

    def _beat(self, now_s: float) -> None:
        # All since the last one, also when we were stopped for long: it may be the only word of a lost message.
        recent = self._topics.recent(min(now_s - _RECENT_S, self._beat_s))
        self._topics.forget(now_s)
        self._beat_s, self._due_s = now_s, now_s + self._heartbeat_s
        prev = self._topics.advance(HEARTBEAT, self._store.seq, now_s)
        if self._outlet.wants(HEARTBEAT):
            stale = sorted(netns for netns, is_stale in self._stale.items() if is_stale)
            content = {"topics": recent, "stale": stale, "interval_s": self._heartbeat_s}
            self._say(HEARTBEAT, self._store.seq, prev, content)

    def _advance(self, topic: str) -> int:
        return self._topics.advance(topic, self._seq, self._clock.monotonic_s())

    def _say(self, topic: str, seq: int, prev: int, content: dict[str, Any]) -> None:
        self._outlet.send(topic, encode(self._envelope.message(seq, prev, **content)))

    def _read_stale(self) -> dict[int, bool]:
        """netns -> whether it is stale, of all; notes their names as well."""
        with self._reader.moment():
            rows = select(self._reader, NAMESPACES, ("netns", "stale", "name"), _EVERYTHING, "n.netns", None)
        self._names = {netns: name for netns, _, name in rows}
        return {netns: stale for netns, stale, _ in rows}

    def _read_endings(self, netns: int) -> list[dict[str, Any]]:
        with self._reader.moment():
            return read_endings(self._reader, netns, self._seq)

    def _read_namespace(self, netns: int) -> dict[str, Any] | None:
        with self._reader.moment():
            return _namespace(self._reader, netns)


def _events(
    of_namespace: dict[str, Any] | None, delta: Delta | None, endings: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """In the order in which they make sense: a namespace comes before its connections and goes after them."""
    events = [] if delta is None else connection_events(delta, endings)
    if of_namespace is not None:
        events.insert(len(events) if of_namespace["event"] == "gone" else 0, of_namespace)
    return events


def _namespace(reader: Reader, netns: int) -> dict[str, Any] | None:
    rows = select(reader, NAMESPACES, NAMESPACE_FIELDS, Condition("n.netns = ?", (netns,)), "n.netns", None)
    return dict(zip(NAMESPACE_FIELDS, rows[0], strict=True)) if rows else None


def _read_whole(netns: int, reader: Reader) -> tuple[int, dict[str, Any]]:
    with reader.moment():
        seq = _seq_of(reader)
        rows = select_connections(reader, _SNAPSHOT_FIELDS, Condition("c.netns = ?", (netns,)), None)
        return seq, {"namespace": _namespace(reader, netns), "columns": _SNAPSHOT_FIELDS, "rows": rows}


def _seq_of(reader: Reader) -> int:
    ((seq,),) = reader.rows("SELECT seq FROM meta")
    assert isinstance(seq, int)
    return seq
