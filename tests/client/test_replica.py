"""The copy comes to the aggregator's state whatever is lost, doubled or late: a real store, a real publisher, and a
wire that hypothesis bends."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.client.answer import Answer, Exchange
from pipeline.client.replica import FIELDS, Change, Kind, Replica
from pipeline.clock import ManualClock
from pipeline.codec import decode_map
from pipeline.errors import Malformed
from pipeline.model.netns import RosterRow
from pipeline.model.snapshot import Snapshot
from pipeline.query import answer_bytes
from pipeline.roles.publisher import Publisher
from pipeline.store import Store
from tests.sample_state import (
    BLUE,
    HOST,
    NETNS,
    connection,
    histories,
    holding,
    process,
    roster_row,
    snapshot,
)

HEARTBEAT_S = 1.0


class Wire:
    """Keeps what is sent, until the subscriber takes it; what it cannot hold is lost."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.queue: deque[tuple[str, bytes]] = deque()
        self.came: list[str] = []

    def wants(self, topic: str) -> bool:
        return topic.startswith(("delta.", "heartbeat")) and topic != "delta.edges"

    def send(self, topic: str, body: bytes) -> None:
        if len(self.queue) < self.room:
            self.queue.append((topic, body))

    def pump(self) -> list[str]:
        came, self.came = self.came, []
        return came


class World:
    """An aggregator that is restarted now and then, and one subscriber."""

    def __init__(self, room: int = 1 << 30, netns: tuple[int, ...] = ()) -> None:
        self.clock = ManualClock(now_s=1000.0)
        self.wire = Wire(room)
        self.replica = Replica(netns)
        # What happened so far: a new aggregator reads it all from the segments.
        self._merged: list[Snapshot] = []
        self._roster: tuple[int, ...] | None = None
        self._epochs = itertools.count(1)
        # What following the changes leads to.
        self.followed: dict[tuple[int, str], dict[str, Any]] = {}
        self.store: Store | None = None
        self.restart()

    def restart(self) -> None:
        self.close()
        self.store = Store(":memory:", f"run-{next(self._epochs)}", "host", self.clock, stale_after_s=15.0)
        self.store.apply(self._merged, self._roster_rows())
        self.publisher = Publisher(self.store, self.wire, "host", self.clock, HEARTBEAT_S)

    def _roster_rows(self) -> list[RosterRow] | None:
        return None if self._roster is None else [roster_row(netns) for netns in self._roster]

    def close(self) -> None:
        if self.store is not None:
            self.publisher.close()
            self.store.close()
            self.store = None

    def merge(self, snapshots: list[Snapshot]) -> None:
        assert self.store is not None
        self._merged += snapshots
        self.publisher.publish(self.store.apply(snapshots), snapshots)

    def set_roster(self, netns: tuple[int, ...]) -> None:
        assert self.store is not None
        self._roster = netns
        self._merged = [one for one in self._merged if one.netns in netns]
        self.publisher.publish(self.store.apply([], self._roster_rows()))

    def beat(self, seconds: float = HEARTBEAT_S) -> None:
        assert self.store is not None
        self.clock.advance(seconds)
        self.publisher.publish(self.store.tick())
        self.publisher.pump()

    def ask(self) -> Answer:
        assert self.store is not None
        exchange = Exchange("1", "connections", {"where": {}, "fields": FIELDS})
        assert exchange.is_mine(answer_bytes(self.store.reader(), exchange.request))
        return exchange.answer()

    def load(self, answer: Answer) -> None:
        self._follow(self.replica.load(answer))

    def take(self, *, twice: bool = False) -> None:
        if self.wire.queue:
            topic, body = self.wire.queue.popleft()
            for _ in range(2 if twice else 1):
                self._follow(self.replica.offer(topic, decode_map(body)))

    def settle(self) -> None:
        """The wire is good again, for as long as it takes."""
        self.wire.room = 1 << 30
        self.beat()
        while self.wire.queue or self.replica.needs_answer:
            if self.replica.needs_answer:
                self.load(self.ask())
            self.take()

    def assert_equal(self) -> None:
        expected = {
            (row["netns"], row["key"]): {**row, "seen_at": None}
            for row in self.ask()
            if self.replica._covers(row["netns"])
        }
        found = {(row["netns"], row["key"]): {**row, "seen_at": None} for row in self.replica.rows()}
        assert found == expected
        # What is fresh is told by heartbeats, and is no change of a row.
        assert {key: {**row, "stale": None} for key, row in self.followed.items()} == {
            key: {**row, "stale": None} for key, row in expected.items()
        }

    def _follow(self, changes: list[Change]) -> None:
        for change in changes:
            key = change.row["netns"], change.row["key"]
            assert (change.before is None) == (change.kind is Kind.OPENED) == (key not in self.followed)
            if change.kind is Kind.CLOSED:
                del self.followed[key]
            else:
                self.followed[key] = {**change.row, "seen_at": None}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


_STEPS = st.one_of(
    st.tuples(st.sampled_from(["merge", "take", "take", "lose", "twice", "restart", "ask", "load"])),
    st.tuples(st.just("beat"), st.sampled_from([0.2, 1.0, 1.0, 12.0, 100.0])),
    st.tuples(
        st.just("roster"),
        st.lists(st.sampled_from(NETNS), unique=True).map(sorted).map(tuple),
    ),
)


@settings(max_examples=300, deadline=None)
@given(histories(), st.lists(_STEPS, max_size=40), st.integers(1, 6) | st.just(1000), st.booleans())
def test_any_interleaving_ends_in_the_aggregators_state(
    history: list[Snapshot], steps: list[tuple[Any, ...]], room: int, one_namespace: bool
) -> None:
    world = World(room, NETNS[:1] if one_namespace else ())
    coming = deque(history)
    answers: deque[Answer] = deque()
    gone: set[int] = set()
    try:
        for step, *arguments in steps:
            if step == "merge" and coming:
                one = coming.popleft()
                # A namespace that was removed comes back with a base, as `Latest` sees to.
                if one.netns not in gone or one.base:
                    gone.discard(one.netns)
                    world.merge([one])
            elif step == "take":
                world.take()
            elif step == "twice":
                world.take(twice=True)
            elif step == "lose" and world.wire.queue:
                world.wire.queue.popleft()
            elif step == "restart":
                world.restart()
            elif step == "ask":
                answers.append(world.ask())
            elif step == "load" and answers:
                world.load(answers.popleft())
            elif step == "beat":
                world.beat(*arguments)
            elif step == "roster":
                gone |= set(NETNS) - set(arguments[0])
                world.set_roster(arguments[0])
        world.settle()
        world.assert_equal()
    finally:
        world.close()


def test_lost_message_is_a_gap_at_the_next_one_of_its_topic(world: World) -> None:
    world.load(world.ask())
    world.merge([snapshot(HOST, connections=[connection(1)])])
    world.wire.queue.clear()
    world.merge([snapshot(HOST, 2, base=False, connections=[connection(2)])])
    world.take()
    assert (world.replica.needs_answer, world.replica.gaps, len(world.replica)) == (True, 1, 0)
    world.load(world.ask())
    assert sorted(row["key"] for row in world.replica.rows()) == ["1", "2"]


def test_lost_last_message_is_a_gap_at_the_next_heartbeat(world: World) -> None:
    world.load(world.ask())
    world.merge([snapshot(HOST, connections=[connection(1)])])
    world.wire.queue.clear()
    world.beat()
    world.take()
    assert (world.replica.needs_answer, world.replica.gaps) == (True, 1)


def test_lost_message_is_noticed_even_when_the_heartbeats_that_named_it_were_lost_too(world: World) -> None:
    world.beat()
    world.load(world.ask())
    world.merge([snapshot(HOST, connections=[connection(1)])])
    for _ in range(20):
        world.beat()
    last = world.wire.queue.pop()
    assert HOST not in decode_map(last[1])["topics"].values()
    world.wire.queue.clear()
    world.wire.queue.append(last)
    world.take()
    assert (world.replica.needs_answer, world.replica.gaps) == (True, 1)


def test_lost_message_is_noticed_though_the_aggregator_was_stopped_for_long_after_it(world: World) -> None:
    world.beat()
    world.load(world.ask())
    world.merge([snapshot(HOST, connections=[connection(1)])])
    world.wire.queue.clear()
    world.beat(100.0)
    world.take()
    assert (world.replica.needs_answer, world.replica.gaps) == (True, 1)


def test_nothing_lost_is_no_gap_and_asks_once(world: World) -> None:
    world.beat()
    world.load(world.ask())
    for generation in range(1, 30):
        netns = (HOST, BLUE)[generation % 2]
        world.merge([snapshot(netns, generation, connections=[connection(generation)])])
        if generation % 3 == 0:
            world.beat()
        while world.wire.queue:
            world.take()
    assert (world.replica.needs_answer, world.replica.gaps, world.replica.restarts) == (False, 0, 0)
    world.assert_equal()


def test_another_run_of_the_aggregator_asks_for_a_new_answer_and_is_no_gap(world: World) -> None:
    world.load(world.ask())
    world.merge([snapshot(HOST, connections=[connection(1)])])
    late = world.wire.queue.popleft()
    world.restart()
    world.beat()
    world.take()
    assert world.replica.needs_answer
    world.load(world.ask())
    # What the run before sent and the wire held back says nothing any more.
    world.wire.queue.append(late)
    world.take()
    assert (world.replica.needs_answer, world.replica.gaps, world.replica.restarts) == (False, 0, 1)
    world.assert_equal()


def test_what_was_known_of_the_run_before_says_nothing_of_the_next(world: World) -> None:
    world.load(world.ask())
    for generation in range(1, 9):
        world.merge([snapshot(HOST, generation, connections=[connection(generation)])])
        world.take()
    world.restart()
    world.load(world.ask())
    world.merge([snapshot(HOST, 9, connections=[connection(9)])])
    world.take()
    world.assert_equal()


def test_late_heartbeat_does_not_move_back(world: World) -> None:
    world.beat()
    world.merge([snapshot(HOST, connections=[connection(1)])])
    world.load(world.ask())
    seq = world.replica.seq
    world.take()
    assert (world.replica.seq, world.replica.needs_answer) == (seq, False)


def test_change_of_owner_is_a_change_with_the_row_before_and_after(world: World) -> None:
    world.merge([snapshot(HOST, connections=[connection(1, inode=9)], processes=[process(8, "nginx")])])
    world.wire.queue.clear()
    world.load(world.ask())
    held = snapshot(HOST, 2, base=False, holdings=[holding(8, 3, 9)], taken_at_s=101.0)
    assert world.store is not None
    world.publisher.publish(world.store.apply([held]), [held])
    topic, body = world.wire.queue.popleft()
    (change,) = world.replica.offer(topic, decode_map(body))
    assert change.kind is Kind.CHANGED
    assert change.before is not None
    assert (change.before["owners"], [owner["comm"] for owner in change.row["owners"]]) == ([], ["nginx"])
    # As of the namespace's row in the message: 101 on the clock that is 1.7e9 s behind Unix time.
    assert change.row["seen_at"] == 1_700_000_101.0


def test_answer_after_a_gap_tells_what_differs(world: World) -> None:
    world.merge([snapshot(HOST, connections=[connection(1), connection(2, uid=5)])])
    world.load(world.ask())
    world.merge([snapshot(HOST, 2, connections=[connection(2, uid=6), connection(3)])])
    changes = world.replica.load(world.ask())
    assert {(change.row["key"], change.kind) for change in changes} == {
        ("1", Kind.CLOSED),
        ("2", Kind.CHANGED),
        ("3", Kind.OPENED),
    }


def test_stale_rows_follow_the_heartbeat(world: World) -> None:
    world.merge([snapshot(HOST, connections=[connection(1)], taken_at_s=1000.0)])
    world.load(world.ask())
    world.wire.queue.clear()
    assert [row["stale"] for row in world.replica.rows()] == [False]
    world.beat(20.0)
    world.take()
    assert [row["stale"] for row in world.replica.rows()] == [True]


def test_scope_leaves_other_namespaces_out() -> None:
    world = World(netns=(BLUE,))
    world.merge([snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(2)])])
    world.load(world.ask())
    world.merge([snapshot(HOST, 2, connections=[connection(3)])])
    while world.wire.queue:
        world.take()
    assert [row["key"] for row in world.replica.rows()] == ["2"]
    world.assert_equal()
    world.close()


def test_message_without_what_the_contract_names_is_malformed_and_asks_again(world: World) -> None:
    world.load(world.ask())
    epoch = world.replica.epoch
    with pytest.raises(Malformed, match="delta"):
        world.replica.offer(f"delta.{HOST}", {"epoch": epoch, "seq": 9, "prev": 0, "namespace": None})
    assert world.replica.needs_answer
    with pytest.raises(Malformed):
        world.replica.load(world.ask())
        world.replica.offer("heartbeat", {"schema": 1})


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=4) | st.none(), max_size=6))
def test_any_message_is_taken_or_malformed(message: dict[str, Any]) -> None:
    world = World()
    world.load(world.ask())
    for topic in ("heartbeat", f"delta.{HOST}", "delta.edges", "", "delta.x", "event.1"):
        try:
            world.replica.offer(topic, {"epoch": world.replica.epoch, **message})
        except Malformed:
            world.load(world.ask())
    world.close()


def test_row_fields_are_those_that_the_query_socket_knows(world: World) -> None:
    world.merge([snapshot(HOST, connections=[connection(1)])])
    (row,) = world.ask().rows
    assert tuple(row) == FIELDS


def test_replica_is_bounded_by_what_is_there(world: World) -> None:
    world.load(world.ask())
    for generation in range(1, 40):
        world.merge([snapshot(1000 + generation, connections=[connection(1)])])
        world.set_roster((1000 + generation,))
        world.beat(100.0)
    while world.wire.queue:
        world.take()
    assert world.replica.gaps == 0
    assert (len(world.replica), len(world.replica._namespaces), len(world.replica._known)) == (1, 1, 0)
    assert len(world.publisher._topics._last) <= 6
    world.assert_equal()


def test_roster_row_names_the_namespace_in_rows(world: World) -> None:
    assert world.store is not None
    blue = snapshot(BLUE, connections=[connection(1)])
    world.load(world.ask())
    world.publisher.publish(world.store.apply([blue], [roster_row(BLUE, ["blue"])]), [blue])
    world.take()
    assert [(row["netns"], row["netns_name"]) for row in world.replica.rows()] == [(BLUE, "blue")]
