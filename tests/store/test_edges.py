"""Edges: both ends of each connection of this host joined, and since when."""

from __future__ import annotations

import pytest

from pipeline.clock import ManualClock
from pipeline.model.connection import Connection, State
from pipeline.model.process import ProcessKey
from pipeline.query import answer
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, snapshot
from tests.store.asking import ask
from tests.store.edge_rows import LINK_LOCAL, LOOPBACK, client_row, ends, new_store, server_row


def test_both_ends_on_this_host_become_one_edge_with_both_processes() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, taken_at_s=90.0, connections=[client_row(1)], processes=[process(8, "curl")],
                 holdings=[holding(8, 3, 1)]),
        snapshot(BLUE, taken_at_s=95.0, connections=[server_row(2), listener(3, 443)],
                 processes=[process(9, "nginx", BLUE)], holdings=[holding(9, 5, 2), holding(9, 4, 3)]),
    ])  # fmt: skip

    assert ask(store, "edges") == [{
        "client": {"netns": HOST, "pid": 8, "start_ticks": 80, "comm": "curl", "container": None, "addr": "10.0.0.1",
                   "port": 40000},
        "server": {"netns": BLUE, "pid": 9, "start_ticks": 90, "comm": "nginx", "container": None, "addr": "10.0.0.2",
                   "port": 443},
        "proto": "tcp", "connections": 1, "ambiguous": False, "nat": None,
        "first_seen": 1_700_000_090.0, "last_seen": 1_700_000_095.0,
    }]  # fmt: skip


def test_connections_of_the_same_processes_are_counted_and_show_no_client_port() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[client_row(key, 40000 + key, inode=5) for key in (1, 2, 3)])])

    (edge,) = ask(store, "edges")

    assert (edge["connections"], edge["client"]["port"], edge["server"]["port"]) == (3, None, 443)


def test_end_outside_has_an_address_and_nothing_else() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[server_row(1), listener(2, 443)])])

    (edge,) = ask(store, "edges")

    assert edge["client"] == {
        "netns": None, "pid": None, "start_ticks": None, "comm": None, "container": None, "addr": "10.0.0.1",
        "port": 40000,
    }  # fmt: skip
    assert edge["server"]["netns"] == HOST


def test_loopback_addresses_meet_within_their_namespace_only() -> None:
    store = new_store()
    there = connection(1, local=(LOOPBACK, 40000), remote=(LOOPBACK, 80))
    back = connection(2, local=(LOOPBACK, 80), remote=(LOOPBACK, 40000))
    store.apply([snapshot(HOST, connections=[there]), snapshot(BLUE, connections=[back])])
    apart = sorted(map(ends, ask(store, "edges")), key=repr)

    store.apply([snapshot(HOST, 2, base=False, connections=[back])])

    assert apart == [(HOST, None, None, None, 1), (BLUE, None, None, None, 1)]
    assert ends(ask(store, "edges", where={"netns": HOST})[0]) == (HOST, None, HOST, None, 1)


def test_link_local_addresses_meet_on_one_device_only() -> None:
    store = new_store()
    there = connection(1, local=(LINK_LOCAL, 40000), remote=(LINK_LOCAL, 80), family=10, device="eth0")
    back = connection(2, local=(LINK_LOCAL, 80), remote=(LINK_LOCAL, 40000), family=10, device="eth1")
    store.apply([snapshot(HOST, connections=[there, back])])
    apart = len(ask(store, "edges"))

    store.apply([snapshot(HOST, 2, base=False, connections=[back._replace(device="eth0")])])

    assert (apart, len(ask(store, "edges"))) == (2, 1)


def test_several_possible_ends_are_ambiguous_until_one_is_left() -> None:
    store = new_store()
    store.apply([
        snapshot(1, connections=[client_row(1)]), snapshot(2, connections=[client_row(2)]),
        snapshot(3, connections=[server_row(3), listener(4, 443)]),
    ])  # fmt: skip
    several = [
        (row["ambiguous"], row["client"]["pid"], row["server"]["netns"]) for row in ask(store, "edges")
    ]

    store.apply([snapshot(2, 2, base=False, gone_connections=[2])])

    assert sorted(several, key=repr) == [(True, None, 3), (True, None, None), (True, None, None)]
    assert [(*ends(row), row["ambiguous"]) for row in ask(store, "edges")] == [(1, None, 3, None, 1, False)]


def test_end_in_the_same_namespace_comes_before_all_others() -> None:
    store = new_store()
    store.apply([
        snapshot(1, connections=[client_row(1), server_row(2), listener(3, 443)]),
        snapshot(2, connections=[client_row(4)]),
    ])  # fmt: skip

    found = sorted(((*ends(row), row["ambiguous"]) for row in ask(store, "edges")), key=repr)

    assert found == [(1, None, 1, None, 1, False), (2, None, None, None, 1, False)]


def test_closing_end_keeps_its_edge_and_a_closed_one_does_not() -> None:
    store = new_store()
    rows = [
        client_row(1, state=State.CLOSE_WAIT),
        client_row(2, 40001, state=State.TIME_WAIT),
        listener(3, 80),
    ]
    store.apply([snapshot(HOST, connections=rows)])

    assert [row["client"]["port"] for row in ask(store, "edges")] == [40000]


def test_last_owner_that_has_ended_keeps_its_name() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[client_row(1)], holdings=[holding(8, 3, 1)],
                          processes=[process(8, "curl")])])  # fmt: skip
    store.apply([snapshot(HOST, 2, base=False, connections=[client_row(1, inode=0, state=State.FIN_WAIT1)],
                          gone_holdings=[holding(8, 3, 1)], gone_processes=[ProcessKey(8, 80)])])  # fmt: skip

    (edge,) = ask(store, "edges", where={"comm": "curl"})
    assert (edge["client"]["pid"], edge["client"]["comm"]) == (8, "curl")


def test_edge_knows_since_when_it_is_although_its_connections_change() -> None:
    store = new_store()

    def look(generation: int, taken_at_s: float, *rows: Connection) -> None:
        store.apply([snapshot(HOST, generation, taken_at_s=taken_at_s, connections=rows, processes=[process(8, "curl")],
                              holdings=[holding(8, row.inode, row.inode) for row in rows])])  # fmt: skip

    look(1, 50.0, client_row(1))
    look(2, 60.0, client_row(2, 40001))
    moved = [(row["first_seen"], row["last_seen"]) for row in ask(store, "edges")]
    look(3, 70.0)
    none = ask(store, "edges")
    look(4, 80.0, client_row(3, 40002))

    assert moved == [(1_700_000_050.0, 1_700_000_060.0)]
    assert none == []
    assert [(row["first_seen"], row["last_seen"]) for row in ask(store, "edges")] == [
        (1_700_000_050.0, 1_700_000_080.0)
    ]


def test_edge_that_was_none_for_long_begins_anew() -> None:
    clock = ManualClock(now_s=100.0)
    store = Store(":memory:", "epoch-1", "testhost", clock, stale_after_s=15.0)
    store.apply([snapshot(HOST, connections=[client_row(1)])])
    store.apply([snapshot(HOST, 2)])
    clock.advance(601.0)
    store.tick()
    store.apply([snapshot(HOST, 3, taken_at_s=701.0, connections=[client_row(2)])])

    assert [row["first_seen"] for row in ask(store, "edges")] == [1_700_000_701.0]


def test_edges_come_page_by_page_each_once() -> None:
    store = new_store()
    store.apply(
        [
            snapshot(
                HOST,
                connections=[connection(key, remote=(bytes((10, 1, 0, key)), 443)) for key in range(1, 8)],
            )
        ]
    )
    request = {"op": "edges", "limit": 3}
    pages = [answer(store.reader(), request)]
    while pages[-1]["cursor"]:
        pages.append(answer(store.reader(), {**request, "cursor": pages[-1]["cursor"]}))

    assert [(len(page["rows"]), page["total"]) for page in pages] == [(3, 7), (3, 7), (1, 7)]
    assert sorted(row[1]["addr"] for page in pages for row in page["rows"]) == [
        f"10.1.0.{key}" for key in range(1, 8)
    ]


@pytest.mark.parametrize(
    "cursor",
    [
        "", "epoch-1~edges~", "epoch-1~edges~5b5d", "epoch-1~edges~7b", "epoch-1~edges~é", "epoch-1~connections~5",
        "epoch-2~edges~5b5d", "epoch-1~edges~5b5d~5b5d",
    ],
)  # fmt: skip
def test_cursor_that_is_not_one_of_edges_is_refused(cursor: str) -> None:
    answered = answer(new_store().reader(), {"op": "edges", "cursor": cursor})
    assert answered["error"]["code"] in ("bad_request", "cursor_expired")


def test_edges_of_namespaces_that_nobody_proved_lately_are_left_out() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, taken_at_s=99.0, connections=[client_row(1), client_row(2, 40001)]),
        snapshot(BLUE, taken_at_s=90.0, connections=[server_row(3), listener(4, 443)]),
    ])  # fmt: skip

    assert [ends(row) for row in ask(store, "edges", max_age_s=5)] == [(HOST, None, None, None, 1)]
    assert len(ask(store, "edges", max_age_s=20)) == 2
