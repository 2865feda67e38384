"""The clone pattern without the wire: a copy of the aggregator's connections, kept by what the feed says.

Load an answer of the query socket, then offer every message. What is in the answer already is skipped; a message
that says it follows one we never had, or another run of the aggregator, asks for a new answer. It comes to the
aggregator's state whatever is lost, doubled or late, as long as messages and answers come at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipeline.client.answer import Answer
from pipeline.errors import Malformed

HEARTBEAT = "heartbeat"
_DELTA_PREFIX = "delta."
# Columns of a row that follow from its namespace, and the namespace's name for them.
_FROM_NAMESPACE = {
    "netns": "netns", "netns_cookie": "netns_cookie", "netns_name": "name", "seen_at": "seen_at", "stale": "stale",
}  # fmt: skip
# Fixed, so that rows have the same fields whether they came by an answer or by the feed, and whatever a newer
# aggregator adds to either.
_ROW_FIELDS = (
    "key", "proto", "family", "state", "local_addr", "local_port", "remote_addr", "remote_port", "device", "inode",
    "cookie", "uid", "direction", "owner_role", "owners", "nat",
)  # fmt: skip
FIELDS = ("netns", "netns_cookie", "netns_name", *_ROW_FIELDS, "seen_at", "stale")
# Messages of an earlier run may still come after an answer of the new one.
_OLD_EPOCHS = 8

Row = dict[str, Any]


class Kind(Enum):
    """OPENED: was not there. CHANGED: another owner, state, … CLOSED: is not there any more."""

    OPENED = "opened"
    CHANGED = "changed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Change:
    """One connection that differs. `row` as it is now (CLOSED: as it was), `before` as it was (OPENED: None)."""

    kind: Kind
    row: Row
    before: Row | None


class Replica:
    """The copy. `gaps`: how often messages were missing; `restarts`: how often the aggregator was another one.

    `netns`: the inodes it is about, empty: all.
    """

    def __init__(self, netns: Iterable[int] = ()) -> None:
        self.gaps = self.restarts = 0
        self.epoch: str | None = None
        self.needs_answer = True
        self._scope = frozenset(netns)
        # Everything up to `_base` is in the copy; of a topic in `_known`, up to there.
        self._base = 0
        self._known: dict[str, int] = {}
        self._old_epochs: deque[str] = deque(maxlen=_OLD_EPOCHS)
        # netns -> key -> row with _ROW_FIELDS; netns -> what its rows have from it.
        self._rows: dict[int, dict[str, Row]] = {}
        self._namespaces: dict[int, Row] = {}

    @property
    def seq(self) -> int:
        """The newest commit of which all is in the copy."""
        return self._base

    def rows(self) -> Iterator[Row]:
        """All connections, namespace by namespace."""
        for netns, rows in self._rows.items():
            for row in rows.values():
                yield self._whole(netns, row)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def load(self, answer: Answer) -> list[Change]:
        """Takes a whole state with FIELDS; returns how it differs from the copy before."""
        if self.epoch not in (None, answer.epoch):
            self.restarts += 1
            self._old_epochs.append(str(self.epoch))
        before, namespaces_before = self._rows, self._namespaces
        self._rows = {}
        self._namespaces = {
            row["netns"]: _of_namespace(row) for row in answer.namespaces if self._covers(row["netns"])
        }
        for row in answer.rows:
            if not self._covers(row["netns"]):
                continue
            found = self._rows.setdefault(row["netns"], {})
            found[row["key"]] = {name: row[name] for name in _ROW_FIELDS}
        self.epoch, self._base, self.needs_answer = answer.epoch, answer.seq, False
        self._known.clear()
        return list(self._differences(before, namespaces_before))

    def offer(self, topic: str, message: Mapping[str, Any]) -> list[Change]:
        """Takes a message; what it changed. Sets `needs_answer` when it tells that something is missing.

        Raises: Malformed for a message that lacks what the contract names.
        """
        try:
            return self._offer(topic, message)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.needs_answer = True
            raise Malformed(f"a {topic} message lacks something: {error!r}") from None

    def _offer(self, topic: str, message: Mapping[str, Any]) -> list[Change]:
        if self.needs_answer or message["epoch"] in self._old_epochs or not self._is_ours(topic):
            return []
        if message["epoch"] != self.epoch:
            self.needs_answer = True
            return []
        seq, prev, known = message["seq"], message["prev"], self._known_of(topic)
        if prev > known:
            self._miss()
        elif topic == HEARTBEAT:
            self._take_heartbeat(seq, message)
        elif seq > known:
            self._known[topic] = seq
            return self._apply(int(topic.removeprefix(_DELTA_PREFIX)), message)
        return []

    def _is_ours(self, topic: str) -> bool:
        if topic == HEARTBEAT:
            return True
        netns = topic.removeprefix(_DELTA_PREFIX)
        if netns == topic or not netns.isdecimal():
            return False
        return self._covers(int(netns))

    def _covers(self, netns: int) -> bool:
        return not self._scope or netns in self._scope

    def _known_of(self, topic: str) -> int:
        return max(self._base, self._known.get(topic, 0))

    def _miss(self) -> None:
        self.gaps += 1
        self.needs_answer = True

    def _take_heartbeat(self, seq: int, message: Mapping[str, Any]) -> None:
        """Messages come in order: what a heartbeat says was said before it must be here by now."""
        topics: Mapping[str, int] = message["topics"]
        if any(last > self._known_of(topic) for topic, last in topics.items() if self._is_ours(topic)):
            self._miss()
            return
        if seq < self._base:
            return
        # Topics that it does not name have been silent since before the last one, or `prev` were too high.
        self._base = seq
        self._known = {topic: known for topic, known in self._known.items() if known > seq}
        stale = set(message["stale"])
        for netns, namespace in self._namespaces.items():
            namespace["stale"] = netns in stale

    def _apply(self, netns: int, message: Mapping[str, Any]) -> list[Change]:
        if message["namespace"] is not None:
            self._namespaces[netns] = _of_namespace(message["namespace"])
        rows = self._rows.setdefault(netns, {})
        before: dict[str, Row | None] = {}
        for row in _maps(message["columns"], message["removed"]):
            before.setdefault(row["key"], rows.pop(row["key"], None))
        for part in ("added", "changed"):
            for row in _maps(message["columns"], message[part]):
                before.setdefault(row["key"], rows.get(row["key"]))
                rows[row["key"]] = row
        changes = [
            change
            for key, old in before.items()
            if (change := self._change(netns, old, rows.get(key))) is not None
        ]
        if not rows:
            del self._rows[netns]
        if message["namespace"] is None:
            self._namespaces.pop(netns, None)
        return changes

    def _differences(
        self, before: Mapping[int, Mapping[str, Row]], namespaces_before: Mapping[int, Row]
    ) -> Iterator[Change]:
        for netns in before.keys() | self._rows.keys():
            old, new = before.get(netns, {}), self._rows.get(netns, {})
            # Namespace inodes are used again at once.
            for key in old.keys() | new.keys():
                change = self._change(netns, old.get(key), new.get(key), namespaces_before.get(netns))
                if change is not None:
                    yield change

    def _change(
        self, netns: int, old: Row | None, new: Row | None, namespace_before: Row | None = None
    ) -> Change | None:
        if old == new:
            return None
        before = None if old is None else self._whole(netns, old, namespace_before)
        if new is None:
            assert before is not None
            return Change(Kind.CLOSED, before, before)
        kind = Kind.OPENED if before is None else Kind.CHANGED
        return Change(kind, self._whole(netns, new), before)

    def _whole(self, netns: int, row: Row, namespace: Row | None = None) -> Row:
        namespace = (
            namespace or self._namespaces.get(netns) or {**dict.fromkeys(_FROM_NAMESPACE), "netns": netns}
        )
        whole = {**namespace, **row}
        return {name: whole[name] for name in FIELDS}


def _of_namespace(row: Mapping[str, Any]) -> Row:
    return {name: row[source] for name, source in _FROM_NAMESPACE.items()}


def _maps(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[Row]:
    for values in rows:
        row = dict(zip(columns, values, strict=True))
        yield {name: row[name] for name in _ROW_FIELDS}
