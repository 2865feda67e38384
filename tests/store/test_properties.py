"""The store against a plain Python oracle: any history, in any batches, gives the joined state of its fold."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.merge.latest import Latest, Verdict
from pipeline.model.connection import Connection, State
from pipeline.model.snapshot import Snapshot, fold
from pipeline.store import Store
from tests.sample_state import histories
from tests.store.asking import ask

Owned = tuple[int, Any, str, tuple[tuple[int, int, int], ...], tuple[int, int] | None]


def _store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def _expected(history: list[Snapshot]) -> list[Owned]:
    """(netns, cookie, state, sorted (pid, start, fd) of all holders, primary owner) of every connection."""
    states = {
        netns: fold([one for one in history if one.netns == netns])
        for netns in {one.netns for one in history}
    }
    holders: dict[int, set[tuple[int, int, int]]] = defaultdict(set)
    for state in states.values():
        for held in state.holdings:
            holders[held.inode].add((held.pid, held.start_ticks, held.fd))
    rows = []
    for netns, state in states.items():
        for row in state.connections.values():
            held_by = holders[row.inode] if row.inode else set()
            rows.append(
                (netns, row.cookie or None, _state_text(row), tuple(sorted(held_by)), _primary(row, held_by))
            )
    return sorted(rows, key=repr)


def _state_text(row: Connection) -> str:
    if row.proto == 17:
        return "ESTABLISHED" if row.state == 1 else "UNCONN"
    return {1: "ESTABLISHED", 2: "SYN_SENT", 6: "TIME_WAIT", 7: "CLOSE", 10: "LISTEN"}[row.state]


def _primary(row: Connection, held_by: set[tuple[int, int, int]]) -> tuple[int, int] | None:
    candidates = {(pid, start) for pid, start, _ in held_by}
    others = {one for one in candidates if one[0] != 1} or candidates
    if not others:
        return None
    listening = row.state == State.LISTEN and row.proto == 6
    start = (min if listening else max)(start for _, start in others)
    return min(pid for pid, started in others if started == start), start


def _found(store: Store) -> list[Owned]:
    rows = ask(store, "connections", fields=["netns", "cookie", "state", "owners", "pid"])
    found = []
    for row in rows:
        owners = [(owner["pid"], owner["start_ticks"], owner["fd"]) for owner in row["owners"]]
        first = owners[0][:2] if owners else None
        assert row["pid"] == (first[0] if first else None)
        found.append((row["netns"], row["cookie"], row["state"], tuple(sorted(owners)), first))
    return sorted(found, key=repr)


@settings(max_examples=150, deadline=None)
@given(histories())
def test_state_is_the_join_of_what_the_workers_said(history: list[Snapshot]) -> None:
    store = _store()
    for one in history:
        store.apply([one])

    assert _found(store) == _expected(history)
    store.close()


@settings(max_examples=75, deadline=None)
@given(histories(), st.data())
def test_batches_make_no_difference(history: list[Snapshot], data: st.DataObject) -> None:
    store = _store()
    rest = history
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        store.apply(rest[:size])
        rest = rest[size:]

    assert _found(store) == _expected(history)
    store.close()


@settings(max_examples=75, deadline=None)
@given(histories(), st.data())
def test_messages_lost_doubled_and_late_make_no_difference_once_the_segments_were_read(
    history: list[Snapshot], data: st.DataObject
) -> None:
    store, latest = _store(), Latest()
    delivered = data.draw(st.lists(st.sampled_from(history), max_size=12))
    segments = [one for netns in (1, 2, 3) for one in history if one.netns == netns]
    for one in [*delivered, *segments, *delivered]:
        if latest.offer(one) is Verdict.APPLY:
            store.apply([one])

    assert _found(store) == _expected(history)
    store.close()


@settings(max_examples=50, deadline=None)
@given(histories())
def test_processes_are_listed_once_with_the_connections_they_hold(history: list[Snapshot]) -> None:
    store = _store()
    store.apply(history)
    held: dict[tuple[int, int], int] = defaultdict(int)
    for _, _, _, holders, _ in _expected(history):
        for process in {(pid, start) for pid, start, _ in holders}:
            held[process] += 1
    known = {
        (row.pid, row.start_ticks)
        for netns in {one.netns for one in history}
        for row in fold([one for one in history if one.netns == netns]).processes.values()
    }

    rows = ask(store, "processes", fields=["pid", "start_ticks", "connections"])

    assert [tuple(row.values()) for row in rows] == [(*key, held[key]) for key in sorted(known)]
    store.close()
