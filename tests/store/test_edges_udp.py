"""Edges of UDP: a server is often bound and connected to none."""

from __future__ import annotations

from tests.sample_state import BLUE, HOST, holding, process, snapshot
from tests.store.asking import ask
from tests.store.edge_rows import CLIENT, LOOPBACK, SERVER, ends, new_store, udp_client, udp_server


def test_bound_udp_socket_is_the_server_of_all_that_are_connected_to_it() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, connections=[udp_client(1), udp_client(2, 40001)], holdings=[holding(8, 3, 1), holding(8, 4, 2)],
                 processes=[process(8, "resolver")]),
        snapshot(BLUE, connections=[udp_server(3)], holdings=[holding(9, 3, 3)], processes=[process(9, "dns", BLUE)]),
    ])  # fmt: skip
    together = [ends(row) for row in ask(store, "edges")]
    gone = store.apply([snapshot(BLUE, 2, base=False, gone_connections=[3])])
    alone = [ends(row) for row in ask(store, "edges")]
    back = store.apply([snapshot(BLUE, 3, base=False, connections=[udp_server(3)])])

    assert together == [(HOST, 8, BLUE, 9, 2)]
    assert alone == [(HOST, 8, None, None, 2)]
    assert [ends(row) for row in ask(store, "edges")] == together
    assert gone.edges and back.edges


def test_wildcard_udp_server_gets_what_its_own_namespace_sends_to_itself() -> None:
    store = new_store()
    rows = [udp_server(1, bytes(4)), udp_client(2, local=SERVER), udp_client(3, 40001, LOOPBACK, LOOPBACK)]
    store.apply([snapshot(HOST, connections=rows), snapshot(BLUE, connections=[udp_server(4, bytes(4))])])

    assert sorted(ends(row) for row in ask(store, "edges")) == [(HOST, None, HOST, None, 1)] * 2


def test_wildcard_udp_server_is_not_taken_for_one_outside() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, connections=[udp_client(1)]), snapshot(BLUE, connections=[udp_server(4, bytes(4))])
    ])  # fmt: skip

    assert [ends(row) for row in ask(store, "edges")] == [(HOST, None, None, None, 1)]


def test_udp_server_that_connects_a_socket_to_its_client_stays_the_server() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, connections=[udp_server(1, CLIENT, 40000)]),
        snapshot(BLUE, connections=[udp_client(2, 53, SERVER, CLIENT, 40000)]),
    ])  # fmt: skip

    assert [ends(row) for row in ask(store, "edges")] == [(HOST, None, BLUE, None, 1)]


def test_owner_of_a_bound_udp_server_is_a_change_of_its_edges() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[udp_client(1)]), snapshot(BLUE, connections=[udp_server(3)])])
    commit = store.apply([snapshot(BLUE, 2, base=False, holdings=[holding(9, 3, 3)])])

    assert commit.edges
    assert [ends(row) for row in ask(store, "edges")] == [(HOST, None, BLUE, 9, 1)]


def test_wildcard_udp_server_is_found_by_the_address_of_its_namespace() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[udp_client(1)])])
    store.apply([snapshot(BLUE, connections=[udp_server(4, bytes(4))], addresses=[SERVER, LOOPBACK])])
    found = [ends(row) for row in ask(store, "edges")]
    twice = store.apply([snapshot(3, addresses=[SERVER])])
    several = [row["ambiguous"] for row in ask(store, "edges")]
    store.apply([snapshot(3, 2, base=False, addresses=[CLIENT])])
    again = [ends(row) for row in ask(store, "edges")]
    moved = store.apply([snapshot(BLUE, 2, base=False, addresses=[])])

    assert found == again == [(HOST, None, BLUE, None, 1)]
    assert several == [True]
    assert [ends(row) for row in ask(store, "edges")] == [(HOST, None, None, None, 1)]
    assert twice.edges and moved.edges


def test_addresses_stay_until_they_are_told_anew_and_go_with_their_namespace() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[udp_client(1)]), snapshot(BLUE, addresses=[SERVER])])
    store.apply([snapshot(BLUE, 2, base=False, connections=[udp_server(4, bytes(16))])])
    found = [ends(row) for row in ask(store, "edges")]
    store.apply([snapshot(BLUE, 3, connections=[udp_server(4, bytes(16))])])

    assert found == [(HOST, None, BLUE, None, 1)]
    assert [ends(row) for row in ask(store, "edges")] == [(HOST, None, None, None, 1)]
