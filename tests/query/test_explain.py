"""`explain`: why this owner, why none."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.model.snapshot import Snapshot
from pipeline.query import answer
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, snapshot


def explained(*snapshots: Snapshot, losses: int = 0, **keys: Any) -> list[dict[str, Any]]:
    store = Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    for one in snapshots:
        store.apply([one])
    if losses:
        store.set_losses({"processes_denied": losses})
    answered = answer(store.reader(), {"op": "explain", **keys})
    assert answered["ok"], answered
    return [dict(zip(answered["columns"], row, strict=True)) for row in answered["rows"]]


def test_only_holder_is_named_with_descriptor_and_time() -> None:
    (row,) = explained(
        snapshot(connections=[connection(1)], processes=[process(8, "sshd")], holdings=[holding(8, 3, 1)])
    )

    assert row["explanation"] == "sshd (pid 8) holds the socket as descriptor 3. No other process does."
    assert row["holders"] == [
        {"pid": 8, "start_ticks": 80, "fd": 3, "comm": "sshd", "netns": HOST, "container": None,
         "seen_at": 1_700_000_100.0, "rule": "first"},
    ]  # fmt: skip
    assert (row["cookie"], row["owners"][0]["pid"]) == (1, 8)


def test_rule_that_chose_among_several_is_named() -> None:
    people = [process(8, "nginx"), process(9, "nginx"), process(1, "init")]
    held = [holding(9, 6, 1), holding(8, 6, 1), holding(8, 7, 1), holding(1, 40, 1)]

    (row,) = explained(snapshot(connections=[listener(1, 80)], processes=people, holdings=held))

    assert row["explanation"] == (
        "nginx (pid 8) holds the socket as descriptor 6. So do 2 other processes, which come after it:"
        " started later: the oldest process bound it."
    )
    assert [(one["pid"], one["fd"], one["rule"]) for one in row["holders"]] == [
        (8, 6, "first"), (8, 7, "the same process, a higher descriptor"),
        (9, 6, "started later: the oldest process bound it"), (1, 40, "pid 1 comes last, it holds what it hands on"),
    ]  # fmt: skip


def test_of_a_connection_that_waits_the_holders_of_its_listener_are_named() -> None:
    rows = explained(snapshot(
        connections=[listener(1, 80), connection(2, inode=0, local=(b"\x0a\x00\x00\x01", 80))],
        processes=[process(8, "nginx")], holdings=[holding(8, 6, 1)],
    ))  # fmt: skip

    assert rows[1]["explanation"] == (
        "The connection is not accepted yet; of the listener that it came to: nginx (pid 8) holds the socket as"
        " descriptor 6. No other process does."
    )
    assert [one["pid"] for one in rows[1]["holders"]] == [8]


@pytest.mark.parametrize(
    ("snapshots", "losses", "explanation"),
    [
        ([snapshot(connections=[connection(1, inode=0, state=6)])], 0,
         "No process holds this socket: in TIME_WAIT it has no inode, the socket is closed and only its"
         " addresses are still reserved."),
        ([snapshot(connections=[connection(1)], walked_at_s=None)], 0,
         "The processes of its namespace have not all been looked at yet."),
        ([snapshot(connections=[connection(1)], denied=3)], 0,
         "The descriptors of 3 processes of its namespace may not be read; one of them may hold it."),
        ([snapshot(connections=[connection(1)], denied=1)], 0,
         "The descriptors of 1 process of its namespace may not be read; it may hold it."),
        ([snapshot(connections=[connection(1)])], 4,
         "No process that may be read was found to hold it; elsewhere the descriptors of 4 processes may not be."),
        ([snapshot(connections=[connection(1)]), snapshot(BLUE, denied=1)], 0,
         "No process that may be read was found to hold it; elsewhere the descriptors of 1 process may not be."),
        ([snapshot(connections=[connection(1)]), snapshot(BLUE, walked_at_s=None)], 0,
         "No process of its namespace holds it; in 1 other namespace not all processes were looked at yet."),
        ([snapshot(connections=[connection(1)])], 0,
         "No process was found to hold it, but not all were looked at again since it appeared: one may have opened it"
         " since then, or it is on its way from one process to another."),
        ([snapshot(connections=[connection(1)], searched_since_s=100.0)], 0,
         "Every process was looked at since it appeared and none holds it: the kernel itself owns it (as NFS, tunnels"
         " and the like do), or it is on its way from one process to another."),
        ([snapshot(connections=[connection(1, inode=0)])], 0,
         "No process holds this socket: in ESTABLISHED it has no inode, the connection is not accepted yet, and who"
         " will is not known: no listener of a known process is on its port, or several that do not belong to the same"
         " processes."),
        ([snapshot(connections=[connection(1)], processes=[process(8, "sshd")], holdings=[holding(8, 3, 1)]),
          snapshot(generation=2, base=False, connections=[connection(1, inode=0, state=6)])], 0,
         "No process holds this socket any more: in TIME_WAIT it has no inode, the socket is closed and only its"
         " addresses are still reserved. The last one was sshd (pid 8)."),
    ],
)  # fmt: skip
def test_missing_owner_is_explained(snapshots: list[Snapshot], losses: int, explanation: str) -> None:
    (row,) = explained(*snapshots, losses=losses)

    assert (row["explanation"], row["holders"]) == (explanation, [])


def test_owner_that_may_be_in_a_namespace_that_is_not_looked_at_is_explained() -> None:
    store = Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    store.set_losses({"namespaces_left_out": 2})
    store.apply([snapshot(connections=[connection(1)], searched_since_s=100.0)])

    answered = answer(store.reader(), {"op": "explain", "fields": ["explanation", "owner_role"]})

    assert answered["rows"] == [[
        "No process that is looked at holds it; one that is not may: there are namespaces that were left out, or"
        " processes that are hidden from here.", None,
    ]]  # fmt: skip


def test_a_hundred_connections_are_explained_unless_a_limit_says_otherwise() -> None:
    many = snapshot(connections=[connection(key) for key in range(1, 124)])

    assert len(explained(many)) == 100
    assert len(explained(many, limit=110)) == 110


def test_fields_are_those_asked_for() -> None:
    (row,) = explained(snapshot(connections=[connection(1)]), fields=["holders", "cookie"])

    assert row == {"holders": [], "cookie": 1}
