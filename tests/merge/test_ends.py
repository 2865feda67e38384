"""Which rows are two ends of one connection."""

from __future__ import annotations

from pipeline.merge.ends import NO_PEER, Peer, pair


def test_two_rows_that_mirror_each_other_are_peers() -> None:
    assert pair({1: {2}, 2: {1}}, {1: 10, 2: 20}) == {1: Peer(2, False), 2: Peer(1, False)}


def test_row_without_a_mirror_has_no_peer() -> None:
    assert pair({1: set()}, {1: 10}) == {1: NO_PEER}


def test_two_clients_of_one_server_are_ambiguous_all_three() -> None:
    peers = pair({1: {3}, 2: {3}, 3: {1, 2}}, {1: 10, 2: 20, 3: 30})

    assert set(peers.values()) == {Peer(None, True)}


def test_mirror_in_the_same_namespace_is_the_peer_and_nobody_elses() -> None:
    peers = pair({1: {3}, 2: {3}, 3: {1, 2}}, {1: 10, 2: 20, 3: 10})

    assert peers == {1: Peer(3, False), 2: NO_PEER, 3: Peer(1, False)}


def test_socket_connected_to_itself_is_its_own_peer() -> None:
    assert pair({1: {1}}, {1: 10}) == {1: Peer(1, False)}
