"""Connections and edges through translated flows: what the store says once it knows sockets and flows."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import Malformed
from pipeline.model.connection import Connection, Proto, State
from pipeline.model.flow import Flow
from pipeline.store import Store
from tests.sample_flows import End, flow, flows
from tests.sample_state import connection, holding, listener, process, roster_row, snapshot
from tests.store.asking import ask

CLIENTS, ROUTER, SERVERS, SECOND = 11, 12, 13, 14


def at(text: str) -> End:
    """An address and port as written."""
    host, _, port = text.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host.strip("[]")), int(port)


def named(source: str, target: str) -> dict[str, Any]:
    (src, sport), (dst, dport) = source.rsplit(":", 1), target.rsplit(":", 1)
    return {"src": src.strip("[]"), "sport": int(sport), "dst": dst.strip("[]"), "dport": int(dport)}


def row(key: int, local: str, remote: str, **more: Any) -> Connection:
    family = 10 if local.startswith("[") else 2
    return connection(key, local=at(local), remote=at(remote), family=family, **more)


def nat(key: bytes, before: tuple[str, str], after: tuple[str, str], proto: int = Proto.TCP) -> Flow:
    return flow(key, (at(before[0]), at(before[1])), (at(after[0]), at(after[1])), proto)


def client(store: Store, local: str, remote: str, netns: int = CLIENTS, **more: Any) -> None:
    store.apply([snapshot(netns, connections=[row(1, local, remote, **more)],
                          processes=[process(8, "curl", netns)], holdings=[holding(8, 3, 1)])])  # fmt: skip


def server(store: Store, local: str, remote: str, netns: int = SERVERS, **more: Any) -> None:
    port = at(local)[1]
    store.apply([snapshot(netns, connections=[row(2, local, remote, **more), listener(3, port)],
                          processes=[process(9, "nginx", netns)],
                          holdings=[holding(9, 5, 2), holding(9, 4, 3)])])  # fmt: skip


def ends(store: Store) -> list[tuple[Any, ...]]:
    """(client pid, address, server pid, address, ambiguous) of each edge."""
    return sorted(
        (
            (edge["client"]["pid"], f"{edge['client']['addr']}:{edge['client']['port']}",
             edge["server"]["pid"], f"{edge['server']['addr']}:{edge['server']['port']}", edge["ambiguous"])
            for edge in ask(store, "edges")
        ),
        key=repr,
    )  # fmt: skip


def test_server_behind_a_translated_address_is_the_end_that_the_client_talks_to(store: Store) -> None:
    # A vector of the seed: 1.2.3.4:80 is 10.0.47.1:80.
    client(store, "2.3.4.5:22222", "1.2.3.4:80")
    server(store, "10.0.47.1:80", "2.3.4.5:22222")
    store.apply_flows(
        [flows(ROUTER, 1, nat(b"f", ("2.3.4.5:22222", "1.2.3.4:80"), ("2.3.4.5:22222", "10.0.47.1:80")))]
    )

    (edge,) = ask(store, "edges")

    assert ends(store) == [(8, "2.3.4.5:22222", 9, "10.0.47.1:80", False)]
    assert edge["nat"] == {
        "original": {"src": "2.3.4.5", "sport": 22222, "dst": "1.2.3.4", "dport": 80},
        "translated": {"src": "2.3.4.5", "sport": 22222, "dst": "10.0.47.1", "dport": 80},
    }
    assert [one["nat"] for one in ask(store, "connections", where={"established": True})] == [edge["nat"]] * 2


def test_client_behind_a_translated_address_is_the_end_that_the_server_talks_to(store: Store) -> None:
    # A vector of the seed: 10.0.47.2:22222 appears outside as 2.3.4.5:22223.
    client(store, "10.0.47.2:22222", "1.2.3.4:80")
    server(store, "1.2.3.4:80", "2.3.4.5:22223")
    store.apply_flows(
        [flows(ROUTER, 1, nat(b"f", ("10.0.47.2:22222", "1.2.3.4:80"), ("2.3.4.5:22223", "1.2.3.4:80")))]
    )

    assert ends(store) == [(8, "10.0.47.2:22222", 9, "1.2.3.4:80", False)]


BOTH = (("10.0.0.1:4001", "10.9.9.9:80"), ("10.1.0.1:6001", "10.1.0.2:8080"))


@pytest.mark.parametrize(
    ("before", "after"),
    [BOTH, (("[fd00::1]:4001", "[fd00::9]:80"), ("[fd01::1]:6001", "[fd01::2]:8080"))],
)
@pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
def test_both_addresses_translated_at_once(
    store: Store, before: tuple[str, str], after: tuple[str, str], proto: int
) -> None:
    client(store, *before, proto=proto)
    server(store, after[1], after[0], proto=proto)
    apart = [edge[:4] for edge in ends(store)]
    store.apply_flows([flows(ROUTER, 1, nat(b"f", before, after, proto))])

    (edge,) = ask(store, "edges")

    assert all(None in pair for pair in apart) and len(apart) == 2
    assert (edge["client"]["pid"], edge["server"]["pid"]) == (8, 9)
    assert edge["nat"] == {"original": named(*before), "translated": named(*after)}


def test_chain_of_two_routers_shows_the_first_and_the_last_tuple(store: Store) -> None:
    middle = ("10.5.0.1:5001", "10.5.0.2:8000")
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply_flows([flows(SECOND, 1, nat(b"g", middle, BOTH[1]))])
    half = ends(store)
    store.apply_flows([flows(ROUTER, 1, nat(b"f", BOTH[0], middle))])

    (edge,) = ask(store, "edges")

    assert half == [
        (8, "10.0.0.1:4001", None, "10.9.9.9:80", False),
        (None, "10.5.0.1:5001", 9, "10.1.0.2:8080", False),
    ]
    assert ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]
    assert edge["nat"] == {"original": named(*BOTH[0]), "translated": named(*BOTH[1])}


@pytest.mark.parametrize("router", [ROUTER, SECOND])
def test_chain_falls_apart_with_either_of_its_flows_and_comes_together_again(
    store: Store, router: int
) -> None:
    middle = ("10.5.0.1:5001", "10.5.0.2:8000")
    links = {ROUTER: nat(b"f", BOTH[0], middle), SECOND: nat(b"f", middle, BOTH[1])}
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply_flows([flows(netns, 1, link) for netns, link in links.items()])
    whole = ends(store)
    store.apply_flows([flows(router, 2, base=False, gone=[b"f"])])
    apart = ends(store)
    store.apply_flows([flows(router, 3, links[router], base=False)])

    assert whole == ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]
    assert [(edge[0], edge[2]) for edge in apart] == [(8, None), (None, 9)]


def test_one_of_two_possible_clients_or_servers_goes_and_the_other_is_it(store: Store) -> None:
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH))])
    store.apply([snapshot(21, connections=[row(7, *BOTH[0])])])
    two_clients = [edge[4] for edge in ends(store)]
    store.apply([snapshot(21, 2)])
    one_client = ends(store)
    store.apply([snapshot(23, connections=[row(8, *reversed(BOTH[1]))])])
    two_servers = [edge[4] for edge in ends(store)]
    store.apply([snapshot(23, 2)])

    assert two_clients == two_servers == [True] * 3
    assert one_client == ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]


def test_translation_in_the_namespace_of_the_client_itself(store: Store) -> None:
    client(store, "10.0.0.1:4001", "10.96.0.10:443")
    server(store, "10.1.0.2:8443", "10.0.0.1:4001")
    store.apply_flows(
        [
            flows(
                CLIENTS, 1, nat(b"f", ("10.0.0.1:4001", "10.96.0.10:443"), ("10.0.0.1:4001", "10.1.0.2:8443"))
            )
        ]
    )

    assert ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8443", False)]


def test_redirection_to_a_local_port_and_a_hairpin(store: Store) -> None:
    store.apply([snapshot(CLIENTS, connections=[
        row(1, "10.0.0.1:4001", "8.8.8.8:80"), row(2, "127.0.0.1:3128", "10.0.0.1:4001"), listener(3, 3128),
        row(4, "10.0.0.1:4002", "10.9.9.9:81"), row(5, "10.0.0.1:9000", "10.0.0.254:4002"), listener(6, 9000),
    ], holdings=[holding(pid, 3, key) for pid, key in ((21, 1), (22, 2), (24, 4), (25, 5))])])  # fmt: skip
    store.apply_flows(
        [
            flows(
                CLIENTS, 1, nat(b"f", ("10.0.0.1:4001", "8.8.8.8:80"), ("10.0.0.1:4001", "127.0.0.1:3128"))
            ),
            flows(
                ROUTER, 1, nat(b"g", ("10.0.0.1:4002", "10.9.9.9:81"), ("10.0.0.254:4002", "10.0.0.1:9000"))
            ),
        ]
    )

    assert ends(store) == [
        (21, "10.0.0.1:4001", 22, "127.0.0.1:3128", False),
        (24, "10.0.0.1:4002", 25, "10.0.0.1:9000", False),
    ]


def test_loopback_address_behind_a_flow_is_that_of_its_namespace(store: Store) -> None:
    client(store, "10.0.0.1:4001", "8.8.8.8:80")
    server(store, "127.0.0.1:3128", "10.0.0.1:4001")
    store.apply_flows(
        [flows(ROUTER, 1, nat(b"f", ("10.0.0.1:4001", "8.8.8.8:80"), ("10.0.0.1:4001", "127.0.0.1:3128")))]
    )

    assert (8, "10.0.0.1:4001", None, "127.0.0.1:3128", False) in ends(store)


def test_ends_outside_have_the_address_that_is_really_theirs(store: Store) -> None:
    client(store, "10.0.0.1:4001", "10.96.0.10:443")
    store.apply_flows(
        [
            flows(
                CLIENTS,
                1,
                nat(b"f", ("10.0.0.1:4001", "10.96.0.10:443"), ("10.0.0.1:4001", "192.0.2.5:8443")),
            )
        ]
    )
    out = ends(store)
    store.apply([snapshot(CLIENTS, 2)])
    server(store, "10.1.0.2:8080", "10.1.0.1:6001")
    store.apply_flows(
        [
            flows(
                ROUTER,
                1,
                nat(b"g", ("203.0.113.7:50000", "192.0.2.1:80"), ("10.1.0.1:6001", "10.1.0.2:8080")),
            )
        ]
    )

    assert out == [(8, "10.0.0.1:4001", None, "192.0.2.5:8443", False)]
    assert ends(store) == [(None, "203.0.113.7:50000", 9, "10.1.0.2:8080", False)]


def test_two_pairs_with_the_same_addresses_are_ambiguous_until_one_goes(store: Store) -> None:
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply(
        [snapshot(21, connections=[row(7, *BOTH[0])]), snapshot(23, connections=[row(8, *reversed(BOTH[1]))])]
    )
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH)), flows(22, 1, nat(b"f", *BOTH))])
    several = ask(store, "edges")

    store.apply([snapshot(21, 2), snapshot(23, 2)])
    store.apply_flows([flows(22, 2)])

    assert [(edge["ambiguous"], edge["nat"]) for edge in several] == [(True, None)] * 4
    assert all(None in (edge["client"]["netns"], edge["server"]["netns"]) for edge in several)
    assert ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]


def test_flow_that_goes_takes_along_what_it_joined(store: Store) -> None:
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    before = ends(store)
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH))])
    gone = store.apply_flows([flows(ROUTER, 2, base=False, gone=[b"f"])])

    assert ends(store) == before
    assert [one["nat"] for one in ask(store, "connections", where={"established": True})] == [None, None]
    assert (gone.touched, gone.edges) == ((CLIENTS, SERVERS), True)


def test_flow_that_concerns_no_connection_is_no_change_of_any(store: Store) -> None:
    client(store, "10.0.0.1:4002", "10.0.0.7:80")
    commit = store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH))])
    assert (commit.touched, commit.edges) == ((), False)


def test_rows_and_flows_come_in_any_order(store: Store) -> None:
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH))])
    server(store, BOTH[1][1], BOTH[1][0])
    client(store, *BOTH[0])

    assert ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]


def test_entry_that_translates_nothing_joins_nothing(store: Store) -> None:
    client(store, *BOTH[0])
    store.apply_flows([flows(ROUTER, 1, nat(b"f", BOTH[0], BOTH[0]))])

    assert ask(store, "connections", fields=["nat"]) == [{"nat": None}]


def test_flows_of_a_namespace_that_had_the_inode_before_join_nothing(store: Store) -> None:
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH), cookie=70)])
    joined = len(ends(store))
    store.apply([snapshot(ROUTER, cookie=71)])
    apart = len(ends(store))
    store.apply_flows([flows(ROUTER, 2, nat(b"f", *BOTH), cookie=71)])

    assert (joined, apart, len(ends(store))) == (1, 2, 1)


def test_flows_go_with_their_namespace(store: Store, clock: ManualClock) -> None:
    client(store, *BOTH[0])
    server(store, BOTH[1][1], BOTH[1][0])
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH)), flows(99, 1, nat(b"f", *BOTH))])
    listed = [roster_row(CLIENTS), roster_row(SERVERS)]
    store.apply([snapshot(ROUTER)], [*listed, roster_row(ROUTER)])
    removed = store.apply([], listed).removed
    still = len(ends(store))
    # Nobody but conntrack ever told of the other one.
    clock.advance(16.0)
    orphans = store.tick().removed

    assert (removed, still, orphans, len(ends(store))) == ((ROUTER,), 1, (99,), 2)


def test_bound_udp_server_is_found_behind_the_translation(store: Store) -> None:
    client(store, *BOTH[0], proto=Proto.UDP)
    bound = row(2, "10.1.0.2:8080", "0.0.0.0:0", state=State.CLOSE, proto=Proto.UDP)
    store.apply([snapshot(SERVERS, connections=[bound], processes=[process(9, "dns", SERVERS)],
                          holdings=[holding(9, 5, 2)])])  # fmt: skip
    store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH, Proto.UDP))])
    found = ends(store)
    store.apply([snapshot(SERVERS, 2, base=False, gone_connections=[2])])

    alone = ends(store)
    store.apply([snapshot(SERVERS, 3, base=False, connections=[bound])])

    assert found == ends(store) == [(8, "10.0.0.1:4001", 9, "10.1.0.2:8080", False)]
    assert alone == [(8, "10.0.0.1:4001", None, "10.1.0.2:8080", False)]


def test_delta_says_that_a_connection_is_translated_now(store: Store) -> None:
    client(store, *BOTH[0])
    commit = store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH))])
    changed = store.delta(CLIENTS, commit.seq)
    gone = store.apply([snapshot(CLIENTS, 2)])
    removed = store.delta(CLIENTS, gone.seq)

    place = changed.columns.index("nat")
    wanted = {"original": named(*BOTH[0]), "translated": named(*BOTH[1])}
    assert [one[place] for one in changed.changed] == [wanted]
    assert [one[place] for one in removed.removed] == [wanted]


@pytest.mark.parametrize("broken", [b"", b"123", "text", None])
def test_flows_that_cannot_be_stored_change_nothing(store: Store, broken: Any) -> None:
    with pytest.raises(Malformed):
        store.apply_flows([flows(ROUTER, 1, nat(b"f", *BOTH)._replace(reply_src=broken))])
    assert store.seq == 0
