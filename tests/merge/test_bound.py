"""Which bound UDP socket gets what a connected one sends."""

from __future__ import annotations

import pytest

from pipeline.merge.bound import Bound, receiver
from pipeline.merge.ends import NO_PEER, Peer
from pipeline.model.address import mapped

HERE, THERE, ELSEWHERE = 1, 2, 3
ADDRESS = mapped(b"\x0a\x00\x00\x02")
V4_ANY, V6_ANY = mapped(bytes(4)), bytes(16)
SEVERAL = Peer(None, True)


def test_socket_that_is_bound_to_the_address_gets_it_also_in_another_namespace() -> None:
    assert receiver(ADDRESS, HERE, [], [Bound(7, THERE, ADDRESS)]) == Peer(7, False)


def test_wildcard_gets_it_only_where_the_address_is_known_to_be() -> None:
    assert receiver(ADDRESS, HERE, [], [Bound(7, THERE, V4_ANY)]) == NO_PEER
    assert receiver(ADDRESS, HERE, [THERE], [Bound(7, THERE, V4_ANY), Bound(8, HERE, V4_ANY)]) == Peer(
        7, False
    )


def test_own_namespace_comes_first_and_of_several_others_none() -> None:
    bound = [Bound(7, THERE, ADDRESS), Bound(8, HERE, V6_ANY)]
    assert receiver(ADDRESS, HERE, [HERE], bound) == Peer(8, False)
    assert receiver(ADDRESS, HERE, [ELSEWHERE], bound) == SEVERAL
    assert receiver(ADDRESS, HERE, [THERE, ELSEWHERE], [Bound(7, THERE, V4_ANY)]) == SEVERAL


@pytest.mark.parametrize(
    ("local_ips", "expected"),
    [
        ([V6_ANY, V4_ANY, ADDRESS], Peer(3, False)),
        ([V6_ANY, V4_ANY], Peer(2, False)),
        ([V6_ANY], Peer(1, False)),
        ([V4_ANY, V4_ANY], SEVERAL),
        ([mapped(b"\x0a\x00\x00\x03")], NO_PEER),
    ],
)
def test_the_most_exact_address_wins_and_two_alike_do_not(local_ips: list[bytes], expected: Peer) -> None:
    bound = [Bound(at, THERE, local_ip) for at, local_ip in enumerate(local_ips, 1)]
    assert receiver(ADDRESS, HERE, [THERE], bound) == expected


def test_ipv4_wildcard_gets_no_ipv6() -> None:
    assert receiver(b"\xfd" + bytes(15), HERE, [THERE], [Bound(7, THERE, V4_ANY)]) == NO_PEER
