"""What the feed says (contract 5.5): which message follows which, and what is in each. No sockets, no store.

Every map begins with `schema`, `host`, `epoch`, `seq` (the commit it belongs to) and `prev` (the seq of the message
before it on its topic). A subscriber who knows less than `prev` has missed something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.model.delta import Delta

SCHEMA = 1
# What the event of an end has beside the connection.
ENDING_FIELDS = ("opened_at", "closed_at", "duration_s", "bytes_sent", "bytes_received", "refused", "source")
HEARTBEAT = "heartbeat"
EDGES = "delta.edges"

# A gone namespace's topics are remembered for so long: its inode may be used again at once.
_REMEMBER_GONE_S = 60.0


def delta_topic(netns: int) -> str:
    return f"delta.{netns}"


def event_topic(netns: int) -> str:
    return f"event.{netns}"


def snapshot_topic(netns: int) -> str:
    return f"snapshot.{netns}"


class Topics:
    """The last seq of every topic, kept whether or not anybody subscribes: else a subscriber who is just arriving
    could miss a message and not notice."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._spoke_s: dict[str, float] = {}
        self._gone_s: dict[str, float] = {}
        # What a topic that is not remembered any more may have said last, at most.
        self._forgotten_seq = 0

    def advance(self, topic: str, seq: int, now_s: float) -> int:
        """Notes that `topic` speaks with `seq`, at `now_s`. Returns `prev`: with what it spoke before; 0 if never."""
        prev = self.last(topic)
        self._last[topic] = max(seq, prev)
        self._spoke_s[topic] = now_s
        self._gone_s.pop(topic, None)
        return prev

    def last(self, topic: str) -> int:
        """With what `topic` spoke last; 0 if never."""
        return self._last.get(topic, self._forgotten_seq)

    def recent(self, since_s: float) -> dict[str, int]:
        """topic -> last seq, of those that spoke since then, heartbeats aside."""
        return {
            topic: self._last[topic]
            for topic, spoke_s in self._spoke_s.items()
            if spoke_s >= since_s and topic != HEARTBEAT
        }

    def gone(self, netns: int, now_s: float) -> None:
        """The namespace is gone: its topics are forgotten after a while."""
        for topic in (delta_topic(netns), event_topic(netns), snapshot_topic(netns)):
            if topic in self._last:
                self._gone_s[topic] = now_s

    def forget(self, now_s: float) -> None:
        """Forgets the topics of namespaces that have been gone for long. Their next `prev` may be too high, which
        costs a subscriber a question; one too low would hide a loss."""
        for topic in [topic for topic, gone_s in self._gone_s.items() if gone_s < now_s - _REMEMBER_GONE_S]:
            del self._gone_s[topic], self._spoke_s[topic]
            self._forgotten_seq = max(self._forgotten_seq, self._last.pop(topic))


class Envelope:
    """Makes the maps of one aggregator run."""

    def __init__(self, host: str, epoch: str) -> None:
        self._host = host
        self._epoch = epoch

    def message(self, seq: int, prev: int, **content: Any) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "host": self._host, "epoch": self._epoch, "seq": seq, "prev": prev, **content,
        }  # fmt: skip


def delta_content(delta: Delta, namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a delta message holds. `namespace`: its row as of this commit, None when it is gone."""
    return {**delta._asdict(), "namespace": namespace}


def connection_events(delta: Delta, endings: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Closed, then opened connections, each with its row as a map: a key may be used again within one commit.

    `endings`: what ended, in columns of the table of closed connections: also what never was a row, or still is one, as
    TIME_WAIT; that it goes in the end is no event.
    """
    removed = {
        row["key"]: row for row in (dict(zip(delta.columns, one, strict=True)) for one in delta.removed)
    }
    events = []
    for ending in endings:
        row = removed.pop(ending["key"], None) or _row_of(ending, delta.columns)
        events.append(
            {"event": "closed", "connection": row, **{name: ending[name] for name in ENDING_FIELDS}}
        )
    for row in removed.values():
        if row.get("state") != "TIME_WAIT" or row.get("owner_role") != "last":
            events.append({"event": "closed", "connection": row})
    for one in delta.added:
        events.append({"event": "opened", "connection": dict(zip(delta.columns, one, strict=True))})
    return events


def _row_of(ending: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """A connection that ended, as the row it had or would have had."""
    row = {name: ending.get(name) for name in columns}
    owner = {name: ending[name] for name in ("pid", "start_ticks", "comm", "container")}
    row["owners"] = [] if ending["pid"] is None else [{**owner, "fd": None, "netns": None}]
    return row


def namespace_events(before: Mapping[int, bool], after: Mapping[int, bool]) -> dict[int, str]:
    """netns -> what happened to it (appeared, gone, stale, fresh) between two listings of netns -> is it stale."""
    events = dict.fromkeys(before.keys() - after.keys(), "gone")
    for netns, stale in after.items():
        if netns not in before:
            events[netns] = "appeared"
        elif stale != before[netns]:
            events[netns] = "stale" if stale else "fresh"
    return events


class EdgeChanges:
    """The edges as last sent, and how they changed since. Kept only while somebody subscribes."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        # When an end was seen last moves with every look, and is no change of the edge.
        self._compared = [index for index, column in enumerate(columns) if column != "last_seen"]
        self._key = [columns.index(column) for column in ("client", "server", "proto", "ambiguous", "nat")]
        self._sent: dict[Any, Sequence[Any]] | None = None

    def forget(self) -> None:
        """The next message is a base: all there is, as `added`."""
        self._sent = None

    def next_message(self, rows: Iterable[Sequence[Any]]) -> dict[str, Any] | None:
        """What to send now that the edges are `rows`; None where nothing changed."""
        now = {self._identity(row): row for row in rows}
        base, before = self._sent is None, self._sent or {}
        self._sent = now
        added = [row for key, row in now.items() if key not in before]
        changed = [row for key, row in now.items() if key in before and self._differ(row, before[key])]
        removed = [row for key, row in before.items() if key not in now]
        if not (base or added or changed or removed):
            return None
        return {
            "base": base, "columns": self.columns, "added": added, "changed": changed, "removed": removed,
        }  # fmt: skip

    def _differ(self, one: Sequence[Any], other: Sequence[Any]) -> bool:
        return any(one[index] != other[index] for index in self._compared)

    def _identity(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """What the edges are grouped by; the ends are maps, of which name and container follow from the process."""
        client, server, proto, ambiguous, nat = (row[index] for index in self._key)
        return (_end(client), _end(server), server["port"], proto, ambiguous, _way(nat))


def _way(nat: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """All of a translation but the ports of its sources, of which each connection has its own."""
    ways = () if nat is None else (nat["original"], nat["translated"])
    return tuple((way["src"], way["dst"], way["dport"]) for way in ways)


def _end(end: Mapping[str, Any]) -> tuple[Any, ...]:
    return (end["netns"], end["pid"], end["start_ticks"], end["addr"])
