"""What the feed's messages say of each other, and what is in them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.feed import EdgeChanges, Envelope, Topics, connection_events, namespace_events
from pipeline.model.delta import Delta


def test_prev_is_what_the_topic_spoke_with_last() -> None:
    topics = Topics()
    assert [topics.advance("delta.1", seq, 0.0) for seq in (3, 5, 9)] == [0, 3, 5]
    assert topics.advance("delta.2", 10, 0.0) == 0
    assert (topics.last("delta.1"), topics.last("delta.3")) == (9, 0)


def test_recent_topics_are_those_that_spoke_since_then_without_heartbeats() -> None:
    topics = Topics()
    topics.advance("delta.1", 1, 10.0)
    topics.advance("event.2", 2, 20.0)
    topics.advance("heartbeat", 2, 20.0)
    assert topics.recent(15.0) == {"event.2": 2}


def test_topics_of_a_gone_namespace_are_forgotten_later_and_never_hide_a_loss() -> None:
    topics = Topics()
    topics.advance("delta.1", 7, 0.0)
    topics.advance("delta.2", 8, 0.0)
    topics.gone(1, 0.0)
    topics.forget(60.0)
    assert topics.last("delta.1") == 7
    topics.forget(60.1)
    # Too high for a topic that never spoke, never too low for one that is forgotten.
    assert topics.advance("delta.1", 9, 61.0) == 7
    assert topics.advance("delta.2", 9, 61.0) == 8


def test_topics_of_a_namespace_that_comes_back_in_time_are_kept() -> None:
    topics = Topics()
    topics.advance("delta.1", 7, 0.0)
    topics.gone(1, 0.0)
    topics.advance("delta.1", 8, 30.0)
    topics.forget(100.0)
    assert topics.recent(0.0) == {"delta.1": 8}


def test_every_map_begins_with_the_same_five_fields() -> None:
    message = Envelope("box", "e1").message(5, 3, topics={})
    assert list(message.items()) == [
        ("schema", 1),
        ("host", "box"),
        ("epoch", "e1"),
        ("seq", 5),
        ("prev", 3),
        ("topics", {}),
    ]


def test_a_key_that_was_used_again_in_one_commit_closes_before_it_opens() -> None:
    delta = Delta(("key", "uid"), added=[["1", 5]], changed=[["2", 6]], removed=[["1", 4]])
    assert connection_events(delta) == [
        {"event": "closed", "connection": {"key": "1", "uid": 4}},
        {"event": "opened", "connection": {"key": "1", "uid": 5}},
    ]


def test_namespaces_appear_go_become_stale_and_fresh() -> None:
    before = {1: False, 2: False, 3: True, 4: False}
    after = {2: True, 3: False, 4: False, 5: True}
    assert namespace_events(before, after) == {1: "gone", 2: "stale", 3: "fresh", 5: "appeared"}


COLUMNS = ("client", "server", "proto", "connections", "ambiguous", "nat", "last_seen")


def edge(
    client: int, server: int, connections: int = 1, last_seen: float = 1.0, port: int = 80, nat: Any = None
) -> list[Any]:
    ends = [
        {"netns": 1, "pid": pid, "start_ticks": 10, "comm": "x", "addr": "10.0.0.1", "port": at}
        for pid, at in ((client, None), (server, port))
    ]
    return [*ends, "tcp", connections, False, nat, last_seen]


def test_first_message_of_edges_is_a_base_and_the_next_says_what_differs() -> None:
    edges = EdgeChanges(COLUMNS)
    first = edges.next_message([edge(1, 2), edge(1, 3), edge(4, 5)])
    assert first is not None
    assert (first["base"], len(first["added"]), first["changed"], first["removed"]) == (True, 3, [], [])
    second = edges.next_message([edge(1, 2), edge(1, 3, connections=2), edge(4, 5, port=81)])
    assert second == {
        "base": False,
        "columns": COLUMNS,
        "added": [edge(4, 5, port=81)],
        "changed": [edge(1, 3, connections=2)],
        "removed": [edge(4, 5)],
    }


def nat(sport: int | None, asked: str = "10.96.0.1") -> dict[str, dict[str, Any]]:
    way = {"src": "10.0.0.1", "sport": sport, "dst": asked, "dport": 443}
    return {"original": way, "translated": {**way, "dst": "10.0.0.2"}}


def test_translation_is_part_of_what_an_edge_is_but_for_the_ports_of_its_sources() -> None:
    edges = EdgeChanges(COLUMNS)
    edges.next_message([edge(1, 2), edge(1, 2, nat=nat(40000))])
    both = [edge(1, 2, nat=nat(None)), edge(1, 2, nat=nat(40001, "10.96.0.2"))]
    message = edges.next_message([edge(1, 2), *both])
    assert message is not None
    assert (message["added"], message["changed"], message["removed"]) == (both[1:], both[:1], [])


def test_edges_that_were_only_seen_again_are_no_message() -> None:
    edges = EdgeChanges(COLUMNS)
    edges.next_message([edge(1, 2)])
    assert edges.next_message([edge(1, 2, last_seen=9.0)]) is None


def test_edges_that_are_none_have_a_base_too() -> None:
    edges = EdgeChanges(COLUMNS)
    assert edges.next_message([]) == {
        "base": True,
        "columns": COLUMNS,
        "added": [],
        "changed": [],
        "removed": [],
    }


_STATES = st.lists(
    st.builds(edge, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    unique_by=lambda row: (row[0]["pid"], row[1]["pid"]),
)


@given(st.lists(st.tuples(st.booleans(), _STATES), min_size=1))
def test_whoever_applies_the_messages_has_the_edges(states: list[tuple[bool, list[list[Any]]]]) -> None:
    edges = EdgeChanges(COLUMNS)
    copy: dict[Any, list[Any]] = {}
    for forgets, rows in states:
        if forgets:
            edges.forget()
        message = edges.next_message(rows)
        if message is not None:
            if message["base"]:
                copy.clear()
            for row in message["removed"]:
                del copy[row[0]["pid"], row[1]["pid"]]
            for row in (*message["added"], *message["changed"]):
                copy[row[0]["pid"], row[1]["pid"]] = row
        assert copy == {(row[0]["pid"], row[1]["pid"]): row for row in rows}


ENDING = {
    "netns": 7, "proto": "tcp", "state": "CLOSE", "key": "5", "pid": 8, "start_ticks": 80, "comm": "curl",
    "container": None, "opened_at": 1.0, "closed_at": 1.5, "duration_s": 0.5, "bytes_sent": 10, "bytes_received": 20,
    "refused": False, "source": "ebpf",
}  # fmt: skip
OF_ENDING = {
    "opened_at": 1.0, "closed_at": 1.5, "duration_s": 0.5, "bytes_sent": 10, "bytes_received": 20, "refused": False,
    "source": "ebpf",
}  # fmt: skip


def test_a_connection_that_was_never_a_row_has_a_closed_event_with_its_owner() -> None:
    delta = Delta(("netns", "state", "key", "pid", "device", "owners"), [], [], [])
    row = {"netns": 7, "state": "CLOSE", "key": "5", "pid": 8, "device": None}
    owner = {"pid": 8, "start_ticks": 80, "comm": "curl", "container": None, "fd": None, "netns": None}
    assert connection_events(delta, [ENDING]) == [
        {"event": "closed", "connection": {**row, "owners": [owner]}, **OF_ENDING}
    ]


def test_a_row_that_went_and_its_end_are_one_event() -> None:
    delta = Delta(("key", "state", "owner_role"), [], [], [["5", "ESTABLISHED", "holder"]])
    (event,) = connection_events(delta, [ENDING])
    assert event == {
        "event": "closed", "connection": {"key": "5", "state": "ESTABLISHED", "owner_role": "holder"}, **OF_ENDING,
    }  # fmt: skip


def test_that_a_time_wait_goes_whose_end_was_told_is_no_event() -> None:
    columns = ("key", "state", "owner_role")
    gone: list[list[Any]] = [["5", "TIME_WAIT", "last"], ["6", "TIME_WAIT", None]]
    events = connection_events(Delta(columns, [], [], gone))
    assert [event["connection"]["key"] for event in events] == ["6"]
