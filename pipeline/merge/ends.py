"""Which two sockets are the two ends of one connection, where both are on this host."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple


class Peer(NamedTuple):
    """The other end of a connection: its row's id, or None where nobody mirrors it or several do (`ambiguous`)."""

    row_id: int | None
    ambiguous: bool


NO_PEER = Peer(None, False)


def pair(candidates: Mapping[int, Set[int]], netns_of: Mapping[int, int]) -> dict[int, Peer]:
    """The peer of every row of `candidates`: row id -> ids of the rows with its mirrored addresses, both ways.

    A mirror in the same namespace is the other end: what is sent to an address of one's own never leaves. Otherwise
    overlapping addresses may occur in several namespaces, and only two rows that know no other mirror are a pair.
    """
    near = {row: {other for other in others if netns_of[other] == netns_of[row]}
            for row, others in candidates.items()}  # fmt: skip
    taken = {row for row, others in near.items() if others}
    peers = {}
    for row, others in candidates.items():
        peers[row] = _only(row, near, near[row]) if row in taken else _only(row, candidates, others - taken)
    return peers


def _only(row: int, candidates: Mapping[int, Set[int]], others: Set[int]) -> Peer:
    if not others:
        return NO_PEER
    (other, *more) = others
    return Peer(None, True) if more or candidates[other] != {row} else Peer(other, False)
