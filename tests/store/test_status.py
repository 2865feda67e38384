"""The row of `status`: counts, freshness, losses, workers."""

from __future__ import annotations

from pipeline import __version__
from pipeline.clock import ManualClock
from pipeline.model.connection import State
from pipeline.model.netns import BudgetRow, UsageRow, WorkerRow
from pipeline.model.snapshot import Health
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot
from tests.store.asking import ask


def test_status_counts_namespaces_connections_and_losses(store: Store, clock: ManualClock) -> None:
    store.apply(
        [
            snapshot(
                HOST, taken_at_s=90.0, health=Health(looks=3, pids_vanished=2), processes=[process(8, "sh")],
                connections=[listener(1, 80, inode=5), connection(2), connection(3, state=State.TIME_WAIT, inode=0)],
                holdings=[holding(8, 3, 5)],
            ),
            snapshot(BLUE, taken_at_s=97.0, health=Health(looks=4), denied=1),
        ],
        [roster_row(HOST), roster_row(BLUE), roster_row(3)],
    )  # fmt: skip
    store.set_losses({"queries_refused": 5})
    clock.advance(1.0)

    (status,) = ask(store, "status")

    losses = status.pop("losses")
    assert {name: count for name, count in losses.items() if count} == {
        "looks": 7, "pids_vanished": 2, "queries_refused": 5,
    }  # fmt: skip
    assert status == {
        "ready": False, "epoch": "epoch-1", "seq": 2, "host": "testhost", "version": __version__, "uptime_s": 1.0,
        "namespaces": {"total": 3, "stale": 1, "partial": 2, "denied": 1},
        "connections": 3, "owned": 1, "unowned": 1, "age_p50_s": 4.0, "age_p95_s": 11.0, "age_max_s": 11.0,
        "owner_age_p50_s": 2.0, "owner_age_max_s": 2.0, "budget": None, "workers": [],
    }  # fmt: skip


def test_status_of_an_empty_store_has_no_ages(store: Store) -> None:
    (status,) = ask(store, "status", fields=["namespaces", "age_p50_s", "age_max_s", "losses"])

    assert status == {
        "namespaces": {"total": 0, "stale": 0, "partial": 0, "denied": 0}, "age_p50_s": None, "age_max_s": None,
        "losses": {},
    }  # fmt: skip


def test_workers_come_in_the_rosters_order_with_what_they_use(store: Store) -> None:
    store.set_workers([
        WorkerRow("supervisor", 100, [], "running", 0, 0.0), WorkerRow("netns", 50, [HOST, BLUE], "walking", 2, 0.25),
    ])  # fmt: skip
    store.set_usage([UsageRow(50, 1.5, 9000, 3000), UsageRow(999, 9.0, 1, None)], BudgetRow(5.0, 2.5))

    (status,) = ask(store, "status", fields=["workers", "budget"])

    assert status["budget"] == {"cpu_percent": 5.0, "used_percent": 2.5}

    assert status["workers"] == [
        {"role": "supervisor", "pid": 100, "netns": [], "state": "running", "restarts": 0, "cpu_share": 0.0,
         "cpu_percent": None, "rss_bytes": None, "pss_bytes": None},
        {"role": "netns", "pid": 50, "netns": [HOST, BLUE], "state": "walking", "restarts": 2, "cpu_share": 0.25,
         "cpu_percent": 1.5, "rss_bytes": 9000, "pss_bytes": 3000},
    ]  # fmt: skip


def test_unchanged_workers_and_losses_are_no_commit(store: Store) -> None:
    workers = [WorkerRow("netns", 50, [HOST], "walking", 2, 0.25)]
    assert store.set_workers(workers).seq == 1
    assert store.set_losses({"answers_lost": 0}).seq == 2

    assert store.set_workers(list(workers)).seq == 2
    assert store.set_losses({"answers_lost": 0}).seq == 2
    assert store.set_workers([]).seq == 3
    assert ask(store, "status", fields=["workers"]) == [{"workers": []}]
