"""Graphs of sockets (1, 2, ...) and flows (-1, -2, ...): which sockets are two ends of one connection."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.merge.ends import pair
from pipeline.merge.nat import ALONE, AMBIGUOUS, CLIENT, MAX_FLOWS, SERVER, Joined, resolve

A, B, ROUTER, ANOTHER = 1, 2, 3, 4


def test_flow_joins_the_client_to_the_server_and_says_which_is_which() -> None:
    assert resolve({1: {-1}, -1: {2}}, {1: A, 2: B, -1: ROUTER}) == {
        1: Joined(2, False, CLIENT, -1, -1),
        2: Joined(1, False, SERVER, -1, -1),
    }


def test_two_routers_in_a_row_are_one_chain_from_the_first_to_the_last() -> None:
    assert resolve({1: {-1}, -1: {-2}, -2: {2}}, {1: A, 2: B, -1: ROUTER, -2: ANOTHER}) == {
        1: Joined(2, False, CLIENT, -1, -2),
        2: Joined(1, False, SERVER, -1, -2),
    }


def test_end_outside_has_no_peer_but_its_side() -> None:
    assert resolve({1: {-1}, -1: set()}, {1: A, -1: ROUTER}) == {1: Joined(None, False, CLIENT, -1, -1)}
    assert resolve({-1: {2}}, {2: A, -1: ROUTER}) == {2: Joined(None, False, SERVER, -1, -1)}


def test_client_and_server_of_a_hairpin_are_in_one_namespace() -> None:
    assert resolve({1: {-1}, -1: {2}}, {1: A, 2: A, -1: ROUTER})[1] == Joined(2, False, CLIENT, -1, -1)


@pytest.mark.parametrize(
    "receivers",
    [
        {1: {-1}, 2: {-1}, -1: {3}},  # two clients
        {1: {-1}, -1: {2, 3}},  # two servers
        {1: {-1, -2}, -1: {3}, -2: {3}},  # two routers
        {1: {-1}, -1: {-2, 3}, -2: {2}},  # a server, or another router before one
        {1: {-1, 2}, 2: {1}, -1: {3}},  # the server that it names, or the one behind the router
    ],
)
def test_wherever_two_could_be_it_nobody_is_named(receivers: Mapping[int, set[int]]) -> None:
    netns_of = {1: 11, 2: 12, 3: 13, -1: ROUTER, -2: ANOTHER}
    named = {*receivers, *(node for nodes in receivers.values() for node in nodes)}

    joined = resolve(receivers, {node: netns_of[node] for node in named})

    assert [joined[row].peer for row in joined] == [None] * len(joined)
    assert joined[1] == AMBIGUOUS


def test_translation_in_the_own_namespace_of_the_client_comes_before_any_other() -> None:
    joined = resolve({1: {-1, -2}, -1: {2}, -2: {3}}, {1: A, 2: B, 3: ANOTHER, -1: A, -2: ROUTER})
    assert joined[1] == Joined(2, False, CLIENT, -1, -1)
    assert joined[3] == Joined(None, False, SERVER, -2, -2)


def test_redirection_in_the_own_namespace_of_the_server_comes_before_any_other() -> None:
    joined = resolve({1: {-1}, -1: {2, 3}}, {1: A, 2: B, 3: ROUTER, -1: ROUTER})
    assert (joined[1].peer, joined[2], joined[3].peer) == (3, ALONE, 1)


def test_flows_in_a_circle_end_nowhere() -> None:
    assert resolve({1: {-1}, -1: {-2}, -2: {-1}}, {1: A, -1: ROUTER, -2: ANOTHER}) == {1: AMBIGUOUS}


@pytest.mark.parametrize(("length", "found"), [(MAX_FLOWS, True), (MAX_FLOWS + 1, False)])
def test_chain_of_flows_has_a_limit(length: int, found: bool) -> None:
    receivers = {-at: {-at - 1} for at in range(1, length)} | {1: {-1}, -length: {2}}
    netns_of = {-at: 10 + at for at in range(1, length + 1)} | {1: A, 2: B}
    assert resolve(receivers, netns_of)[1] == (Joined(2, False, CLIENT, -1, -length) if found else AMBIGUOUS)


def test_row_that_is_a_client_by_one_flow_and_a_server_by_another_is_neither() -> None:
    joined = resolve({-1: {1}, 1: {-2}, -2: {2}}, {1: A, 2: B, -1: ROUTER, -2: ANOTHER})
    assert joined == {1: AMBIGUOUS, 2: AMBIGUOUS}


@given(st.dictionaries(st.integers(1, 6), st.sampled_from([A, B, ROUTER]), min_size=1), st.data())
def test_without_flows_it_is_the_pairing_of_rows(netns_of: dict[int, int], data: st.DataObject) -> None:
    rows = sorted(netns_of)
    ways = {row: data.draw(st.integers(0, 2)) for row in rows}
    # Rows that mirror each other: those of kinds 1 and 2, each with all of the other kind.
    mirrors = {row: {other for other in rows if ways[row] and ways[other] == 3 - ways[row]} for row in rows}

    joined = resolve(mirrors, netns_of)

    assert {row: (one.peer, one.ambiguous) for row, one in joined.items()} == pair(mirrors, netns_of)


@given(st.data())
def test_peers_name_each_other_and_agree_on_the_way(data: st.DataObject) -> None:
    nodes = [*range(1, 5), *range(-4, 0)]
    netns_of = {node: data.draw(st.integers(1, 3)) for node in nodes}
    receivers = {
        node: data.draw(
            st.sets(st.sampled_from([other for other in nodes if other < 0 or node < 0]), max_size=2)
        )
        for node in nodes
    }

    joined = resolve(receivers, netns_of)

    for row, one in joined.items():
        if one.peer is not None:
            other = joined[one.peer]
            assert other.peer == row and {one.side, other.side} == {CLIENT, SERVER}
            assert (one.first, one.last) == (other.first, other.last)
        assert not (one.ambiguous and (one.peer or one.first))
