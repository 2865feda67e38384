"""Both ends of a connection whose addresses are translated on its way: a graph of sockets and flows.

Nodes are numbers: rows of sockets above 0, flows of a translating namespace below. A socket sends packets with its
own tuple, local to remote; a flow takes packets with its original tuple in and sends them on with the translated one.
Whoever sends a tuple is joined to whoever receives it. A namespace's addresses mean little elsewhere, so this is done
only where one candidate is left on either side: an answer of two is `ambiguous` and names nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

CLIENT, SERVER = "client", "server"
# Translations on the way of one connection; a longer one is no chain but a muddle.
MAX_FLOWS = 8

# In place of a node: several could be it.
_SEVERAL = 0
_NOBODY: frozenset[int] = frozenset()
_Links = dict[int, int]


class Joined(NamedTuple):
    """What a row turned out to be an end of.

    `peer`: the row of the other end; None where it is outside, or not known (`ambiguous`). `side`: CLIENT or SERVER
    where a flow tells. `first`, `last`: the flow (a node) nearest the client and the one nearest the server, if any.
    """

    peer: int | None = None
    ambiguous: bool = False
    side: str | None = None
    first: int | None = None
    last: int | None = None


ALONE = Joined()
AMBIGUOUS = Joined(ambiguous=True)


def resolve(receivers: Mapping[int, Set[int]], netns_of: Mapping[int, int]) -> dict[int, Joined]:
    """What each row of a graph is joined to; without flows the same as merge.ends.pair.

    `receivers`: node -> those that take what it sends; two rows that mirror each other name each other. `netns_of`:
    of every node. Both must be whole: each node that any names, and all that name it. Two nodes of one namespace come
    before all others, if one of them is a row: what a socket sends to its own host's address never leaves, and its
    namespace's own translation comes before any other.
    """
    senders: dict[int, set[int]] = {node: set() for node in netns_of}
    for node, others in receivers.items():
        for other in others:
            senders[other].add(node)
    down, up = _links(receivers, senders, netns_of)
    joined = {row: _joined(row, down, up) for row in netns_of if row > 0}
    for row, one in list(joined.items()):
        # The other end may have been found to be part of something else too.
        if one.peer is not None and joined[one.peer].peer != row:
            joined[row] = AMBIGUOUS
    return joined


def _links(
    receivers: Mapping[int, Set[int]], senders: Mapping[int, Set[int]], netns_of: Mapping[int, int]
) -> tuple[_Links, _Links]:
    """For each node whom it sends to, and from whom it receives; _SEVERAL where that cannot be told."""
    near_receivers = {node: _near(node, others, netns_of) for node, others in receivers.items()}
    near_senders = {node: _near(node, others, netns_of) for node, others in senders.items()}
    down = _one_way(receivers, near_receivers, senders, near_senders)
    return down, _one_way(senders, near_senders, receivers, near_receivers)


def _near(node: int, others: Set[int], netns_of: Mapping[int, int]) -> Set[int]:
    if not others:
        return _NOBODY
    netns = netns_of[node]
    return {other for other in others if netns_of[other] == netns and (node > 0 or other > 0)}


def _one_way(
    there: Mapping[int, Set[int]],
    near_there: Mapping[int, Set[int]],
    back: Mapping[int, Set[int]],
    near_back: Mapping[int, Set[int]],
) -> _Links:
    links = {}
    for node, others in there.items():
        if not others:
            continue
        options: Set[int]
        if near_there[node]:
            options, others_of = near_there[node], near_back
            alone = len(options) == 1
        else:
            options, others_of = {other for other in others if not near_back[other]}, back
            alone = len(others) == 1
        if options:
            (other, *_) = options
            links[node] = other if alone and others_of[other] == {node} else _SEVERAL
    return links


def _joined(row: int, down: _Links, up: _Links) -> Joined:
    forth, to = _follow(row, down)
    back, source = _follow(row, up)
    if to is None and not forth:
        return _of_server(back, source) if back or source is not None else ALONE
    if source is None and not back:
        return _of_client(forth, to)
    # Rows that mirror each other find each other both ways.
    return Joined(to) if to == source and to and not forth and not back else AMBIGUOUS


def _follow(row: int, links: _Links) -> tuple[list[int], int | None]:
    """The flows on the way from a row, and the row at its end; None where that is outside."""
    flows: list[int] = []
    node = links.get(row)
    while node is not None and node < 0:
        if node in flows or len(flows) == MAX_FLOWS:
            return flows, _SEVERAL
        flows.append(node)
        node = links.get(node)
    return flows, node


def _of_client(flows: list[int], end: int | None) -> Joined:
    if end == _SEVERAL:
        return AMBIGUOUS
    return Joined(end, False, CLIENT, flows[0], flows[-1]) if flows else Joined(end)


def _of_server(flows: list[int], end: int | None) -> Joined:
    if end == _SEVERAL:
        return AMBIGUOUS
    return Joined(end, False, SERVER, flows[-1], flows[0]) if flows else Joined(end)
