"""Snapshots on the wire: what was sent comes back, and anything else is refused, never half taken."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.codec import decode, decode_map, encode
from pipeline.errors import Malformed
from pipeline.model.container import Container
from pipeline.model.snapshot import Snapshot, from_wire
from pipeline.store import Store
from tests.sample_state import connection, histories, holding, process, snapshot
from tests.store.asking import ask

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
WHOLE = snapshot(
    connections=[connection(1)], processes=[process(8, "sshd")], holdings=[holding(8, 3, 1)],
    containers=[Container("web", "lxc")], searched_since_s=98.5, addresses=[b"\x0a\x00\x00\x01"],
)  # fmt: skip


@given(histories())
@settings(max_examples=50, deadline=None)
def test_what_was_sent_comes_back(history: list[Snapshot]) -> None:
    for sent in [*history, WHOLE]:
        received = from_wire(decode_map(encode(sent.to_wire())))
        assert received.to_wire() == from_wire(sent.to_wire()).to_wire()
        assert [tuple(row) for row in received.connections] == [tuple(row) for row in sent.connections]
        assert (received.searched_since_s, received.addresses) == (sent.searched_since_s, sent.addresses)
        assert received.health == sent.health


def test_fields_that_older_programs_do_not_send_are_empty() -> None:
    wire = WHOLE.to_wire()
    del wire["containers"], wire["searched_since_s"], wire["addresses"]
    received = from_wire(wire)
    assert (received.containers, received.searched_since_s, received.addresses) == ([], None, None)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        decode(data)
    with contextlib.suppress(Malformed):
        assert isinstance(decode_map(data), dict)


@given(st.sampled_from(sorted(WHOLE.to_wire())), ANYTHING)
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_field_is_refused_or_stored(name: str, value: Any) -> None:
    wire = decode_map(encode(WHOLE.to_wire() | {name: value}))
    store = Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    try:
        store.apply([from_wire(wire)])
    except Malformed:
        assert ask(store, "connections") == []
    else:
        assert isinstance(ask(store, "connections"), list)
    finally:
        store.close()


@pytest.mark.parametrize(
    "missing",
    ["v", "role", "netns", "cookie", "life", "generation", "base", "taken_at_s", "walked_at_s", "source", "denied",
     "health", "connections", "gone_connections", "processes", "gone_processes", "holdings", "gone_holdings"],
)  # fmt: skip
def test_a_map_without_one_of_its_fields_is_refused(missing: str) -> None:
    wire = WHOLE.to_wire()
    del wire[missing]
    with pytest.raises(Malformed):
        from_wire(wire)
