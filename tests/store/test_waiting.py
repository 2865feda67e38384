"""Whether a filtered view has changed: never missed, and not told for what is outside of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.model.snapshot import Snapshot
from pipeline.store import Store
from pipeline.store.waiting import has_changed
from tests.sample_state import BLUE, HOST, connection, histories, holding, process, snapshot
from tests.store.asking import ask

VIEW = ["key", "state", "direction", "owners", "local_addr", "remote_addr", "uid"]


def changed(store: Store, seq: int, **where: Any) -> bool:
    reader = store.reader()
    with reader.moment():
        return has_changed(reader, where, seq)


@pytest.fixture
def served(store: Store) -> Store:
    """Two namespaces, a process with one connection in each."""
    store.apply([
        snapshot(HOST, connections=[connection(1)], processes=[process(8, "curl")], holdings=[holding(8, 3, 1)]),
        snapshot(BLUE, connections=[connection(2)], processes=[process(9, "nginx", BLUE)], holdings=[holding(9, 3, 2)]),
    ])  # fmt: skip
    return store


def test_nothing_has_changed_since_the_newest_commit(served: Store) -> None:
    assert not changed(served, served.seq)
    assert not changed(served, served.seq + 5)


def test_namespace_that_was_only_seen_again_has_not_changed(served: Store) -> None:
    served.apply([snapshot(HOST, 2, base=False, taken_at_s=105.0)])

    assert not changed(served, 1)


def test_change_counts_for_the_views_it_is_in(served: Store) -> None:
    served.apply(
        [snapshot(HOST, 2, base=False, connections=[connection(5, local=(b"\x0a\x00\x00\x09", 22))])]
    )

    assert changed(served, 1) and changed(served, 1, netns=HOST, local_port=22)
    assert not changed(served, 1, netns=BLUE)
    assert not changed(served, 1, pid=8)


def test_row_that_leaves_a_view_changes_it(served: Store) -> None:
    served.apply([snapshot(HOST, 2, base=False, connections=[connection(1, state=8)])])

    assert changed(served, 1, established=True) and changed(served, 1, state="CLOSE_WAIT")
    assert not changed(served, 1, state="LISTEN")


def test_row_that_goes_changes_the_views_of_those_who_held_it(served: Store) -> None:
    served.apply([snapshot(HOST, 2, base=False, gone_connections=[1], gone_holdings=[holding(8, 3, 1)])])

    assert changed(served, 1, pid=8) and changed(served, 1, comm="curl") and changed(served, 1, netns=HOST)
    assert not changed(served, 1, pid=9) and not changed(served, 1, comm="nginx")


def test_owner_who_lets_go_changes_its_view_and_that_of_the_unowned(served: Store) -> None:
    served.apply([snapshot(HOST, 2, base=False, gone_holdings=[holding(8, 3, 1)])])

    assert changed(served, 1, pid=8) and changed(served, 1, unowned=True)
    assert not changed(served, 1, pid=9)


def test_what_is_not_remembered_any_more_counts_as_changed(served: Store, clock: ManualClock) -> None:
    served.apply([snapshot(HOST, 2, base=False, gone_connections=[1])])
    clock.advance(61.0)
    served.apply([snapshot(HOST, 3, base=False, connections=[connection(3)])])
    clock.advance(61.0)
    served.apply([snapshot(HOST, 4, base=False, taken_at_s=300.0)])

    assert changed(served, 1, netns=BLUE)
    assert not changed(served, served.seq - 1, netns=BLUE)


def test_while_nothing_was_kept_every_commit_counts_as_a_change(served: Store) -> None:
    served.keeps_past = False
    served.apply([snapshot(HOST, 2, base=False, taken_at_s=105.0)])
    unkept = changed(served, 1, netns=BLUE)
    served.keeps_past = True
    served.apply([snapshot(HOST, 3, base=False, taken_at_s=106.0)])

    assert unkept and changed(served, 1, netns=BLUE)
    assert not changed(served, 2, netns=BLUE)


_filters = st.sampled_from([
    {}, {"netns": 1}, {"pid": 2}, {"comm": "nginx"}, {"state": "LISTEN"}, {"established": True}, {"unowned": True},
    {"local_port": 80}, {"direction": "inbound"}, {"uid": 1000}, {"inode": 3}, {"local": "10.0.0.0/16"},
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(histories(), st.integers(0, 8), _filters)
def test_view_without_a_change_is_the_same(
    history: list[Snapshot], before: int, where: dict[str, Any]
) -> None:
    store = Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    for one in history[:before]:
        store.apply([one])
    seq, view = store.seq, ask(store, "connections", fields=VIEW, where=where)

    for one in history[before:]:
        store.apply([one])

    assert changed(store, seq, **where) or ask(store, "connections", fields=VIEW, where=where) == view
    store.close()
