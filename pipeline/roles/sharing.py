"""Which namespaces share a worker where there are more of them than workers: the quiet ones. Pure.

One that is busy beside others gets a worker to itself, whose quiet namespaces go to others for it. Both sides are left
alone for a while after that, or namespaces at the border would come and go.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

# A namespace that was moved stays where it is for so long: to start its walk anew costs a look at everything.
SETTLED_S = 60.0


class Move(NamedTuple):
    """A namespace's way to the worker of index `to`."""

    netns: int
    to: int


def plan(served: Mapping[int, Set[int]], busy: Set[int], unsettled: Set[int]) -> list[Move]:
    """The moves that give one more busy namespace a worker of its own; none where that is not needed or possible.

    `served`: by the workers' indexes, their namespaces; a worker with none is one to fill. `unsettled`: namespaces that
    were moved or appeared only just now.
    """
    crowded = sorted(
        (index, netns)
        for index, shared in served.items()
        if len(shared) > 1
        for netns in (shared & busy) - unsettled
    )
    # The fewest to be moved for it first.
    givable = sorted(
        (len(shared), index) for index, shared in served.items() if not shared & (busy | unsettled)
    )
    for (_, given), (crowd, netns) in ((one, other) for other in crowded for one in givable):
        if given == crowd:
            continue
        # A worker that has one busy namespace is its own; the crowd loses one.
        sizes = {
            index: len(shared)
            for index, shared in served.items()
            if index != given and (index == crowd or len(shared) > 1 or not shared & busy)
        }
        sizes[crowd] -= 1
        moves = [Move(netns, given)]
        for quiet in sorted(served[given]):
            home = min(sizes, key=lambda index: (sizes[index], index))
            sizes[home] += 1
            moves.append(Move(quiet, home))
        return moves
    return []
