"""What is the newest snapshot of every namespace, and does the one at hand follow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pipeline.model.flow_snapshot import FlowSnapshot
from pipeline.model.snapshot import Snapshot


class Verdict(Enum):
    """APPLY: merge it now. OLD: known already. GAP: something before it is missing, read the segment."""

    APPLY = "apply"
    OLD = "old"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class _Head:
    cookie: int | None
    life: int
    generation: int


class Latest:
    """The newest (life, generation) per (role, netns inode); only ever moves forward.

    Offer everything in any order, as often as you like: also the whole content of a segment, base and deltas in
    file order, of which only what is new gets APPLY. A life must never be given twice for one inode.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[str, int], _Head] = {}

    def offer(self, snapshot: Snapshot | FlowSnapshot) -> Verdict:
        """What to do with `snapshot`. APPLY advances the head: the caller must then merge it."""
        head = self._heads.get((snapshot.role, snapshot.netns))
        if head is not None and (snapshot.life, snapshot.generation) <= (head.life, head.generation):
            return Verdict.OLD
        if not snapshot.base and (head is None or not _follows(head, snapshot)):
            return Verdict.GAP
        cookie = snapshot.cookie
        if cookie is None and head is not None and not snapshot.base:
            cookie = head.cookie
        self._heads[snapshot.role, snapshot.netns] = _Head(cookie, snapshot.life, snapshot.generation)
        return Verdict.APPLY

    def forget(self, netns: int) -> None:
        """Drops what is known of a namespace inode that the roster names no more."""
        for key in [key for key in self._heads if key[1] == netns]:
            del self._heads[key]


def _follows(head: _Head, delta: Snapshot | FlowSnapshot) -> bool:
    if (delta.life, delta.generation) != (head.life, head.generation + 1):
        return False
    # Inodes are reused at once: another cookie under the same inode is another namespace, and changes to one say
    # nothing about the other. An unknown cookie (text fallback, no right to enter) says nothing either way.
    return delta.cookie is None or head.cookie is None or delta.cookie == head.cookie
