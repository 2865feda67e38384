"""Who opened a connection, told from the listeners of its namespace."""

from __future__ import annotations

import pytest

from pipeline.merge.direction import decide
from pipeline.model.connection import Proto, State

_PREFIX = bytes(10) + b"\xff\xff"
_V4 = _PREFIX + b"\x0a\x00\x00\x01"
_OTHER_V4 = _PREFIX + b"\x0a\x00\x00\x02"
_V4_ANY = _PREFIX + bytes(4)
_V6 = b"\xfd" + bytes(14) + b"\x01"
_V6_ANY = bytes(16)


@pytest.mark.parametrize(
    ("local", "listener", "expected"),
    [
        (_V4, (80, _V4), "inbound"),
        (_V4, (80, _V4_ANY), "inbound"),
        (_V4, (80, _V6_ANY), "inbound"),
        (_V4, (80, _OTHER_V4), "outbound"),
        (_V4, (81, _V4_ANY), "outbound"),
        (_V6, (80, _V6), "inbound"),
        (_V6, (80, _V6_ANY), "inbound"),
        (_V6, (80, _V4_ANY), "outbound"),
    ],
)
def test_connection_to_a_port_that_is_listened_on_is_inbound(
    local: bytes, listener: tuple[int, bytes], expected: str
) -> None:
    assert decide(Proto.TCP, State.ESTABLISHED, local, 80, {listener}) == expected


@pytest.mark.parametrize("state", [State.SYN_RECV, State.NEW_SYN_RECV, State.TIME_WAIT, State.CLOSE_WAIT])
def test_other_connected_states_are_decided_alike(state: State) -> None:
    assert decide(Proto.TCP, state, _V4, 80, {(80, _V4_ANY)}) == "inbound"
    assert decide(Proto.TCP, state, _V4, 80, set()) == "outbound"


def test_syn_sent_is_outbound_also_from_a_port_that_is_listened_on() -> None:
    assert decide(Proto.TCP, State.SYN_SENT, _V4, 80, {(80, _V4_ANY)}) == "outbound"


def test_listener_listens() -> None:
    assert decide(Proto.TCP, State.LISTEN, _V4_ANY, 80, {(80, _V4_ANY)}) == "listen"


@pytest.mark.parametrize("state", [State.ESTABLISHED, State.CLOSE])
def test_udp_is_unknown(state: State) -> None:
    assert decide(Proto.UDP, state, _V4, 80, {(80, _V4_ANY)}) == "unknown"


@pytest.mark.parametrize("state", [State.CLOSE, State.BOUND_INACTIVE])
def test_bound_tcp_socket_that_does_neither_yet_is_unknown(state: State) -> None:
    assert decide(Proto.TCP, state, _V4, 80, set()) == "unknown"
