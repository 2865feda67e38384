"""Sockets and flows in any order and batches, against an oracle that looks at all of them every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.model.connection import Connection, Proto, State
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FlowSnapshot
from pipeline.model.snapshot import Snapshot
from pipeline.store import Store
from tests.sample_flows import flow, flows
from tests.sample_state import connection, snapshot
from tests.store.asking import ask

End = tuple[bytes, int]
Wire = tuple[End, End]
_FLOWING = (State.ESTABLISHED, State.CLOSE_WAIT)
_ENDS = [(bytes((10, 0, 0, last)), 40000 + last) for last in range(1, 4)] + [(b"\x7f\x00\x00\x01", 80)]
_ends = st.sampled_from(_ENDS)
_states = st.sampled_from([*_FLOWING, State.ESTABLISHED, State.TIME_WAIT])
Either = Snapshot | FlowSnapshot


@st.composite
def worlds(draw: st.DrawFn, proto: int = Proto.TCP) -> list[Either]:
    """What three namespaces tell of sockets and flows whose few addresses meet all the time."""
    local = _ends if proto == Proto.TCP else st.sampled_from([*_ENDS, (bytes(4), 40001), (bytes(4), 80)])
    rows = st.builds(
        lambda key, local, remote, state: connection(key, local=local, remote=remote, state=state, proto=proto),
        st.integers(1, 4), local, _ends, _states,
    )  # fmt: skip
    entries = st.builds(
        lambda key, one, other, third, fourth: flow(bytes((key,)), (one, other), (third, fourth), proto),
        st.integers(1, 3), _ends, _ends, _ends, _ends,
    )  # fmt: skip
    addresses = st.none() | st.lists(st.sampled_from([address for address, _ in _ENDS]), max_size=2)
    generations: Counter[tuple[str, int]] = Counter()
    told: list[Either] = []
    for kind, netns in draw(
        st.lists(st.tuples(st.sampled_from("sf"), st.integers(1, 3)), min_size=2, max_size=10)
    ):
        base = not generations[kind, netns] or draw(st.booleans())
        generations[kind, netns] += 1
        number = generations[kind, netns]
        if kind == "s":
            told.append(snapshot(
                netns, number, base=base, cookie=None,
                connections=draw(st.lists(rows, max_size=3, unique_by=lambda row: row[0])),
                gone_connections=[] if base else draw(st.lists(st.integers(1, 4), max_size=2)),
                addresses=draw(addresses),
            ))  # fmt: skip
        else:
            found = draw(st.lists(entries, max_size=3, unique_by=lambda row: row[0]))
            gone = [] if base else [bytes((key,)) for key in draw(st.lists(st.integers(1, 3), max_size=2))]
            told.append(flows(netns, number, *found, base=base, cookie=None, gone=gone))
    return told


def _folded(told: list[Either]) -> tuple[dict[Any, Connection], dict[Any, Flow]]:
    rows: dict[Any, Connection] = {}
    entries: dict[Any, Flow] = {}
    for one in told:
        into: dict[Any, Any] = rows if isinstance(one, Snapshot) else entries
        gone = one.gone_connections if isinstance(one, Snapshot) else one.gone_flows
        for key in [key for key in into if key[0] == one.netns and (one.base or key[1] in gone)]:
            del into[key]
        found = one.connections if isinstance(one, Snapshot) else one.flows
        into.update(((one.netns, row[0]), row) for row in found)
    return rows, entries


class Oracle:
    """Nodes are (netns, row) and (netns, flow); everything is asked by comparing everything with everything."""

    def __init__(self, told: list[Either]) -> None:
        rows, entries = _folded(told)
        self.rows = {(netns, key, "row"): row for (netns, key), row in rows.items() if row.state in _FLOWING}
        self.sent: dict[Any, Wire] = {key: (row[4:6], row[6:8]) for key, row in self.rows.items()}
        self.got: dict[Any, Wire] = {key: (row[6:8], row[4:6]) for key, row in self.rows.items()}
        for (netns, key), entry in entries.items():
            taken, passed = (entry[3:5], entry[5:7]), (entry[9:11], entry[7:9])
            if taken != passed:
                self.got[netns, key, "flow"], self.sent[netns, key, "flow"] = taken, passed

    def receivers(self, node: Any) -> list[Any]:
        return [
            other
            for other, wire in self.got.items()
            if wire == self.sent[node] and self._meet(node, other, wire)
        ]

    def senders(self, node: Any) -> list[Any]:
        return [
            other
            for other, wire in self.sent.items()
            if wire == self.got[node] and self._meet(node, other, wire)
        ]

    def _meet(self, node: Any, other: Any, wire: Wire) -> bool:
        return node[0] == other[0] or not any(address.startswith(b"\x7f") for address, _ in wire)

    def link(self, node: Any, there: Any, back: Any) -> Any:
        """The one that `node` is joined to; "several" or None."""
        found = there(node)
        near = [other for other in found if _near(node, other)]
        options = near or [other for other in found if not any(_near(other, third) for third in back(other))]
        if not options:
            return None
        backwards = back(options[0])
        if near:
            backwards = [other for other in backwards if _near(other, options[0])]
        sole = len(near or found) == 1 and backwards == [node]
        return options[0] if sole else "several"

    def follow(self, node: Any, there: Any, back: Any) -> tuple[list[Any], Any]:
        way: list[Any] = []
        node = self.link(node, there, back)
        while node not in (None, "several") and node[2] == "flow":
            if node in way:
                return way, "several"
            way.append(node)
            node = self.link(node, there, back)
        return way, node

    def joined(self, row: Any) -> tuple[Any, Any]:
        """(the other end, original and translated wire) of a row; the other end None or "several"."""
        forth, target = self.follow(row, self.receivers, self.senders)
        back, source = self.follow(row, self.senders, self.receivers)
        if (forth or target) and (back or source):
            return (target if (forth, target) == (back, source) == ([], target) else "several"), None
        way, end = (forth, target) if forth or target else (back[::-1], source)
        if end == "several" or not way:
            return end, None
        return end, (self.got[way[0]], self.sent[way[-1]])

    def expected(self) -> dict[Any, tuple[Any, Any, bool]]:
        """(netns, key) -> (other end, nat, ambiguous)."""
        joined = {row: self.joined(row) for row in self.rows}
        found = {}
        for row, (end, wires) in joined.items():
            if end == "several" or (end is not None and joined[end][0] != row):
                found[row[:2]] = (None, None, True)
            else:
                found[row[:2]] = (end and end[:2], wires, False)
        return found


def _near(one: Any, other: Any) -> bool:
    return bool(one[0] == other[0] and "row" in (one[2], other[2]))


def _new_store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def _stored(store: Store) -> dict[Any, tuple[Any, Any, bool]]:
    rows = store._database.execute(
        "SELECT c.netns, c.key, d.netns, d.key, c.nat, c.peer_ambiguous FROM connection c"
        " LEFT JOIN connection d ON d.id = c.peer_id WHERE c.state IN ('ESTABLISHED', 'CLOSE_WAIT')"
    )
    return {
        (netns, key): (None if other is None else (other, other_key), nat, bool(ambiguous))
        for netns, key, other, other_key, nat, ambiguous in rows
    }


def _text(wires: Any) -> str | None:
    if wires is None:
        return None
    named = [
        {"src": ".".join(map(str, src)), "sport": sport, "dst": ".".join(map(str, dst)), "dport": dport}
        for (src, sport), (dst, dport) in wires
    ]
    return json.dumps(dict(zip(("original", "translated"), named, strict=True)))


def _apply(store: Store, told: list[Either]) -> None:
    store.apply([one for one in told if isinstance(one, Snapshot)],
                flows=[one for one in told if isinstance(one, FlowSnapshot)])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(worlds(), st.data())
def test_peers_and_nat_follow_from_what_is_there_whatever_the_order(
    told: list[Either], data: st.DataObject
) -> None:
    # Each namespace's own order stays; how they are mixed, and in which batches, is drawn.
    lines: dict[tuple[type, int], list[Either]] = {}
    for one in told:
        lines.setdefault((type(one), one.netns), []).append(one)
    store = _new_store()
    while lines:
        batch = []
        for _ in range(data.draw(st.integers(1, 3))):
            if lines:
                line = data.draw(st.sampled_from(sorted(lines, key=repr)))
                batch.append(lines[line].pop(0))
                if not lines[line]:
                    del lines[line]
        _apply(store, batch)

    wanted = {
        key: (end, _text(wires), several) for key, (end, wires, several) in Oracle(told).expected().items()
    }
    assert _stored(store) == wanted
    # Edges come of the same: each connection is in one of them, once.
    pairs = sum(end is not None for end, _, _ in wanted.values()) - sum(
        end == key for key, (end, _, _) in wanted.items()
    )
    assert sum(edge["connections"] for edge in ask(store, "edges")) == len(wanted) - pairs // 2
    store.close()


@settings(max_examples=200, deadline=None)
@given(worlds(proto=Proto.UDP))
def test_udp_comes_to_the_state_of_one_who_is_told_all_at_once(told: list[Either]) -> None:
    store = _new_store()
    for one in told:
        _apply(store, [one])
    rows, entries = _folded(told)
    addresses: dict[int, Sequence[bytes]] = {}
    for one in told:
        if isinstance(one, Snapshot) and (one.base or one.addresses is not None):
            addresses[one.netns] = one.addresses or ()
    fresh = _new_store()
    fresh.apply(
        [snapshot(netns, cookie=None, connections=[row for (home, _), row in rows.items() if home == netns],
                  addresses=addresses.get(netns)) for netns in range(1, 4)],
        flows=[flows(netns, 1, *(row for (home, _), row in entries.items() if home == netns), cookie=None)
               for netns in range(1, 4)],
    )  # fmt: skip

    assert _stored(store) == _stored(fresh)
    store.close()
    fresh.close()


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_flows_that_come_twice_change_nothing(told: list[Either]) -> None:
    store = _new_store()
    for one in told:
        _apply(store, [one])
    before = _stored(store)
    bases = [one for one in told if isinstance(one, FlowSnapshot)]
    _, entries = _folded(told)
    for netns in {one.netns for one in bases}:
        found = [row for (home, _), row in entries.items() if home == netns]
        commit = store.apply_flows([flows(netns, 99, *found, cookie=None)])
        assert (commit.touched, commit.edges) == ((), False)

    assert _stored(store) == before
    store.close()
