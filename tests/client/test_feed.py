"""The feed's client against a real store, publisher, feed and query socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.client import FEED_SOCKET, Change, Feed, Kind
from pipeline.clock import SystemClock
from pipeline.errors import NoAggregator
from pipeline.model.snapshot import Snapshot
from pipeline.query import answer_bytes
from pipeline.roles.publisher import Publisher
from pipeline.store import Reader, Store
from pipeline.transport.feed import FeedSocket
from pipeline.transport.poller import Poller
from tests.client.serving import Server
from tests.live import wait_until
from tests.sample_state import BLUE, HOST, connection, snapshot


class Aggregator:
    """What an aggregator's run does for a feed, in a thread; `merge` hands it snapshots."""

    def __init__(self, folder: Path, epoch: str) -> None:
        self._folder = folder
        self._epoch = epoch
        self._orders: list[list[Snapshot]] = []
        self._ending = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(60.0)

    def merge(self, *snapshots: Snapshot) -> None:
        self._orders.append(list(snapshots))
        wait_until(lambda: not self._orders)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        clock, poller = SystemClock(), Poller()
        store = Store(str(self._folder / "state.db"), self._epoch, "box", clock, 15.0)
        server = Server(self._folder, lambda: partial(answer_bytes, Reader(store.path)))
        feed = FeedSocket(str(self._folder / FEED_SOCKET), poller, high_water_mark=100)
        publisher = Publisher(store, feed, "box", clock, 0.1)
        self._ready.set()
        while not self._ending.is_set():
            poller.wait(0.02)
            publisher.pump()
            if self._orders:
                publisher.publish(store.apply(self._orders[0]), self._orders[0])
                self._orders.pop(0)
        publisher.close()
        feed.close()
        server.close()
        store.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Aggregator]]:
    running: list[Aggregator] = []

    def begin(epoch: str) -> Aggregator:
        for one in running:
            one.close()
        running[:] = [Aggregator(tmp_path, epoch)]
        return running[0]

    yield begin
    for one in running:
        one.close()


def keys(feed: Feed) -> list[str]:
    return sorted(row["key"] for row in feed.rows())


def follow_until(feed: Feed, condition: Callable[[], bool]) -> list[Change]:
    """The changes up to when `condition` holds."""
    changes: list[Change] = []

    def holds() -> bool:
        changes.extend(feed.changes(0.1))
        return condition()

    wait_until(holds)
    return changes


def test_first_comes_all_there_is_and_then_what_changes(
    tmp_path: Path, start: Callable[[str], Aggregator]
) -> None:
    aggregator = start("run-1")
    aggregator.merge(snapshot(HOST, connections=[connection(1), connection(2)]))
    with Feed(str(tmp_path), timeout_s=60.0) as feed:
        assert (feed.synchronised, feed.epoch) == (False, None)
        assert [change.kind for change in feed.changes(60.0)] == [Kind.OPENED, Kind.OPENED]
        assert (feed.synchronised, feed.epoch, keys(feed)) == (True, "run-1", ["1", "2"])
        aggregator.merge(snapshot(HOST, 2, base=False, gone_connections=[1]))
        (change,) = follow_until(feed, lambda: keys(feed) == ["2"])
        assert (change.kind, change.row["key"], change.row["netns"]) == (Kind.CLOSED, "1", HOST)
        assert (feed.gaps, feed.restarts) == (0, 0)


def test_iterating_gives_every_change(tmp_path: Path, start: Callable[[str], Aggregator]) -> None:
    aggregator = start("run-1")
    aggregator.merge(snapshot(HOST, connections=[connection(1)]))
    with Feed(str(tmp_path), timeout_s=60.0) as feed:
        changes = iter(feed)
        assert next(changes).row["key"] == "1"
        aggregator.merge(snapshot(BLUE, connections=[connection(2)]))
        assert next(changes).row["key"] == "2"


def test_nothing_new_is_no_change(tmp_path: Path, start: Callable[[str], Aggregator]) -> None:
    start("run-1")
    with Feed(str(tmp_path), timeout_s=60.0) as feed:
        assert follow_until(feed, lambda: feed.synchronised) == []
        assert feed.changes(0.3) == []


def test_another_aggregator_is_followed_from_its_state_on(
    tmp_path: Path, start: Callable[[str], Aggregator]
) -> None:
    start("run-1").merge(snapshot(HOST, connections=[connection(1), connection(2)]))
    with Feed(str(tmp_path), timeout_s=60.0) as feed:
        follow_until(feed, lambda: keys(feed) == ["1", "2"])
        start("run-2").merge(snapshot(HOST, connections=[connection(2), connection(3)]))
        changes = follow_until(feed, lambda: keys(feed) == ["2", "3"])
        # Whether or not it was asked before it had merged anything, all changes add up.
        opened = [change.row["key"] for change in changes if change.kind is Kind.OPENED]
        closed = [change.row["key"] for change in changes if change.kind is Kind.CLOSED]
        assert sorted({"1", "2"}.difference(closed) | set(opened)) == ["2", "3"]
        assert (feed.gaps, feed.restarts, feed.epoch) == (0, 1, "run-2")


def test_only_the_namespaces_named_are_followed(tmp_path: Path, start: Callable[[str], Aggregator]) -> None:
    aggregator = start("run-1")
    aggregator.merge(snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(2)]))
    with Feed(str(tmp_path), netns=[BLUE], timeout_s=60.0) as feed:
        follow_until(feed, lambda: keys(feed) == ["2"])
        aggregator.merge(snapshot(HOST, 2, base=False, connections=[connection(3)]))
        aggregator.merge(snapshot(BLUE, 2, base=False, connections=[connection(4)]))
        changes = follow_until(feed, lambda: keys(feed) == ["2", "4"])
        assert [change.row["key"] for change in changes] == ["4"]


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(NoAggregator, match="no aggregator"):
        Feed(str(tmp_path), timeout_s=30.0)


def test_socket_that_nobody_serves_is_given_up_in_time(tmp_path: Path) -> None:
    (tmp_path / FEED_SOCKET).touch()
    with pytest.raises(NoAggregator, match="no heartbeat"):
        Feed(str(tmp_path), timeout_s=0.2)
