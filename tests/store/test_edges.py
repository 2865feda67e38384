"""Edges: both ends of each connection of this host joined, against a plain Python oracle."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.model.connection import Connection, Proto, State
from pipeline.model.snapshot import Snapshot
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, snapshot
from tests.store.asking import ask

CLIENT, SERVER = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
LOOPBACK = b"\x7f\x00\x00\x01"
LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\x01"


def new_store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def client_row(key: int, port: int = 40000, **more: Any) -> Connection:
    return connection(key, local=(CLIENT, port), remote=(SERVER, 443), **more)


def server_row(key: int, port: int = 40000, **more: Any) -> Connection:
    return connection(key, local=(SERVER, 443), remote=(CLIENT, port), **more)


def ends(row: dict[str, Any]) -> tuple[Any, ...]:
    """The edge in short: (netns, pid) of the client and of the server, count."""
    client, server = row["client"], row["server"]
    return client["netns"], client["pid"], server["netns"], server["pid"], row["connections"]


def test_both_ends_on_this_host_become_one_edge_with_both_processes() -> None:
    store = new_store()
    store.apply([
        snapshot(HOST, taken_at_s=90.0, connections=[client_row(1)], processes=[process(8, "curl")],
                 holdings=[holding(8, 3, 1)]),
        snapshot(BLUE, taken_at_s=95.0, connections=[server_row(2), listener(3, 443)],
                 processes=[process(9, "nginx", BLUE)], holdings=[holding(9, 5, 2), holding(9, 4, 3)]),
    ])  # fmt: skip

    assert ask(store, "edges") == [{
        "client": {"netns": HOST, "pid": 8, "start_ticks": 80, "comm": "curl", "container": None, "addr": "10.0.0.1",
                   "port": 40000},
        "server": {"netns": BLUE, "pid": 9, "start_ticks": 90, "comm": "nginx", "container": None, "addr": "10.0.0.2",
                   "port": 443},
        "proto": "tcp", "connections": 1, "ambiguous": False, "nat": None,
        "first_seen": 1_700_000_090.0, "last_seen": 1_700_000_095.0,
    }]  # fmt: skip


def test_connections_of_the_same_processes_are_counted_and_show_no_client_port() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[client_row(key, 40000 + key, inode=5) for key in (1, 2, 3)])])

    (edge,) = ask(store, "edges")

    assert (edge["connections"], edge["client"]["port"], edge["server"]["port"]) == (3, None, 443)


def test_end_outside_has_an_address_and_nothing_else() -> None:
    store = new_store()
    store.apply([snapshot(HOST, connections=[server_row(1), listener(2, 443)])])

    (edge,) = ask(store, "edges")

    assert edge["client"] == {
        "netns": None, "pid": None, "start_ticks": None, "comm": None, "container": None, "addr": "10.0.0.1",
        "port": 40000,
    }  # fmt: skip
    assert edge["server"]["netns"] == HOST


def test_loopback_addresses_meet_within_their_namespace_only() -> None:
    store = new_store()
    there = connection(1, local=(LOOPBACK, 40000), remote=(LOOPBACK, 80))
    back = connection(2, local=(LOOPBACK, 80), remote=(LOOPBACK, 40000))
    store.apply([snapshot(HOST, connections=[there]), snapshot(BLUE, connections=[back])])
    apart = sorted(map(ends, ask(store, "edges")), key=repr)

    store.apply([snapshot(HOST, 2, base=False, connections=[back])])

    assert apart == [(HOST, None, None, None, 1), (BLUE, None, None, None, 1)]
    assert ends(ask(store, "edges", where={"netns": HOST})[0]) == (HOST, None, HOST, None, 1)


def test_link_local_addresses_meet_on_one_device_only() -> None:
    store = new_store()
    there = connection(1, local=(LINK_LOCAL, 40000), remote=(LINK_LOCAL, 80), family=10, device="eth0")
    back = connection(2, local=(LINK_LOCAL, 80), remote=(LINK_LOCAL, 40000), family=10, device="eth1")
    store.apply([snapshot(HOST, connections=[there, back])])
    apart = len(ask(store, "edges"))

    store.apply([snapshot(HOST, 2, base=False, connections=[back._replace(device="eth0")])])

    assert (apart, len(ask(store, "edges"))) == (2, 1)


def test_several_possible_ends_are_ambiguous_until_one_is_left() -> None:
    store = new_store()
    store.apply([
        snapshot(1, connections=[client_row(1)]), snapshot(2, connections=[client_row(2)]),
        snapshot(3, connections=[server_row(3), listener(4, 443)]),
    ])  # fmt: skip
    several = [
        (row["ambiguous"], row["client"]["pid"], row["server"]["netns"]) for row in ask(store, "edges")
    ]

    store.apply([snapshot(2, 2, base=False, gone_connections=[2])])

    assert sorted(several, key=repr) == [(True, None, 3), (True, None, None), (True, None, None)]
    assert [(*ends(row), row["ambiguous"]) for row in ask(store, "edges")] == [(1, None, 3, None, 1, False)]


def test_end_in_the_same_namespace_comes_before_all_others() -> None:
    store = new_store()
    store.apply([
        snapshot(1, connections=[client_row(1), server_row(2), listener(3, 443)]),
        snapshot(2, connections=[client_row(4)]),
    ])  # fmt: skip

    found = sorted(((*ends(row), row["ambiguous"]) for row in ask(store, "edges")), key=repr)

    assert found == [(1, None, 1, None, 1, False), (2, None, None, None, 1, False)]


def test_closing_end_keeps_its_edge_and_a_closed_one_does_not() -> None:
    store = new_store()
    rows = [
        client_row(1, state=State.CLOSE_WAIT),
        client_row(2, 40001, state=State.TIME_WAIT),
        listener(3, 80),
    ]
    store.apply([snapshot(HOST, connections=rows)])

    assert [row["client"]["port"] for row in ask(store, "edges")] == [40000]


@st.composite
def mirrored_histories(draw: st.DrawFn) -> list[Snapshot]:
    """Namespaces whose few addresses and ports meet all the time."""
    addresses, ports = st.sampled_from([CLIENT, SERVER, LOOPBACK]), st.sampled_from([443, 40000])
    rows = st.builds(
        lambda key, local, remote, state, proto, inode: connection(
            key, local=local, remote=remote, state=state, proto=proto, inode=inode
        ),
        st.integers(1, 4), st.tuples(addresses, ports), st.tuples(addresses, ports),
        st.sampled_from([State.ESTABLISHED, State.ESTABLISHED, State.CLOSE_WAIT, State.TIME_WAIT, State.LISTEN]),
        st.sampled_from([Proto.TCP, Proto.TCP, Proto.UDP]), st.integers(0, 3),
    )  # fmt: skip
    generations: Counter[int] = Counter()
    history = []
    for netns in draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=8)):
        base = generations[netns] == 0 or draw(st.booleans())
        generations[netns] += 1
        gone = [] if base else draw(st.lists(st.integers(1, 4), max_size=2))
        history.append(snapshot(
            netns, generations[netns], base=base, cookie=None, gone_connections=gone,
            connections=draw(st.lists(rows, max_size=3, unique_by=lambda row: row[0])),
        ))  # fmt: skip
    return history


Row = dict[str, Any]
_FLOWING = {"ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"}


def mirrors(one: Row, other: Row) -> bool:
    if one["proto"] != other["proto"] or {one["state"], other["state"]} - _FLOWING:
        return False
    if "127.0.0.1" in (one["local_addr"], one["remote_addr"]) and one["netns"] != other["netns"]:
        return False
    return (one["local_addr"], one["local_port"], one["remote_addr"], one["remote_port"]) == (
        other["remote_addr"], other["remote_port"], other["local_addr"], other["local_port"],
    )  # fmt: skip


def expected_links(rows: list[Row]) -> Counter[Any]:
    """(client netns, addr, port, server netns, addr, port, proto, ambiguous) of every connection."""
    links: Counter[Any] = Counter()
    candidates = [[at for at, other in enumerate(rows) if mirrors(row, other)] for row in rows]
    near = [
        [at for at in found if rows[at]["netns"] == row["netns"]]
        for row, found in zip(rows, candidates, strict=True)
    ]
    done: set[int] = set()
    for at, row in enumerate(rows):
        if at in done or row["state"] not in _FLOWING:
            continue
        mine = near[at] or [other for other in candidates[at] if not near[other]]
        theirs = near if near[at] else candidates
        peer = mine[0] if len(mine) == 1 and theirs[mine[0]] == [at] else None
        if peer is not None:
            done.add(peer)
            client, server = sorted((row, rows[peer]), key=serverness) if peer != at else (row, row)
            links[*end(client, "local"), *end(server, "local"), row["proto"], False] += 1
        elif serves(row):
            links[
                None, row["remote_addr"], row["remote_port"], *end(row, "local"), row["proto"], bool(mine)
            ] += 1
        else:
            links[
                *end(row, "local"), None, row["remote_addr"], row["remote_port"], row["proto"], bool(mine)
            ] += 1
    return links


def serves(row: Row) -> bool:
    unknown: bool = row["direction"] == "unknown"
    return bool(row["direction"] == "inbound" or (unknown and row["local_port"] < row["remote_port"]))


def serverness(row: Row) -> tuple[int, int, int]:
    return ({"outbound": 0, "unknown": 1, "inbound": 2}[row["direction"]], -row["local_port"], row["order"])


def end(row: Row, side: str) -> tuple[Any, ...]:
    return row["netns"], row[f"{side}_addr"], row[f"{side}_port"]


@settings(max_examples=300, deadline=None)
@given(mirrored_histories(), st.data())
def test_edges_are_the_mirrored_pairs_of_all_connections(
    history: list[Snapshot], data: st.DataObject
) -> None:
    store = new_store()
    rest = history
    while rest:
        size = data.draw(st.integers(1, 2))
        store.apply(rest[:size])
        rest = rest[size:]
    rows = [{**row, "order": order} for order, row in enumerate(ask(store, "connections"))]

    found: Counter[Any] = Counter()
    for edge in ask(store, "edges"):
        client, server = edge["client"], edge["server"]
        port = client["port"] if edge["connections"] == 1 else "several"
        found[client["netns"], client["addr"], port, server["netns"], server["addr"], server["port"], edge["proto"],
              edge["ambiguous"]] += edge["connections"]  # fmt: skip

    assert found == merged(expected_links(rows))
    store.close()


def merged(links: Counter[Any]) -> Counter[Any]:
    """As edges show them: client ports are no part of the grouping."""
    groups: Counter[Any] = Counter()
    for link, number in links.items():
        groups[link[:2] + link[3:]] += number
    shown: Counter[Any] = Counter()
    for link in links:
        total = groups[link[:2] + link[3:]]
        shown[(*link[:2], link[2] if total == 1 else "several", *link[3:])] = total
    return shown
