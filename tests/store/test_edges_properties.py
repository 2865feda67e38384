"""Edges against a plain Python oracle that compares all connections with all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.connection import Proto, State
from pipeline.model.snapshot import Snapshot
from tests.sample_state import connection, snapshot
from tests.store.asking import ask
from tests.store.edge_rows import CLIENT, LOOPBACK, SERVER, new_store


@st.composite
def mirrored_histories(draw: st.DrawFn) -> list[Snapshot]:
    """Namespaces whose few addresses and ports meet all the time."""
    addresses, ports = st.sampled_from([CLIENT, SERVER, LOOPBACK, bytes(4)]), st.sampled_from([443, 40000])
    rows = st.builds(
        lambda key, local, remote, state, proto, inode: connection(
            key, local=local, remote=remote, state=state, proto=proto, inode=inode
        ),
        st.integers(1, 4), st.tuples(addresses, ports), st.tuples(addresses, ports),
        st.sampled_from([State.ESTABLISHED, State.ESTABLISHED, State.CLOSE_WAIT, State.TIME_WAIT, State.LISTEN]),
        st.sampled_from([Proto.TCP, Proto.UDP]), st.integers(0, 3),
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
        elif not mine and row["proto"] == "udp" and (got := bound_receiver(row, rows)):
            other = rows[got[0]]
            if len(got) > 1:
                ends = end(row, "local"), (None, row["remote_addr"], row["remote_port"])
                first, second = reversed(ends) if serves(row) else ends
                links[*first, *second, "udp", True] += 1
            else:
                reached = {**other, "local_addr": row["remote_addr"]}
                pair = (reached, row) if row["local_port"] < row["remote_port"] else (row, reached)
                links[*end(pair[0], "local"), *end(pair[1], "local"), "udp", False] += 1
        elif serves(row):
            links[
                None, row["remote_addr"], row["remote_port"], *end(row, "local"), row["proto"], bool(mine)
            ] += 1
        else:
            links[
                *end(row, "local"), None, row["remote_addr"], row["remote_port"], row["proto"], bool(mine)
            ] += 1
    return links


def bound_receiver(row: Row, rows: list[Row]) -> list[int]:
    """Which sockets may get what a connected UDP socket sends; several where that cannot be told."""
    address = row["remote_addr"]
    scores = {
        at: (3 if one["local_addr"] == address else 2 if one["local_addr"] == "0.0.0.0" else 0)
        for at, one in enumerate(rows)
        if (one["proto"], one["state"], one["local_port"]) == ("udp", "UNCONN", row["remote_port"])
    }
    homes = {rows[at]["netns"] for at, score in scores.items() if score == 3}
    if address in ("127.0.0.1", row["local_addr"]) or row["netns"] in homes:
        homes = {row["netns"]}
    found = {at: score for at, score in scores.items() if score and rows[at]["netns"] in homes}
    best = [at for at, score in found.items() if score == max(found.values())]
    return best * 2 if len(homes) > 1 else best


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
