"""Connections that ended: told by events, or missing from a look; bounded; in queries, SQL and filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Proto, State
from pipeline.model.snapshot import Snapshot
from pipeline.query import answer
from pipeline.store import Store
from pipeline.store.closed import Limits
from tests.sample_state import HOST, connection, holding, listener, process, roster_row, snapshot

OFFSET_S = 1_700_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(":memory:", "e1", "node", clock, 15.0, Limits(60.0, 5))


def ended(cookie: int, closed_at_s: float = 99.0, **more: Any) -> ClosedConnection:
    fields: dict[str, Any] = {
        "cookie": cookie, "proto": Proto.TCP, "family": 2, "local_addr": b"\x0a\x00\x00\x01", "local_port": 40000,
        "remote_addr": b"\x0a\x00\x00\x02", "remote_port": 443, "uid": 33, "direction": "outbound", "pid": 7,
        "start_ticks": 70, "comm": "curl", "container": None, "opened_at_s": 98.5, "closed_at_s": closed_at_s,
        "bytes_sent": 10, "bytes_received": 20, "refused": False, **more,
    }  # fmt: skip
    return ClosedConnection(**fields)


def told(generation: int, *closed: ClosedConnection, base: bool = False, **more: Any) -> Snapshot:
    from dataclasses import replace

    return replace(snapshot(HOST, generation, base=base, **more), source="ebpf", closed=closed)


def ask(store: Store, fields: Sequence[str] | None = None, **where: Any) -> list[dict[str, Any]]:
    request: dict[str, Any] = {"op": "connections", "closed": True, "where": where}
    if fields is not None:
        request["fields"] = fields
    answered = answer(store.reader(), request)
    assert answered["ok"], answered
    return [dict(zip(answered["columns"], row, strict=True)) for row in answered["rows"]]


def refusal(store: Store, **keys: Any) -> str:
    answered = answer(store.reader(), {"op": "connections", "closed": True, **keys})
    assert not answered["ok"]
    return str(answered["error"]["message"])


def test_what_events_told_is_shown_as_told(store: Store) -> None:
    store.apply([told(1, ended(5), base=True)], [roster_row(HOST, ["blue"])])
    assert ask(store) == [{
        "netns": HOST, "netns_cookie": 7, "netns_name": None, "proto": "tcp", "family": "inet", "state": "CLOSE",
        "local_addr": "10.0.0.1", "local_port": 40000, "remote_addr": "10.0.0.2", "remote_port": 443, "cookie": 5,
        "uid": 33, "direction": "outbound", "owner_role": "last", "pid": 7, "start_ticks": 70, "comm": "curl",
        "container": None, "opened_at": OFFSET_S + 98.5, "closed_at": OFFSET_S + 99.0, "duration_s": 0.5,
        "bytes_sent": 10, "bytes_received": 20, "refused": False, "source": "ebpf",
    }]  # fmt: skip


def test_told_again_by_a_base_it_is_there_once(store: Store) -> None:
    store.apply([told(1, ended(5), base=True)])
    store.apply([told(2, ended(5), ended(6), base=True)])
    assert [row["cookie"] for row in ask(store)] == [5, 6]


def test_a_socket_that_connects_twice_ends_twice(store: Store) -> None:
    store.apply([told(1, ended(5, 98.7), ended(5, 99.0), base=True)])
    assert [row["closed_at"] for row in ask(store)] == [OFFSET_S + 98.7, OFFSET_S + 99.0]


def test_what_the_event_does_not_tell_is_taken_from_the_row(store: Store) -> None:
    rows = [
        listener(1, 443),
        connection(5, local=(b"\x0a\x00\x00\x01", 443), remote=(b"\x0a\x00\x00\x02", 5000)),
    ]
    store.apply([told(
        1, base=True, connections=rows, processes=[process(8, "nginx")], holdings=[holding(8, 3, 5)]
    )])  # fmt: skip
    anonymous = ended(5, direction="unknown", pid=None, start_ticks=None, comm=None)
    store.apply([told(2, anonymous, gone_connections=[5])])
    (row,) = ask(store)
    assert (row["direction"], row["pid"], row["start_ticks"], row["comm"]) == ("inbound", 8, 80, "nginx")


def looked(generation: int, **more: Any) -> Snapshot:
    return snapshot(HOST, generation, base=generation == 1, taken_at_s=90.0 + generation, **more)


def test_without_events_a_row_that_a_look_shows_no_more_has_ended(store: Store) -> None:
    rows = [connection(5), connection(6), listener(7, 80)]
    store.apply([looked(1, connections=rows, processes=[process(8, "curl")], holdings=[holding(8, 3, 5)])])
    store.apply([looked(2, gone_connections=[5, 6, 7], gone_holdings=[holding(8, 3, 5)])])
    (row,) = ask(store)  # of 6 no owner was known, and 7 was no connection
    assert (row["cookie"], row["pid"], row["comm"], row["source"]) == (5, 8, "curl", "sock_diag")
    assert (row["opened_at"], row["closed_at"], row["duration_s"]) == (OFFSET_S + 91.0, OFFSET_S + 92.0, 1.0)
    assert (row["bytes_sent"], row["refused"]) == (None, None)


def test_a_connection_ends_when_it_becomes_a_time_wait_and_not_again_when_that_goes(store: Store) -> None:
    store.apply([looked(
        1, connections=[connection(5)], processes=[process(8, "curl")], holdings=[holding(8, 3, 5)]
    )])  # fmt: skip
    waiting = connection(5, state=State.TIME_WAIT, inode=0)
    store.apply([looked(2, connections=[waiting], gone_holdings=[holding(8, 3, 5)])])
    store.apply([looked(3, gone_connections=[5])])
    assert [row["closed_at"] for row in ask(store)] == [OFFSET_S + 92.0]


@pytest.mark.parametrize("what", ["another life", "a gone namespace", "events"])
def test_a_row_that_leaves_for_another_reason_has_not_ended(store: Store, what: str) -> None:
    first = looked(
        1, connections=[connection(5)], processes=[process(8, "curl")], holdings=[holding(8, 3, 5)]
    )
    store.apply([first], [roster_row(HOST)])
    if what == "another life":
        store.apply([snapshot(HOST, 1, life=2)])
    elif what == "a gone namespace":
        store.apply([], [])
    else:
        store.apply([told(2, gone_connections=[5])])
    assert ask(store) == []


def test_ended_connections_are_forgotten_after_a_while_and_when_they_are_too_many(
    store: Store, clock: ManualClock
) -> None:
    store.apply([told(1, *(ended(cookie, 90.0 + cookie) for cookie in range(1, 9)), base=True)])
    store.tick()
    assert [row["cookie"] for row in ask(store)] == [4, 5, 6, 7, 8]
    clock.now_s = 156.5
    store.tick()
    assert [row["cookie"] for row in ask(store)] == [7, 8]
    store.apply([told(2, ended(6, 96.0), base=True)])
    assert [row["cookie"] for row in ask(store)] == [7, 8]


def test_the_commit_names_the_namespaces_in_which_something_ended(store: Store) -> None:
    commit = store.apply([told(1, ended(5), base=True)])
    assert (commit.ended, commit.touched) == ((HOST,), ())
    assert store.apply([told(2, ended(5))]).ended == ()


@pytest.mark.parametrize(
    ("where", "cookies"),
    [
        ({"pid": 7}, [5]), ({"comm": "nginx"}, [6]), ({"unowned": True}, [8]), ({"remote_port": "440-450"}, [5, 8]),
        ({"remote": "10.0.0.0/8"}, [5, 6, 8]), ({"direction": "inbound"}, [6]), ({"netns": "blue"}, [5, 6, 8]),
        ({"netns": HOST, "cookie": [5, 6]}, [5, 6]), ({"proto": "udp"}, []), ({"uid": 33, "port": 80}, [6]),
    ],
)  # fmt: skip
def test_filters_select_what_they_say(store: Store, where: dict[str, Any], cookies: list[int]) -> None:
    store.apply([], [roster_row(HOST, ["blue"])])
    store.apply([told(
        1, ended(5), ended(6, remote_port=80, pid=9, comm="nginx", direction="inbound"),
        ended(8, pid=None, start_ticks=None, comm=None), base=True,
    )])  # fmt: skip
    assert [row["cookie"] for row in ask(store, **where)] == cookies


def test_what_cannot_be_asked_of_closed_connections_is_refused_in_words(store: Store) -> None:
    assert (
        refusal(store, where={"state": "LISTEN"})
        == "filter state: not for closed connections, which have none"
    )
    assert refusal(store, where={"inode": 5}) == "filter inode: not for closed connections, which have none"
    assert refusal(store, fields=["owners"]).startswith("unknown field 'owners'")
    assert refusal(store, max_age_s=3) == "max_age_s: not for op connections"
    assert answer(store.reader(), {"op": "processes", "closed": True})["error"]["code"] == "bad_request"
    assert answer(store.reader(), {"op": "connections", "closed": 1})["error"]["message"] == (
        "closed: expected true or false, got 1"
    )


def test_pages_follow_each_other_and_are_not_those_of_open_connections(store: Store) -> None:
    store.apply([told(1, ended(5), ended(6), ended(8), base=True)])
    request: dict[str, Any] = {"op": "connections", "closed": True, "fields": ["cookie"], "limit": 2}
    first = answer(store.reader(), request)
    assert (first["rows"], first["total"]) == ([[5], [6]], 3)
    assert answer(store.reader(), {**request, "cursor": first["cursor"]})["rows"] == [[8]]
    assert not answer(store.reader(), {"op": "connections", "cursor": first["cursor"]})["ok"]


def test_sql_knows_them_as_closed(store: Store) -> None:
    store.apply([told(1, ended(5), base=True)])
    asked = answer(store.reader(), {"op": "sql", "sql": "SELECT comm, count(*) FROM closed GROUP BY comm"})
    assert asked["rows"] == [["curl", 1]]
