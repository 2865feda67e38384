"""Figures of traffic beside the connections: on request, per process, and gone with what they are of."""

from __future__ import annotations

from typing import Any

from pipeline.model.traffic import Traffic
from pipeline.query import answer
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, process, snapshot

FIGURES = ["bytes_sent", "bytes_received", "rtt_us", "retransmits"]


def figures(store: Store, **where: Any) -> list[list[Any]]:
    request = {"op": "connections", "where": where, "fields": ["cookie", *FIGURES]}
    return sorted(answer(store.reader(), request)["rows"])


def test_figures_come_when_asked_for_by_name_and_are_null_where_there_are_none(store: Store) -> None:
    store.apply([snapshot(connections=[connection(1), connection(2)], traffic=[Traffic(1, 10, 20, 300, 4)])])
    assert figures(store) == [[1, 10, 20, 300, 4], [2, None, None, None, None]]
    assert not set(FIGURES) & set(answer(store.reader(), {"op": "connections"})["columns"])


def test_new_figures_replace_the_old_and_change_no_connection(store: Store) -> None:
    store.apply([snapshot(connections=[connection(1)], traffic=[Traffic(1, 10, 20, 300, 4)])])
    commit = store.apply([snapshot(generation=2, base=False, traffic=[Traffic(1, 11, 21, 301, 5)])])
    assert commit.touched == ()
    assert figures(store) == [[1, 11, 21, 301, 5]]


def test_figures_go_with_their_connection_and_with_their_namespace(store: Store) -> None:
    everything = [Traffic(1, 10, 20, 300, 4), Traffic(2, 1, 1, 1, 1)]
    store.apply([snapshot(connections=[connection(1), connection(2)], traffic=everything)])
    store.apply([snapshot(generation=2, base=False, gone_connections=[1])])
    store.apply([snapshot(generation=3, base=False, connections=[connection(1)])])
    assert figures(store) == [[1, None, None, None, None], [2, 1, 1, 1, 1]]
    store.apply([snapshot(generation=4, connections=[connection(1), connection(2)])])  # a base without
    assert figures(store, cookie=2) == [[2, None, None, None, None]]
    store.apply([snapshot(generation=5, base=False, traffic=everything)])
    store.apply([snapshot(generation=1, life=2, cookie=8, connections=[connection(1)])])  # another namespace
    assert figures(store) == [[1, None, None, None, None]]


def test_a_process_has_the_sum_of_what_it_holds_each_connection_once(store: Store) -> None:
    store.apply([
        snapshot(
            HOST, connections=[connection(1, inode=5), connection(2, inode=6), connection(3, inode=7)],
            processes=[process(8, "a"), process(9, "b")],
            holdings=[holding(8, 3, 5), holding(8, 4, 5), holding(8, 5, 6), holding(9, 3, 7)],
            traffic=[Traffic(1, 10, 20, 300, 1), Traffic(2, 100, 200, 300, 2)],
        ),
        snapshot(
            BLUE, connections=[connection(4, inode=8)], processes=[process(7, "c", BLUE)],
            holdings=[holding(7, 3, 8)], traffic=[Traffic(4, 1, 2, 3, 4)],
        ),
    ])  # fmt: skip
    found = answer(
        store.reader(), {"op": "processes", "fields": ["pid", "bytes_sent", "bytes_received", "retransmits"]}
    )
    assert sorted(found["rows"]) == [[7, 1, 2, 4], [8, 110, 220, 3], [9, None, None, None]]
