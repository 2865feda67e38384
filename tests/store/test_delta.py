"""Deltas: whoever puts them on what they knew has the state, whatever happened."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.model.delta import Delta
from pipeline.model.snapshot import Snapshot
from pipeline.store import Commit, Store
from pipeline.store.delta import DELTA_COLUMNS
from tests.sample_state import BLUE, HOST, connection, histories, holding, process, roster_row, snapshot
from tests.store.asking import ask

KEY = DELTA_COLUMNS.index("key")
Rows = dict[Any, list[Any]]


def new_store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def rows_of(store: Store, netns: int) -> Rows:
    rows = ask(store, "connections", fields=list(DELTA_COLUMNS), where={"netns": netns})
    return {row["key"]: list(row.values()) for row in rows}


def put(rows: Rows, delta: Delta) -> None:
    for row in delta.removed:
        del rows[row[KEY]]
    rows.update((row[KEY], row) for row in (*delta.added, *delta.changed))


def keys(rows: list[list[Any]]) -> list[str]:
    return [row[KEY] for row in rows]


@settings(max_examples=200, deadline=None)
@given(histories(), st.lists(st.sets(st.sampled_from([1, 2, 3])), max_size=3))
def test_deltas_of_touched_namespaces_add_up_to_the_state(
    history: list[Snapshot], rosters: list[set[int]]
) -> None:
    store = new_store()
    known: dict[int, Rows] = {1: {}, 2: {}, 3: {}}

    def check(commit: Commit) -> None:
        for netns in commit.touched:
            put(known[netns], store.delta(netns, commit.seq))
        assert known == {netns: rows_of(store, netns) for netns in known}

    for one in history:
        check(store.apply([one]))
    for listed in rosters:
        check(store.apply([], [roster_row(netns) for netns in listed]))
        check(store.apply(history[-2:]))
    store.close()


@settings(max_examples=75, deadline=None)
@given(histories(), st.integers(1, 8))
def test_delta_since_an_older_commit_has_all_that_came_after(history: list[Snapshot], before: int) -> None:
    store = new_store()
    for one in history[:before]:
        store.apply([one])
    seq = store.seq
    known = {netns: rows_of(store, netns) for netns in (1, 2, 3)}

    for one in history[before:]:
        store.apply([one])

    for netns, rows in known.items():
        put(rows, store.delta(netns, seq + 1))
        assert rows == rows_of(store, netns)
    store.close()


def test_delta_tells_new_changed_and_gone_rows_apart() -> None:
    store = new_store()
    store.apply([snapshot(connections=[connection(1), connection(2), connection(3, inode=9)])])

    commit = store.apply([snapshot(
        generation=2, base=False, connections=[connection(2, state=8), connection(b"\x06\xff")], gone_connections=[1],
        processes=[process(8, "sshd")], holdings=[holding(8, 3, 9)],
    )])  # fmt: skip

    delta = store.delta(HOST, commit.seq)
    assert (keys(delta.added), keys(delta.changed), keys(delta.removed)) == (["06ff"], ["2", "3"], ["1"])
    assert commit.touched == (HOST,)


def test_owner_in_another_namespace_touches_the_one_that_has_the_connection() -> None:
    store = new_store()
    store.apply([snapshot(BLUE, connections=[connection(1, inode=9)])])

    commit = store.apply([snapshot(HOST, processes=[process(8, "sshd")], holdings=[holding(8, 3, 9)])])

    assert commit.touched == (BLUE,)
    assert keys(store.delta(BLUE, commit.seq).changed) == ["1"]


def test_new_name_of_a_process_changes_what_it_holds() -> None:
    store = new_store()
    store.apply([
        snapshot(connections=[connection(1, inode=9)], processes=[process(8, "sh")], holdings=[holding(8, 3, 9)])
    ])  # fmt: skip

    commit = store.apply([snapshot(generation=2, base=False, processes=[process(8, "nginx")])])

    (changed,) = store.delta(HOST, commit.seq).changed
    assert changed[DELTA_COLUMNS.index("comm")] == "nginx"


def test_namespace_that_was_only_seen_again_is_not_touched() -> None:
    store = new_store()
    store.apply([snapshot(connections=[connection(1)])])

    commit = store.apply([snapshot(generation=2, base=False, taken_at_s=101.0)])

    assert (commit.seq, commit.touched, commit.edges) == (2, (), False)


def test_listener_touches_no_edge() -> None:
    store = new_store()

    assert not store.apply([snapshot(connections=[connection(1, state=10)])]).edges
    assert store.apply([snapshot(generation=2, base=False, connections=[connection(2)])]).edges
    assert store.apply([snapshot(generation=3, base=False, gone_connections=[2])]).edges


def test_removed_namespace_has_its_rows_removed() -> None:
    store = new_store()
    snapshots = [snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(2)])]
    store.apply(snapshots, [roster_row(HOST), roster_row(BLUE)])

    commit = store.apply([], [roster_row(HOST)])

    assert (commit.removed, commit.touched) == ((BLUE,), (BLUE,))
    assert keys(store.delta(BLUE, commit.seq).removed) == ["2"]


def test_without_followers_nothing_of_the_past_is_kept() -> None:
    store = new_store()
    store.apply([snapshot(connections=[connection(1), connection(2)])])
    store.keeps_past = False

    commit = store.apply([snapshot(generation=2, base=False, gone_connections=[1])])

    assert commit.touched == (HOST,)
    assert store.delta(HOST, commit.seq).removed == []
