"""What is said after a commit, and what is not built because nobody listens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.codec import decode_map
from pipeline.model.connection import State
from pipeline.model.snapshot import Snapshot
from pipeline.roles.publisher import Publisher
from pipeline.store import Store
from tests.live import wait_until
from tests.sample_flows import flow, flows
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot


class Recorder:
    """An outlet for the topics given; `said`: what came out of it, decoded."""

    def __init__(self, *topics: str) -> None:
        self.topics = list(topics)
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.came: list[str] = []

    def wants(self, topic: str) -> bool:
        self.asked.append(topic)
        return any(topic.startswith(one) for one in self.topics)

    def send(self, topic: str, body: bytes) -> None:
        self.said.append((topic, decode_map(body)))

    def pump(self) -> list[str]:
        came, self.came = self.came, []
        return came

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [message for said, message in self.said if said == topic]


class Setup:
    """A store with its publisher, on a clock of our own."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock(now_s=1000.0)
        self.store = Store(str(path), "run-1", "box", self.clock, stale_after_s=15.0)
        self.outlet = Recorder()
        self.publisher = Publisher(self.store, self.outlet, "box", self.clock, 1.0)

    def merge(self, *snapshots: Snapshot, roster: list[int] | None = None) -> int:
        rows = None if roster is None else [roster_row(netns, [f"n{netns}"]) for netns in roster]
        commit = self.store.apply(snapshots, rows)
        self.publisher.publish(commit, snapshots)
        return commit.seq

    def beat(self) -> dict[str, Any]:
        self.clock.advance(1.0)
        self.publisher.pump()
        return self.outlet.of("heartbeat")[-1]

    def pump_until(self, topic: str, count: int) -> list[dict[str, Any]]:
        def has_come() -> bool:
            self.publisher.pump()
            return len(self.outlet.of(topic)) >= count

        wait_until(has_come)
        return self.outlet.of(topic)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(tmp_path / "store.db")
    yield setup
    setup.publisher.close()
    setup.store.close()


def test_delta_of_a_commit_has_its_rows_and_the_namespace_as_of_then(setup: Setup) -> None:
    setup.outlet.topics = ["delta."]
    first = setup.merge(snapshot(HOST, connections=[connection(1), connection(2)]), roster=[HOST])
    second = setup.merge(snapshot(HOST, 2, base=False, connections=[connection(3)], gone_connections=[1]))
    before, after = setup.outlet.of(f"delta.{HOST}")
    assert (before["seq"], before["prev"], after["seq"], after["prev"]) == (first, 0, second, first)
    assert (before["schema"], before["host"], before["epoch"]) == (1, "box", "run-1")
    key = after["columns"].index("key")
    assert [row[key] for row in before["added"]] == ["1", "2"]
    assert ([row[key] for row in after["added"]], [row[key] for row in after["removed"]]) == (["3"], ["1"])
    assert (after["namespace"]["name"], after["namespace"]["generation"]) == (f"n{HOST}", 2)


def test_delta_of_a_namespace_that_is_gone_removes_its_rows_and_has_no_namespace(setup: Setup) -> None:
    setup.merge(snapshot(HOST, connections=[connection(1)]), roster=[HOST])
    setup.outlet.topics = ["delta."]
    setup.merge(roster=[])
    ((_, message),) = setup.outlet.said
    key = message["columns"].index("key")
    assert ([row[key] for row in message["removed"]], message["namespace"]) == (["1"], None)


def test_commit_that_touches_no_row_of_a_namespace_says_nothing_of_it(setup: Setup) -> None:
    setup.outlet.topics = ["delta."]
    setup.merge(snapshot(HOST, connections=[connection(1)]))
    setup.merge(snapshot(HOST, 2, base=False, taken_at_s=101.0))
    setup.merge(snapshot(BLUE, connections=[connection(1)]))
    assert [topic for topic, _ in setup.outlet.said] == [f"delta.{HOST}", f"delta.{BLUE}"]


def test_prev_counts_commits_that_nobody_was_told_of(setup: Setup) -> None:
    silent = setup.merge(snapshot(HOST, connections=[connection(1)]))
    setup.outlet.topics = ["delta."]
    setup.merge(snapshot(HOST, 2, connections=[connection(2)]))
    ((_, message),) = setup.outlet.said
    assert message["prev"] == silent


def test_prev_counts_removals_that_the_store_kept_nothing_of(setup: Setup) -> None:
    setup.merge(snapshot(HOST, connections=[connection(1), connection(2)]))
    setup.store.keeps_past = False
    silent = setup.merge(snapshot(HOST, 2, base=False, gone_connections=[1]))
    setup.store.keeps_past = True
    setup.outlet.topics = ["delta."]
    setup.merge(snapshot(HOST, 3, base=False, gone_connections=[2]))
    ((_, message),) = setup.outlet.said
    assert (message["prev"], len(message["removed"])) == (silent, 1)


def test_owner_that_is_found_in_another_namespace_changes_the_row_in_its_own(setup: Setup) -> None:
    setup.merge(snapshot(BLUE, connections=[connection(1, inode=9)]))
    setup.outlet.topics = ["delta."]
    setup.merge(snapshot(HOST, processes=[process(8, "nginx")], holdings=[holding(8, 3, 9)]))
    ((topic, message),) = setup.outlet.said
    (row,) = message["changed"]
    named = dict(zip(message["columns"], row, strict=True))
    assert (topic, named["netns"], [owner["comm"] for owner in named["owners"]]) == (
        f"delta.{BLUE}",
        BLUE,
        ["nginx"],
    )


def test_events_of_one_commit_come_in_one_message_namespace_first(setup: Setup) -> None:
    setup.outlet.topics = ["event."]
    setup.merge(snapshot(HOST, connections=[listener(1, 80)]), roster=[HOST])
    setup.merge(snapshot(HOST, 2, base=False, connections=[connection(2)]))
    setup.merge(
        snapshot(HOST, 3, base=False, connections=[connection(2, state=State.CLOSE_WAIT)])
    )  # changed only
    setup.merge(roster=[])
    messages = setup.outlet.of(f"event.{HOST}")
    assert [[event["event"] for event in message["events"]] for message in messages] == [
        ["appeared", "opened"],
        ["opened"],
        ["closed", "closed", "gone"],
    ]
    assert [message["prev"] for message in messages] == [0, 1, 2]
    assert messages[0]["events"][0] == {"event": "appeared", "netns": HOST, "netns_name": f"n{HOST}"}
    assert messages[0]["events"][1]["connection"]["local_port"] == 80
    assert messages[2]["events"][-1]["netns_name"] == f"n{HOST}"
    assert (messages[0]["namespace"]["netns"], messages[2]["namespace"]) == (HOST, None)


def test_namespace_becomes_stale_and_fresh_again(setup: Setup) -> None:
    setup.merge(snapshot(HOST, taken_at_s=1000.0), roster=[HOST])
    setup.outlet.topics = ["event.", "heartbeat"]
    assert setup.beat()["stale"] == []
    setup.clock.advance(20.0)
    setup.publisher.publish(setup.store.tick())
    assert setup.beat()["stale"] == [HOST]
    setup.merge(snapshot(HOST, 2, base=False, taken_at_s=setup.clock.now_s))
    assert setup.beat()["stale"] == []
    events = [message["events"][0]["event"] for message in setup.outlet.of(f"event.{HOST}")]
    assert events == ["stale", "fresh"]


def test_heartbeat_names_the_topics_of_the_last_ten_seconds(setup: Setup) -> None:
    setup.outlet.topics = ["heartbeat"]
    # A listener is part of no edge.
    seq = setup.merge(snapshot(HOST, connections=[listener(1, 80)]))
    assert setup.beat()["topics"] == {f"delta.{HOST}": seq, f"event.{HOST}": seq}
    for _ in range(9):
        last = setup.beat()
    assert last["topics"] == {f"delta.{HOST}": seq, f"event.{HOST}": seq}
    assert setup.beat()["topics"] == {}
    beats = setup.outlet.of("heartbeat")
    assert [beat["prev"] for beat in beats] == [0] + [seq] * 10
    assert {beat["seq"] for beat in beats} == {seq}


def test_who_subscribes_to_the_heartbeat_gets_one_at_once_but_not_each_of_many(setup: Setup) -> None:
    setup.outlet.topics = ["heartbeat"]
    setup.beat()
    for _ in range(10):
        setup.clock.advance(0.0625)
        setup.outlet.came = ["heartbeat"]
        setup.publisher.pump()
    assert len(setup.outlet.of("heartbeat")) == 6
    setup.outlet.came = ["delta.1"]
    setup.clock.advance(0.5)
    setup.publisher.pump()
    assert len(setup.outlet.of("heartbeat")) == 6


def test_snapshot_is_made_after_a_walk_and_only_while_somebody_wants_it(setup: Setup) -> None:
    topic = f"snapshot.{HOST}"
    setup.merge(snapshot(HOST, connections=[connection(1)], walked_at_s=None))
    setup.merge(snapshot(HOST, 2, base=False, walked_at_s=5.0))
    setup.outlet.topics = [topic]
    setup.merge(snapshot(HOST, 3, base=False, walked_at_s=5.0, connections=[connection(2)]))
    setup.publisher.pump()
    assert setup.outlet.said == []
    setup.merge(snapshot(HOST, 4, base=False, walked_at_s=15.0))
    (first,) = setup.pump_until(topic, 1)
    assert (first["prev"], first["namespace"]["netns"]) == (0, HOST)
    key, owners = (first["columns"].index(name) for name in ("key", "owners"))
    assert [(row[key], row[owners]) for row in first["rows"]] == [("1", []), ("2", [])]
    setup.merge(snapshot(HOST, 5, base=False, walked_at_s=25.0))
    assert setup.pump_until(topic, 2)[1]["prev"] == first["seq"]


def test_edges_begin_with_a_base_for_each_who_comes_and_go_on_with_changes(setup: Setup) -> None:
    setup.merge(snapshot(HOST, connections=[connection(1)]))
    setup.outlet.topics = setup.outlet.came = ["delta.edges"]
    (base,) = setup.pump_until("delta.edges", 1)
    assert (base["base"], len(base["added"])) == (True, 1)
    setup.merge(snapshot(HOST, 2, base=False, gone_connections=[1]))
    setup.clock.advance(60.0)
    changed = setup.pump_until("delta.edges", 2)[1]
    assert (changed["base"], changed["removed"], changed["prev"]) == (False, base["added"], base["seq"])
    setup.outlet.came = ["delta."]
    assert setup.pump_until("delta.edges", 3)[2]["base"]


def test_edge_that_turns_out_to_be_translated_is_another_edge(setup: Setup) -> None:
    setup.merge(snapshot(HOST, connections=[connection(1)]))
    setup.outlet.topics = setup.outlet.came = ["delta.edges"]
    (base,) = setup.pump_until("delta.edges", 1)
    client, asked, real = (
        (b"\x0a\x00\x00\x01", 40000),
        (b"\x0a\x00\x00\x02", 443),
        (b"\xc0\x00\x02\x01", 8443),
    )
    setup.publisher.publish(
        setup.store.apply_flows([flows(2, 1, flow(b"f", (client, asked), (client, real)))])
    )
    setup.clock.advance(60.0)
    message = setup.pump_until("delta.edges", 2)[1]

    server, nat = (message["columns"].index(name) for name in ("server", "nat"))
    assert message["removed"] == base["added"]
    assert [(row[server]["addr"], row[nat]["original"]["dst"]) for row in message["added"]] == [
        ("192.0.2.1", "10.0.0.2")
    ]


def test_nothing_is_built_while_nobody_subscribes(setup: Setup) -> None:
    setup.merge(snapshot(HOST, connections=[connection(1)]), roster=[HOST])
    setup.clock.advance(1.0)
    setup.publisher.pump()
    assert setup.outlet.said == []
    assert setup.publisher.due_s == setup.clock.now_s + 1.0


def test_next_duty_is_the_heartbeat(setup: Setup) -> None:
    setup.outlet.topics = ["heartbeat"]
    setup.beat()
    assert setup.publisher.due_s == setup.clock.now_s + 1.0
