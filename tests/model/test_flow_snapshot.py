from __future__ import annotations

from typing import Any

import pytest

from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed
from pipeline.merge.latest import Latest, Verdict
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FlowHealth, FlowSnapshot, flows_from_wire
from pipeline.model.snapshot import Health, Snapshot

NETNS = 4026532001
FLOW = Flow(
    b"key", 6, 2, b"\n\0\0\1", 4000, b"\xc0\0\2\1", 80, b"\n\x09\x09\1", 8080, b"\n\0\0\1", 4000, 0x28, 3
)


def snapshot(generation: int, base: bool, *flows: Flow, gone: tuple[bytes, ...] = ()) -> FlowSnapshot:
    health = FlowHealth(dumps=2, events_lost=1)
    return FlowSnapshot("conntrack", NETNS, 77, 1, generation, base, 12.5, health, list(flows), list(gone))


def test_a_snapshot_comes_back_as_it_was_sent() -> None:
    sent = snapshot(3, False, FLOW, gone=(b"other",))
    assert flows_from_wire(decode_map(encode(sent.to_wire()))) == sent


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"role": "netns"},
        {"netns": "x"},
        {"base": None},
        {"flows": [[1, 2]]},
        {"flows": 7},
        {"gone_flows": None},
        {"health": [0] * 40},
        {"health": ["1"] * 11},
        {"health": [-1]},
        {"health": [2**63]},
        {"flows": [FLOW._replace(reply_sport="80")]},  # type: ignore[arg-type]
        {"flows": [FLOW._replace(key="key")]},  # type: ignore[arg-type]
        {"gone_flows": [7]},
        {"generation": None},
    ],
)
def test_what_no_worker_of_ours_sends_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        flows_from_wire(snapshot(1, True, FLOW).to_wire() | change)


def test_a_missing_field_is_malformed() -> None:
    wire = snapshot(1, True).to_wire()
    del wire["life"]
    with pytest.raises(Malformed):
        flows_from_wire(wire)


def test_flows_and_sockets_of_one_namespace_have_each_their_own_order() -> None:
    latest = Latest()
    sockets = Snapshot("netns", NETNS, 77, 9, 5, True, 1.0, None, "sock_diag", 0, Health())
    assert latest.offer(sockets) is Verdict.APPLY
    assert latest.offer(snapshot(2, False)) is Verdict.GAP
    assert latest.offer(snapshot(1, True)) is Verdict.APPLY
    assert latest.offer(snapshot(2, False)) is Verdict.APPLY
    assert latest.offer(snapshot(2, False)) is Verdict.OLD
