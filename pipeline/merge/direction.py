"""Which side opened a connection, decided once, when its row is first seen."""

from __future__ import annotations

from pipeline.model.address import V4_MAPPED_PREFIX
from pipeline.model.connection import Proto, State

LISTEN = "listen"
INBOUND = "inbound"
OUTBOUND = "outbound"
UNKNOWN = "unknown"
DIRECTIONS = (LISTEN, INBOUND, OUTBOUND, UNKNOWN)

_V6_ANY = bytes(16)
_V4_ANY = V4_MAPPED_PREFIX + bytes(4)
_UNDECIDED_STATES = frozenset((State.CLOSE, State.BOUND_INACTIVE))

# Local (port, 16-byte address) of the listeners of one namespace.
Listeners = set[tuple[int, bytes]]


def decide(proto: int, state: int, local_ip: bytes, local_port: int, listeners: Listeners) -> str:
    """The direction of one row, given the listeners that its namespace had at that moment.

    `local_ip` in the 16-byte form. A bound socket that does neither yet, and all UDP, is unknown.
    """
    if proto != Proto.TCP or state in _UNDECIDED_STATES:
        return UNKNOWN
    if state == State.LISTEN:
        return LISTEN
    if state != State.SYN_SENT and listeners and _listens(local_ip, local_port, listeners):
        return INBOUND
    return OUTBOUND


def _listens(local_ip: bytes, local_port: int, listeners: Listeners) -> bool:
    # A listener on :: takes IPv4 too (unless IPV6_V6ONLY, which no table tells); its half-open children are of
    # family inet. One on 0.0.0.0 takes IPv4 only.
    if (local_port, local_ip) in listeners or (local_port, _V6_ANY) in listeners:
        return True
    return local_ip.startswith(V4_MAPPED_PREFIX) and (local_port, _V4_ANY) in listeners
