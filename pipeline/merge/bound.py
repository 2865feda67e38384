"""Which bound UDP socket gets what a connected one sends: it has no remote address that could be compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from pipeline.merge.ends import NO_PEER, Peer
from pipeline.model.address import V4_MAPPED_PREFIX

_WILDCARDS = (bytes(16), V4_MAPPED_PREFIX + bytes(4))


class Bound(NamedTuple):
    """An unconnected UDP socket on the port in question. `local_ip` in the 16-byte form."""

    row_id: int
    netns: int
    local_ip: bytes


def receiver(address: bytes, sender_netns: int, homes: Collection[int], bound: Iterable[Bound]) -> Peer:
    """The socket that receives what is sent to `address` from `sender_netns`, the last namespace on the way.

    `homes`: the namespaces that are known to have that address. A socket that is bound to it proves that its own has
    it. The sender's own comes first; of several others nobody knows which is meant. Within one, a socket bound to the
    address comes before one on a wildcard, 0.0.0.0 before ::; several alike (SO_REUSEPORT) are ambiguous. Source:
    compute_score(), net/ipv4/udp.c.
    """
    known = list(bound)
    owning = {*homes, *(one.netns for one in known if one.local_ip == address)}
    if sender_netns in owning:
        owning = {sender_netns}
    best: list[Bound] = []
    best_score = 0
    for one in known:
        score = _score(address, one.local_ip) if one.netns in owning else 0
        if score > best_score:
            best, best_score = [one], score
        elif score and score == best_score:
            best.append(one)
    if not best:
        return NO_PEER
    return Peer(best[0].row_id, False) if len(best) == len(owning) == 1 else Peer(None, True)


def _score(address: bytes, local_ip: bytes) -> int:
    if local_ip == address:
        return 3
    if local_ip not in _WILDCARDS:
        return 0
    # One on :: takes IPv4 too, unless IPV6_V6ONLY, which no table tells.
    if local_ip == bytes(16):
        return 1
    return 2 if address.startswith(V4_MAPPED_PREFIX) else 0
