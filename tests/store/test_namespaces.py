"""Namespaces in the store: the roster, removal, staleness, readiness, reused inodes, clock steps."""

from __future__ import annotations

import pytest

from pipeline.clock import ManualClock
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, process, roster_row, snapshot
from tests.store.asking import ask, column


def test_row_of_a_namespace_has_what_roster_and_snapshot_say(store: Store, clock: ManualClock) -> None:
    clock.advance(2.0)
    store.apply(
        [
            snapshot(
                BLUE, 3, cookie=138, connections=[connection(1)], processes=[process(8, "sh", BLUE)], denied=2
            )
        ],
        [roster_row(BLUE, ["blue", "navy"])],
    )

    assert ask(store, "namespaces") == [{
        "netns": BLUE, "netns_cookie": 138, "name": "blue", "names": ["blue", "navy"], "processes": 1,
        "connections": 1, "worker_pid": 4321, "state": "walking", "source": "sock_diag", "generation": 3,
        "seen_at": 1_700_000_100.0, "age_s": 2.0, "stale": False, "partial": True, "denied": 2,
    }]  # fmt: skip


def test_listed_namespace_without_a_snapshot_is_blind_and_not_empty(store: Store) -> None:
    store.apply([], [roster_row(BLUE)])

    (row,) = ask(store, "namespaces", fields=["name", "names", "seen_at", "age_s", "stale", "partial"])
    assert row == {"name": None, "names": [], "seen_at": None, "age_s": None, "stale": True, "partial": True}


def test_namespace_without_a_complete_pass_is_partial(store: Store) -> None:
    store.apply([snapshot(HOST, walked_at_s=None), snapshot(BLUE)])

    assert column(store, "namespaces", "partial") == [True, False]


def test_namespace_that_the_roster_drops_is_removed_with_its_rows(store: Store) -> None:
    store.apply(
        [snapshot(HOST), snapshot(BLUE, connections=[connection(1)], processes=[process(8, "sh", BLUE)])],
        [roster_row(HOST), roster_row(BLUE)],
    )

    commit = store.apply([], [roster_row(HOST)])

    assert commit.removed == (BLUE,)
    assert column(store, "namespaces", "netns") == [HOST]
    assert ask(store, "connections") == []
    assert ask(store, "processes") == []


def test_namespace_that_the_roster_calls_gone_is_removed(store: Store) -> None:
    store.apply([snapshot(BLUE)], [roster_row(BLUE)])

    assert store.apply([], [roster_row(BLUE, state="gone")]).removed == (BLUE,)


def test_removed_namespace_takes_its_snapshot_of_the_same_batch_with_it(store: Store) -> None:
    store.apply([snapshot(BLUE)], [roster_row(BLUE), roster_row(HOST)])

    store.apply([snapshot(BLUE, 2, base=False, connections=[connection(1)])], [roster_row(HOST)])

    assert ask(store, "connections") == []
    assert column(store, "namespaces", "netns") == [HOST]


def test_removal_of_the_holders_namespace_leaves_the_socket_without_owner(store: Store) -> None:
    store.apply(
        [
            snapshot(BLUE, connections=[connection(1, inode=5)]),
            snapshot(HOST, processes=[process(8, "sshd")], holdings=[holding(8, 3, 5)]),
        ],
        [roster_row(BLUE), roster_row(HOST)],
    )
    assert column(store, "connections", "pid") == [8]

    store.apply([], [roster_row(BLUE)])

    assert column(store, "connections", "pid") == [None]
    assert column(store, "connections", "owner_role") == [None]


def test_snapshot_ahead_of_the_roster_stays_until_it_is_stale(store: Store, clock: ManualClock) -> None:
    store.apply([snapshot(BLUE)], [roster_row(HOST)])
    store.apply([], [roster_row(HOST)])
    assert column(store, "namespaces", "netns") == [HOST, BLUE]

    clock.advance(15.5)

    assert store.tick().removed == (BLUE,)
    assert column(store, "namespaces", "netns") == [HOST]


def test_without_a_roster_nothing_is_dropped(store: Store, clock: ManualClock) -> None:
    store.apply([snapshot(BLUE)])
    clock.advance(100.0)

    assert store.tick().removed == ()
    assert column(store, "namespaces", "stale") == [True]


def test_namespace_turns_stale_after_the_limit_and_fresh_with_the_next_snapshot(
    store: Store, clock: ManualClock
) -> None:
    store.apply([snapshot(HOST, 1, taken_at_s=100.0, connections=[connection(1)])])
    clock.advance(14.9)
    assert store.tick().seq == 1
    clock.advance(0.2)
    assert store.tick().seq == 2
    assert column(store, "connections", "stale") == [True]

    store.apply([snapshot(HOST, 2, base=False, taken_at_s=115.0)])

    assert column(store, "connections", "stale") == [False]


def test_proof_of_the_gate_keeps_a_quiet_namespace_fresh(store: Store, clock: ManualClock) -> None:
    store.apply([snapshot(HOST, taken_at_s=100.0)], [roster_row(HOST, checked_at_s=100.0)])
    clock.advance(20.0)

    store.apply([], [roster_row(HOST, checked_at_s=119.0)])

    (row,) = ask(store, "namespaces", fields=["stale", "age_s", "seen_at"])
    assert row == {"stale": False, "age_s": 1.0, "seen_at": 1_700_000_100.0}


def test_namespace_of_a_dead_worker_is_stale_at_once_and_still_answered(store: Store) -> None:
    store.apply([snapshot(HOST, connections=[connection(1)])], [roster_row(HOST)])

    store.apply([], [roster_row(HOST, state="restarting")])

    assert column(store, "connections", "stale") == [True]


def test_reused_inode_with_another_cookie_is_another_namespace(store: Store) -> None:
    store.apply([snapshot(
        BLUE, 4, cookie=138, connections=[connection(-5)], processes=[process(8, "old", BLUE)],
        holdings=[holding(8, 3, 5)],
    )])  # fmt: skip

    store.apply([snapshot(BLUE, 1, life=2, cookie=4163, connections=[connection(-6)])])

    assert column(store, "connections", "inode") == [6]
    assert ask(store, "processes") == []
    assert column(store, "namespaces", "netns_cookie") == [4163]


def test_lost_right_to_enter_keeps_the_cookie_and_the_rows(store: Store) -> None:
    store.apply([snapshot(BLUE, 1, cookie=138, connections=[connection(1)])])

    store.apply([snapshot(BLUE, 2, base=False, cookie=None)])

    assert column(store, "connections", "netns_cookie") == [138]


def test_ready_once_every_listed_namespace_was_seen(store: Store) -> None:
    store.apply([snapshot(HOST)], [roster_row(HOST), roster_row(BLUE)])
    assert not store.ready

    store.apply([snapshot(BLUE)])

    assert store.ready
    assert ask(store, "status", fields=["ready"]) == [{"ready": True}]


def test_namespace_that_never_answers_delays_readiness_no_longer_than_the_stale_limit(
    store: Store, clock: ManualClock
) -> None:
    store.apply([snapshot(HOST)], [roster_row(HOST), roster_row(BLUE)])
    clock.advance(15.5)
    store.tick()

    assert store.ready


def test_new_namespace_does_not_take_readiness_back(store: Store) -> None:
    store.apply([snapshot(HOST)], [roster_row(HOST)])

    store.apply([], [roster_row(HOST), roster_row(BLUE)])

    assert store.ready


def test_step_of_the_wall_clock_moves_every_time_with_one_commit(store: Store, clock: ManualClock) -> None:
    store.apply([snapshot(HOST, taken_at_s=100.0, connections=[connection(1)])])
    assert store.tick().seq == 1

    clock.wall_offset_s += 3600.0

    assert store.tick().seq == 2
    assert column(store, "connections", "seen_at") == [1_700_003_700.0]


def test_trembling_of_the_wall_clock_is_no_step(store: Store, clock: ManualClock) -> None:
    store.apply([snapshot(HOST)])
    clock.wall_offset_s += 0.04

    assert store.tick().seq == 1


def test_unchanged_roster_is_no_commit(store: Store) -> None:
    store.apply([snapshot(HOST)], [roster_row(HOST, ["host"])])

    assert store.apply([], [roster_row(HOST, ["host"])]).seq == 1


@pytest.mark.parametrize("names", [["b"], []])
def test_names_follow_the_roster(store: Store, names: list[str]) -> None:
    store.apply([snapshot(BLUE)], [roster_row(BLUE, ["a"])])

    store.apply([], [roster_row(BLUE, names)])

    assert column(store, "namespaces", "names") == [names]
