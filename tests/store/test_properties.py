"""The store against a plain Python oracle: any history, in any batches, gives the joined state of its fold."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.merge.latest import Latest, Verdict
from pipeline.model.address import mapped
from pipeline.model.connection import Connection, State
from pipeline.model.snapshot import FoldedState, Snapshot, fold
from pipeline.store import Store
from tests.sample_state import histories
from tests.store.asking import ask

Key = tuple[int, str]
# (state, role, sorted (pid, start, fd) of all owners, primary owner) of a connection.
Owned = tuple[str, str | None, tuple[tuple[int, int, int], ...], tuple[int, int] | None]
Holders = set[tuple[int, int, int]]


def _store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def _folded(history: list[Snapshot]) -> dict[int, FoldedState]:
    return {
        netns: fold([one for one in history if one.netns == netns])
        for netns in {one.netns for one in history}
    }


def _expected(history: list[Snapshot]) -> dict[Key, Owned]:
    """As if nobody remembered who held what before."""
    states = _folded(history)
    holders: dict[int, Holders] = defaultdict(set)
    for state in states.values():
        for held in state.holdings:
            holders[held.inode].add((held.pid, held.start_ticks, held.fd))
    expected = {}
    for netns, state in states.items():
        for row in state.connections.values():
            role, held_by = "holder", holders[row.inode] if row.inode else set()
            if not row.inode and row.proto == 6 and row.state == State.ESTABLISHED:
                role, held_by = "pending", _accepting(row, list(state.connections.values()), holders)
            oldest = role == "pending" or (row.state == State.LISTEN and row.proto == 6)
            expected[netns, _key_text(row)] = (
                _state_text(row), role if held_by else None, tuple(sorted(held_by)), _primary(oldest, held_by)
            )  # fmt: skip
    return expected


def _accepting(row: Connection, rows: list[Connection], holders: dict[int, Holders]) -> Holders:
    """Who holds the listeners that the row may have come to, if all of them are held by the same processes."""
    here = [one for one in rows if one.proto == 6 and one.state == State.LISTEN and one.inode
            and one.local_port == row.local_port]  # fmt: skip
    v4 = mapped(row.local_addr).startswith(mapped(bytes(4))[:12])
    for address in (mapped(row.local_addr), *([mapped(bytes(4))] if v4 else []), bytes(16)):
        best = sorted(one.inode for one in here if mapped(one.local_addr) == address)
        if best:
            processes = {frozenset(held[:2] for held in holders[inode]) for inode in best}
            return holders[best[0]] if len(processes) == 1 else set()
    return set()


def _key_text(row: Connection) -> str:
    return str(row.key) if isinstance(row.key, int) else row.key.hex()


def _state_text(row: Connection) -> str:
    if row.proto == 17:
        return "ESTABLISHED" if row.state == 1 else "UNCONN"
    return {1: "ESTABLISHED", 2: "SYN_SENT", 6: "TIME_WAIT", 7: "CLOSE", 10: "LISTEN"}[row.state]


def _primary(oldest: bool, held_by: Holders) -> tuple[int, int] | None:
    candidates = {(pid, start) for pid, start, _ in held_by}
    others = {one for one in candidates if one[0] != 1} or candidates
    if not others:
        return None
    start = (min if oldest else max)(start for _, start in others)
    return (min if oldest else max)(pid for pid, started in others if started == start), start


def _ever_held(history: list[Snapshot]) -> set[tuple[int, str, int, int]]:
    """(netns, key, pid, start) of every process that ever held an inode that the connection ever had."""
    held = {(one.inode, one.pid, one.start_ticks) for told in history for one in told.holdings}
    return {
        (told.netns, _key_text(row), pid, start)
        for told in history for row in told.connections for inode, pid, start in held if row.inode == inode
    }  # fmt: skip


def _check(store: Store, history: list[Snapshot]) -> None:
    expected, ever_held = _expected(history), _ever_held(history)
    rows = ask(store, "connections", fields=["netns", "key", "state", "inode", "owner_role", "owners", "pid"])
    assert {(row["netns"], row["key"]) for row in rows} == expected.keys()
    for row in rows:
        key = row["netns"], row["key"]
        owners = [(owner["pid"], owner["start_ticks"], owner["fd"]) for owner in row["owners"]]
        first = owners[0][:2] if owners else None
        assert row["pid"] == (first[0] if first else None)
        if row["owner_role"] == "last":
            ((pid, start, fd),) = owners
            assert row["inode"] == 0 and fd is None and (*key, pid, start) in ever_held
        else:
            role = None if row["owner_role"] == "kernel" else row["owner_role"]
            assert (row["state"], role, tuple(sorted(owners)), first) == expected[key]


@settings(max_examples=150, deadline=None)
@given(histories())
def test_state_is_the_join_of_what_the_workers_said(history: list[Snapshot]) -> None:
    store = _store()
    for one in history:
        store.apply([one])

    _check(store, history)
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

    _check(store, history)
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

    _check(store, history)
    store.close()


@settings(max_examples=50, deadline=None)
@given(histories())
def test_processes_are_listed_once_with_the_connections_they_hold(history: list[Snapshot]) -> None:
    store = _store()
    store.apply(history)
    held: dict[tuple[int, int], int] = defaultdict(int)
    for _, role, holders, _ in _expected(history).values():
        for process in () if role == "pending" else {(pid, start) for pid, start, _ in holders}:
            held[process] += 1
    known = {
        (row.pid, row.start_ticks)
        for netns in {one.netns for one in history}
        for row in fold([one for one in history if one.netns == netns]).processes.values()
    }

    rows = ask(store, "processes", fields=["pid", "start_ticks", "connections"])

    assert [tuple(row.values()) for row in rows] == [(*key, held[key]) for key in sorted(known)]
    store.close()
