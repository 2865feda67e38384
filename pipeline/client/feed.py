"""Following: a copy of the aggregator's connections that keeps itself up to date, and what changed in it.

with Feed("/run/sockscope") as feed:
    for change in feed:
        print(change.kind.value, change.row["remote_addr"], change.row["owners"])
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from pipeline.client.asking import FEED_SOCKET, Client
from pipeline.client.replica import FIELDS, HEARTBEAT, Change, Replica, Row
from pipeline.codec import decode_map
from pipeline.errors import Malformed, NoAggregator, Refused
from pipeline.transport.feed import Subscriber

_log = logging.getLogger(__name__)

# Namespace inodes begin with a digit: so delta.edges, which costs the aggregator something, is left out.
_ALL_NAMESPACES = tuple(f"delta.{digit}" for digit in range(10))
_ASK_AGAIN_S = 0.5
_ITERATE_S = 1.0
# Of messages that are there, at most so many are taken in before their changes are handed out.
_MAX_MESSAGES = 1000


class Feed:
    """A subscriber that always comes to the aggregator's state, through lost messages (`gaps`), its own slowness and
    the aggregator's restarts (`restarts`); for one thread. Iterating gives every change, without end: first all there
    is, as opened. A context manager.
    """

    def __init__(
        self, runtime_dir: str = "/run/sockscope", *, netns: Iterable[int] = (), timeout_s: float = 3.0
    ) -> None:
        """Subscribes and waits until that is in force. `netns`: inodes of the namespaces to follow, empty: all.

        Raises: NoAggregator (nobody answers within `timeout_s`), Denied.
        """
        scope = list(netns)
        self._replica = Replica(scope)
        self._where = {"netns": scope[0]} if len(scope) == 1 else {}
        self._client = Client(runtime_dir, timeout_s)
        topics = [f"delta.{inode}" for inode in scope] or _ALL_NAMESPACES
        # The heartbeat last: once one has come, the others are subscribed to as well, and nothing is missed between
        # the answer to the first question and the first message.
        self._subscriber = Subscriber(str(Path(runtime_dir) / FEED_SOCKET), [*topics, HEARTBEAT])
        self._ask_at_s = 0.0
        try:
            self._subscriber.wait(HEARTBEAT, timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def gaps(self) -> int:
        """How often messages were missing; each time the whole state was asked for again."""
        return self._replica.gaps

    @property
    def restarts(self) -> int:
        """How often the aggregator was found to be another one."""
        return self._replica.restarts

    @property
    def epoch(self) -> str | None:
        """The aggregator's run that the copy is of, None before the first answer."""
        return self._replica.epoch

    @property
    def seq(self) -> int:
        """The newest commit of which all is in the copy."""
        return self._replica.seq

    @property
    def synchronised(self) -> bool:
        """False while a new answer is needed and did not come: before the first, after a gap or a restart."""
        return not self._replica.needs_answer

    def rows(self) -> list[Row]:
        """The copy: one map per connection, with the fields of `connections` and `key`, without `owner_seen_at`,
        which moves with every pass. `seen_at` is as of the last message that spoke of the namespace."""
        return list(self._replica.rows())

    def changes(self, timeout_s: float) -> list[Change]:
        """What changed, as soon as something did; empty after `timeout_s`. While there is no aggregator it waits."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            changes = self._ask() if self._replica.needs_answer and time.monotonic() >= self._ask_at_s else []
            if not changes:
                left_s = max(0.0, deadline_s - time.monotonic())
                changes = self._receive(min(left_s, _ASK_AGAIN_S) if self._replica.needs_answer else left_s)
            if changes or time.monotonic() >= deadline_s:
                return changes

    def __iter__(self) -> Iterator[Change]:
        while True:
            yield from self.changes(_ITERATE_S)

    def close(self) -> None:
        """Ends the subscription. The copy stays."""
        self._subscriber.close()
        self._client.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self) -> list[Change]:
        self._ask_at_s = time.monotonic() + _ASK_AGAIN_S
        try:
            answer = self._client.ask("connections", where=self._where, fields=FIELDS)
        except (NoAggregator, Refused) as error:
            # It is restarting, or too busy: its next message, or the next attempt, will do.
            _log.info("the state cannot be asked for: %s", error)
            return []
        return self._replica.load(answer)

    def _receive(self, timeout_s: float) -> list[Change]:
        """Takes in what is there, waiting only for the first message."""
        changes: list[Change] = []
        for number in range(_MAX_MESSAGES):
            received = self._subscriber.receive(0.0 if number else timeout_s)
            if received is None:
                break
            topic, body = received
            try:
                changes += self._replica.offer(topic, decode_map(body))
            except Malformed as error:
                _log.warning("a message of the feed was dropped: %s", error)
            if self._replica.needs_answer:
                break
        return changes
