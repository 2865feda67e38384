"""Connections in the store: the contract's words, base and delta, the join with holders, the direction."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.errors import Malformed
from pipeline.model.connection import Family, Proto, State
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot
from tests.store.asking import ask, column


def test_row_of_a_connection_is_as_the_contract_names_it(store: Store) -> None:
    store.apply(
        [snapshot(
            BLUE, cookie=138, taken_at_s=100.0, walked_at_s=98.0,
            connections=[connection(9, inode=5, uid=33, device="vrf-blue")],
            processes=[process(8, "nginx", BLUE)], holdings=[holding(8, 3, 5)],
        )],
        [roster_row(BLUE, ["blue"])],
    )  # fmt: skip

    assert ask(store, "connections") == [{
        "netns": BLUE, "netns_cookie": 138, "netns_name": "blue", "proto": "tcp", "family": "inet",
        "state": "ESTABLISHED", "local_addr": "10.0.0.1", "local_port": 40000, "remote_addr": "10.0.0.2",
        "remote_port": 443, "device": "vrf-blue", "inode": 5, "cookie": 9, "uid": 33, "direction": "outbound",
        "owner_role": "holder",
        "owners": [{"pid": 8, "start_ticks": 80, "comm": "nginx", "fd": 3, "netns": BLUE, "container": None}],
        "nat": None, "seen_at": 1_700_000_100.0, "owner_seen_at": 1_700_000_100.0, "stale": False,
    }]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (connection(1, family=Family.INET6, local=(bytes(15) + b"\x01", 1)), "::1"),
        (connection(1, family=Family.INET6, local=(bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 1)), "10.0.0.1"),
        (connection(1, family=Family.INET6, local=(bytes(16), 1)), "::"),
        (connection(1, local=(bytes(4), 1)), "0.0.0.0"),
        (connection(1, family=Family.INET6, local=(bytes.fromhex("200300452b69be00bd1ee38a109d9d91"), 1)),
         "2003:45:2b69:be00:bd1e:e38a:109d:9d91"),
    ],
)  # fmt: skip
def test_addresses_are_numeric_text_with_mapped_ones_as_ipv4(store: Store, row: Any, expected: str) -> None:
    store.apply([snapshot(connections=[row])])

    assert column(store, "connections", "local_addr") == [expected]


@pytest.mark.parametrize(
    ("proto", "state", "expected"),
    [
        (Proto.TCP, State.CLOSE_WAIT, "CLOSE_WAIT"),
        (Proto.TCP, State.NEW_SYN_RECV, "SYN_RECV"),
        (Proto.UDP, State.CLOSE, "UNCONN"),
        (Proto.UDP, State.ESTABLISHED, "ESTABLISHED"),
    ],
)
def test_states_have_the_kernels_names(store: Store, proto: Proto, state: State, expected: str) -> None:
    store.apply([snapshot(connections=[connection(1, proto=proto, state=state)])])

    assert column(store, "connections", "state") == [expected]


def test_row_with_neither_cookie_nor_inode_is_kept_under_its_bytes(store: Store) -> None:
    rows = [connection(b"\x06one", state=State.TIME_WAIT), connection(b"\x06two", state=State.TIME_WAIT)]
    store.apply([snapshot(HOST, 1, connections=rows)])
    store.apply([snapshot(HOST, 2, base=False, gone_connections=[b"\x06one"])])

    (row,) = ask(store, "connections", fields=["cookie", "inode", "state"])
    assert row == {"cookie": None, "inode": 0, "state": "TIME_WAIT"}


def test_same_tuple_in_two_namespaces_is_two_connections(store: Store) -> None:
    store.apply([snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(2)])])

    assert column(store, "connections", "netns") == [HOST, BLUE]


def test_base_replaces_what_is_not_in_it_and_keeps_the_place_of_what_is(store: Store) -> None:
    store.apply([snapshot(HOST, 1, connections=[connection(1), connection(2), connection(3)])])

    store.apply([snapshot(HOST, 2, connections=[connection(4), connection(3), connection(1, uid=5)])])

    assert column(store, "connections", "cookie") == [1, 3, 4]
    assert column(store, "connections", "uid") == [5, 0, 0]


def test_row_that_goes_after_the_base_of_the_same_batch_is_gone(store: Store) -> None:
    store.apply([snapshot(HOST, 1, connections=[connection(1), connection(2)])])

    store.apply(
        [
            snapshot(HOST, 2, connections=[connection(1), connection(2)]),
            snapshot(HOST, 3, base=False, gone_connections=[1]),
        ]
    )

    assert column(store, "connections", "cookie") == [2]


def test_socket_is_joined_to_its_holder_in_another_namespace(store: Store) -> None:
    store.apply([snapshot(BLUE, connections=[connection(1, inode=5)])])
    assert column(store, "connections", "owners") == [[]]

    store.apply([snapshot(HOST, processes=[process(8, "sshd")], holdings=[holding(8, 3, 5)])])

    (row,) = ask(store, "connections", fields=["netns", "owners"])
    assert row["netns"] == BLUE
    assert [(owner["pid"], owner["netns"]) for owner in row["owners"]] == [(8, HOST)]


def test_inode_0_is_nobodys(store: Store) -> None:
    store.apply([snapshot(connections=[connection(1, inode=0)], holdings=[holding(8, 3, 0)])])

    assert column(store, "connections", "owners") == [[]]
    assert column(store, "connections", "pid") == [None]
    assert ask(store, "connections", where={"pid": 8}) == []


def test_owner_follows_the_descriptor_to_the_child_that_keeps_it(store: Store) -> None:
    parent, child = holding(50, 4, 5), holding(60, 4, 5)
    people = [process(50, "inetd"), process(60, "telnetd")]
    store.apply(
        [snapshot(HOST, 1, connections=[connection(1, inode=5)], processes=people, holdings=[parent])]
    )
    assert column(store, "connections", "comm") == ["inetd"]

    store.apply([snapshot(HOST, 2, base=False, holdings=[child])])
    assert column(store, "connections", "comm") == ["telnetd"]

    store.apply([snapshot(HOST, 3, base=False, gone_holdings=[parent])])
    (row,) = ask(store, "connections", fields=["comm", "owners"])
    assert (row["comm"], [owner["pid"] for owner in row["owners"]]) == ("telnetd", [60])


def test_listener_lists_all_its_holders_the_oldest_first(store: Store) -> None:
    people = [process(50, "nginx"), process(60, "nginx"), process(61, "nginx")]
    held = [holding(pid, 6, 5) for pid in (61, 60, 50)]
    store.apply([snapshot(connections=[listener(1, 80, inode=5)], processes=people, holdings=held)])

    (row,) = ask(store, "connections", fields=["pid", "owners"])
    assert row["pid"] == 50
    assert [owner["pid"] for owner in row["owners"]] == [50, 60, 61]


def test_recycled_pid_is_another_owner(store: Store) -> None:
    old, new = process(8, "old", start_ticks=80), process(8, "new", start_ticks=999)
    store.apply([
        snapshot(
            HOST, 1, connections=[connection(1, inode=5), connection(2, inode=6)], processes=[old, new],
            holdings=[holding(8, 3, 5, start_ticks=80), holding(8, 3, 6, start_ticks=999)],
        )
    ])  # fmt: skip

    assert column(store, "connections", "comm") == ["old", "new"]


def test_exec_changes_the_name_of_the_owner(store: Store) -> None:
    store.apply([snapshot(
        HOST, 1, connections=[connection(1, inode=5)], processes=[process(8, "sh")], holdings=[holding(8, 3, 5)]
    )])  # fmt: skip

    store.apply([snapshot(HOST, 2, base=False, processes=[process(8, "curl")])])

    assert column(store, "connections", "comm") == ["curl"]


def test_process_that_moved_is_listed_once_whatever_came_first(store: Store) -> None:
    moved = process(8, "unshare", BLUE)
    store.apply([snapshot(HOST, 1, processes=[process(8, "unshare", HOST)])])

    store.apply([snapshot(BLUE, 1, processes=[moved])])

    assert column(store, "processes", "pid") == [8]


def test_process_that_two_workers_report_is_named_as_its_own_namespace_says(store: Store) -> None:
    thread_in_blue = [process(8, "before-exec", HOST)]
    store.apply([
        snapshot(BLUE, 1, connections=[connection(1, inode=5)], processes=thread_in_blue, holdings=[holding(8, 3, 5)]),
        snapshot(HOST, 1, processes=[process(8, "after-exec", HOST)], holdings=[holding(8, 3, 5)]),
    ])  # fmt: skip

    (row,) = ask(store, "connections", fields=["comm", "owners"])
    assert (row["comm"], [owner["comm"] for owner in row["owners"]]) == ("after-exec", ["after-exec"])
    assert column(store, "connections", "pid", comm="after-exec") == [8]
    assert ask(store, "connections", where={"comm": "before-exec"}) == []

    store.apply([snapshot(HOST, 2)])

    assert column(store, "connections", "comm") == ["before-exec"]


def test_accepted_connection_is_inbound_and_stays_so_without_its_listener(store: Store) -> None:
    accepted = connection(2, local=(b"\x0a\x00\x00\x01", 80), remote=(b"\x0a\x00\x00\x02", 50000))
    store.apply([snapshot(HOST, 1, connections=[listener(1, 80), accepted])])

    changed = accepted._replace(state=State.CLOSE_WAIT)
    store.apply([snapshot(HOST, 2, base=False, connections=[changed], gone_connections=[1])])
    store.apply([snapshot(HOST, 3, connections=[changed])])

    assert column(store, "connections", "direction") == ["inbound"]


def test_listener_that_goes_in_the_same_change_still_counts(store: Store) -> None:
    store.apply([snapshot(HOST, 1, connections=[listener(1, 80)])])

    arrived = connection(2, local=(b"\x0a\x00\x00\x01", 80))
    store.apply([snapshot(HOST, 2, base=False, connections=[arrived], gone_connections=[1])])

    assert column(store, "connections", "direction") == ["inbound"]


def test_listener_in_another_namespace_does_not_count(store: Store) -> None:
    store.apply(
        [
            snapshot(BLUE, connections=[listener(1, 80)]),
            snapshot(HOST, connections=[connection(2, local=(b"\x0a\x00\x00\x01", 80))]),
        ]
    )

    assert column(store, "connections", "direction", netns=HOST) == ["outbound"]


def test_listener_that_comes_later_does_not_turn_a_connection_round(store: Store) -> None:
    mine = connection(2, local=(b"\x0a\x00\x00\x01", 80))
    store.apply([snapshot(HOST, 1, connections=[mine])])

    store.apply([snapshot(HOST, 2, connections=[mine._replace(uid=1), listener(1, 80)])])

    assert column(store, "connections", "direction") == ["outbound", "listen"]


def test_socket_that_begins_to_listen_listens(store: Store) -> None:
    bound = listener(1, 80)._replace(state=State.CLOSE)
    store.apply([snapshot(HOST, 1, connections=[bound])])
    assert column(store, "connections", "direction") == ["unknown"]

    store.apply([snapshot(HOST, 2, base=False, connections=[bound._replace(state=State.LISTEN)])])

    assert column(store, "connections", "direction") == ["listen"]


def test_owner_was_seen_when_the_holders_worker_last_walked(store: Store) -> None:
    store.apply(
        [
            snapshot(BLUE, taken_at_s=100.0, connections=[connection(1, inode=5)]),
            snapshot(HOST, 1, taken_at_s=90.0, walked_at_s=85.0, holdings=[holding(8, 3, 5)]),
        ]
    )
    assert column(store, "connections", "owner_seen_at") == [1_700_000_090.0]

    store.apply([snapshot(HOST, 2, base=False, taken_at_s=97.0, walked_at_s=96.0)])

    assert column(store, "connections", "owner_seen_at") == [1_700_000_096.0]


def _with(row: Any, **values: Any) -> Any:
    return row._replace(**values)


@pytest.mark.parametrize(
    "broken",
    [
        {"connections": [_with(connection(1), local_addr=b"\x01\x02\x03")]},
        {"connections": [_with(connection(1), local_addr="10.0.0.1")]},
        {"connections": [_with(connection(1), uid=[1])]},
        {"connections": [_with(connection(1), cookie=2**64 - 1)]},
        {"connections": [(1, 2, 3)]},
        {"connections": [([], *connection(1)[1:])]},
        {"processes": [_with(process(8, "sh"), pid={})]},
        {"holdings": [_with(holding(8, 3, 5), fd=b"x", inode="y")]},
    ],
)
def test_snapshot_that_cannot_be_stored_is_refused_and_changes_nothing(store: Store, broken: Any) -> None:
    store.apply([snapshot(HOST, 1, connections=[connection(1)])])
    before = ask(store, "connections")

    with pytest.raises(Malformed, match="cannot be stored"):
        store.apply(
            [snapshot(BLUE, connections=[connection(3)]), dataclasses.replace(snapshot(HOST, 2), **broken)]
        )

    assert ask(store, "connections") == before
    assert store.apply([snapshot(BLUE, connections=[connection(3)])]).seq == 2
