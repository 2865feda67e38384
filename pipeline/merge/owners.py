"""Who owns a socket that several processes hold: the order of its holders, the first of them the primary.

Not pid 1 if there is another: with socket activation it holds everybody's listeners. Of a listener the oldest
process: the one that bound it, not a prefork child. Of anything else the youngest: the child that inetd forked to
serve it, not the parent that is about to close its copy. Then the lowest pid, then the lowest descriptor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Holder(NamedTuple):
    """One descriptor on a socket. `reporter`: the namespace inode whose worker saw it; `seen_s`: CLOCK_MONOTONIC of
    the snapshot that first told of it."""

    pid: int
    start_ticks: int
    fd: int
    reporter: int
    seen_s: float


def ordered(holders: Iterable[Holder], listening: bool) -> list[Holder]:
    """The holders, primary first; a descriptor that two workers report comes once."""
    unique: dict[tuple[int, int, int], Holder] = {}
    for holder in sorted(holders, key=lambda held: _rank(held, listening)):
        unique.setdefault((holder[0], holder[1], holder[2]), holder)
    return list(unique.values())


def primary(holders: list[Holder], listening: bool) -> Holder:
    """The first of `ordered(holders)`, which must not be empty, without sorting the rest."""
    if len(holders) == 1:
        return holders[0]
    return min(holders, key=lambda held: _rank(held, listening))


def reason(before: Holder | None, holder: Holder, listening: bool) -> str:
    """Why `holder` comes after `before` in the order, in words; None: it comes first."""
    if before is None:
        return "first"
    if holder[:2] == before[:2]:
        return "the same process, a higher descriptor"
    if holder.pid == 1:
        return "pid 1 comes last, it holds what it hands on"
    if holder.start_ticks != before.start_ticks:
        return (
            "started later: the oldest process bound it"
            if listening
            else "started earlier: the youngest uses it"
        )
    return "started at the same time, a higher pid"


def _rank(holder: Holder, listening: bool) -> tuple[bool, int, int, int, int]:
    pid, start_ticks, fd, reporter, _ = holder
    return (pid == 1, start_ticks if listening else -start_ticks, pid, fd, reporter)
