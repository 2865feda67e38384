"""Whatever a snapshot has in place of a value: it is refused, or all questions are answered with it in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import query
from pipeline.clock import ManualClock
from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Proto
from pipeline.model.container import Container
from pipeline.model.flow_snapshot import FLOW_ROLE, flows_from_wire
from pipeline.model.snapshot import from_wire
from pipeline.model.traffic import Traffic
from pipeline.store import Store
from tests.sample_flows import flow, flows
from tests.sample_state import HOST, connection, holding, listener, process, roster_row, snapshot

CLIENT, ROUTER, SERVER = b"\n\0\0\1", b"\n\x09\x09\1", b"\n\0\1\1"
QUESTIONS: list[dict[str, Any]] = [
    *({"op": op} for op in ("connections", "edges", "processes", "namespaces", "status", "explain")),
    {"op": "connections", "closed": True},
    *(
        {"op": "sql", "sql": f"SELECT * FROM {name}"}
        for name in ("connections", "owners", "processes", "namespaces", "edges", "closed", "containers")
    ),
]
ODD = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.binary(max_size=17), st.floats(),
    st.sampled_from([0, -1, 1, 2, 6, 17, 65536, 2**32, 2**63, 2**64 - 1, -(2**63)]),
    st.lists(st.none() | st.integers(0, 9), max_size=2), st.just({}), st.just({"a": 1}), st.just([[1, 2]]),
)  # fmt: skip


def sockets() -> dict[str, Any]:
    sent = snapshot(
        connections=[connection(1, local=(CLIENT, 40000), remote=(ROUTER, 80)), listener(2, 8080)],
        processes=[process(3, "curl"), process(4, "nginx")],
        holdings=[holding(3, 3, 1), holding(4, 3, 2)],
        containers=[Container("a" * 64, "docker", None)],
        traffic=[Traffic(1, 1, 2, 3, 4)],
        addresses=[CLIENT],
        searched_since_s=1.0,
    ).to_wire()
    sent["closed"] = [
        ClosedConnection(
            9, 6, 2, CLIENT, 1, SERVER, 2, 0, "outbound", 3, 30, "curl", None, 1.0, 2.0, 1, 2, False
        )
    ]
    return sent


def translated() -> dict[str, Any]:
    entry = flow(b"key", ((CLIENT, 40000), (ROUTER, 80)), ((ROUTER, 40000), (SERVER, 8080)), Proto.TCP)
    return flows(HOST, 1, entry).to_wire()


def place(draw: st.DataObject, value: Any) -> list[Any]:
    """The way to something within maps and lists: a whole list, a row or a value of one."""
    way: list[Any] = []
    while isinstance(value, (dict, list, tuple)) and value and (not way or draw.draw(st.booleans())):
        at = draw.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        way.append(at)
        value = value[at]
    return way


@pytest.mark.parametrize("make", [sockets, translated])
@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_any_value_in_any_place_is_refused_or_all_questions_are_answered(
    make: Any, draw: st.DataObject
) -> None:
    wire = copy.deepcopy(decode_map(encode(make())))
    *way, last = place(draw, wire)
    inner: Any = wire
    for at in way:
        inner = inner[at]
    inner[last] = draw.draw(ODD)

    store = Store(":memory:", "epoch", "box", ManualClock(100.0), stale_after_s=15.0)
    store.apply([from_wire(sockets()), snapshot(HOST + 1)], [roster_row(HOST), roster_row(HOST + 1)])
    try:
        # As the aggregator tells them apart.
        if wire.get("role") == FLOW_ROLE:
            read = flows_from_wire(wire)
            store.apply([], flows=[read])
            assert sum(read.health.losses()) >= 0
        else:
            store.apply([from_wire(wire)])
    except Malformed:
        pass  # counted by whoever asked for it
    store.tick()
    for question in QUESTIONS:
        answer = query.answer(store.reader(), {"id": 1, **question})
        assert answer["ok"], (question, answer["error"])
        encode(answer)
    store.close()
