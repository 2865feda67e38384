"""The contract's views, and that look-ups go by an index."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.store import Store
from pipeline.store.filters import compile_filters
from pipeline.store.schema import CONNECTIONS
from tests.sample_state import BLUE, HOST, connection, holding, process, snapshot


def _rows(store: Store, sql: str, params: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    reader = store.reader()
    with reader.moment():
        return reader.rows(sql, params)


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        ("connections", "netns netns_cookie netns_name proto family state local_addr local_port remote_addr remote_port"
         " device inode cookie uid direction owner_role pid comm container nat seen_at owner_seen_at stale key"
         " bytes_sent bytes_received rtt_us retransmits"),
        ("owners", "netns cookie inode pid start_ticks comm fd owner_netns container"),
        ("processes", "pid start_ticks comm uid netns container connections sockets bytes_sent bytes_received"
         " retransmits"),
        ("namespaces", "netns netns_cookie name names processes connections worker_pid state source generation seen_at"
         " age_s stale partial denied"),
        ("edges", "client_netns client_pid client_start_ticks client_comm client_container client_addr client_port"
         " server_netns server_pid server_start_ticks server_comm server_container server_addr server_port proto"
         " connections ambiguous nat first_seen last_seen"),
    ],
)  # fmt: skip
def test_views_have_the_columns_of_the_contract(store: Store, view: str, columns: str) -> None:
    found = _rows(store, f"SELECT name FROM pragma_table_info('{view}')")

    assert [name for (name,) in found] == columns.split()


def test_view_of_owners_has_a_row_per_holder_and_descriptor(store: Store) -> None:
    store.apply(
        [
            snapshot(BLUE, connections=[connection(1, inode=5)]),
            snapshot(HOST, processes=[process(8, "sshd")], holdings=[holding(8, 3, 5), holding(8, 4, 5)]),
        ]
    )

    found = _rows(store, "SELECT netns, inode, pid, comm, fd, owner_netns FROM owners ORDER BY fd")

    assert found == [(BLUE, 5, 8, "sshd", 3, HOST), (BLUE, 5, 8, "sshd", 4, HOST)]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ({"inode": 5}, "connection_inode (inode=?)"),
        ({"cookie": 5}, "connection_cookie (cookie=?)"),
        ({"local_port": 80}, "connection_local_port (local_port=?)"),
        ({"remote_port": 80}, "connection_remote_port (remote_port=?)"),
        ({"remote": "10.0.0.1"}, "connection_remote_ip (remote_ip=?)"),
        ({"remote": "10.0.0.0/24"}, "connection_remote_ip (remote_ip>? AND remote_ip<?)"),
        ({"netns": HOST}, "connection_key (netns=?)"),
        ({"netns": HOST, "local_port": 80}, "connection_local_port (local_port=?)"),
        ({"netns": HOST, "inode": 5, "state": "LISTEN"}, "connection_inode (inode=?)"),
        ({"pid": 8}, "connection_inode (inode=?)"),
        ({"comm": "nginx"}, "connection_inode (inode=?)"),
    ],
)
def test_narrow_filters_go_by_an_index(store: Store, where: dict[str, Any], index: str) -> None:
    condition = compile_filters(where)
    sql = f"SELECT c.id FROM {CONNECTIONS.source} WHERE {condition.sql} ORDER BY c.id"

    plan = [step[3] for step in _rows(store, f"EXPLAIN QUERY PLAN {sql}", condition.params)]

    assert any(step.startswith("SEARCH c ") and step.endswith(index) for step in plan), plan


def test_port_on_either_side_goes_by_both_indexes(store: Store) -> None:
    condition = compile_filters({"port": 80})

    plan = [step[3] for step in _rows(
        store, f"EXPLAIN QUERY PLAN SELECT c.id FROM connection c WHERE {condition.sql}", condition.params
    )]  # fmt: skip

    assert "MULTI-INDEX OR" in plan
    assert not any(step.startswith("SCAN c") for step in plan)
