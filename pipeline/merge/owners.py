"""Who owns a socket that several processes hold: the order of its holders, the first of them the primary.

Not pid 1 if there is another: with socket activation it holds everybody's listeners. Of a listener the oldest
process: the one that bound it, not a prefork child. Of anything else the youngest: the child that inetd forked to
serve it, not the parent that is about to close its copy. Of those that started in one clock tick the pid decides which
is older, as pids are given out in order, until they begin again. Then the lowest descriptor.

Who owns a socket that no process holds: of a connection that waits to be accepted, the holders of the listener that it
came to (pending); of one that its process has closed, the one that owned it last (last).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from typing import NamedTuple

from pipeline.model.address import V4_MAPPED_PREFIX

_V6_ANY = bytes(16)
_V4_ANY = V4_MAPPED_PREFIX + bytes(4)


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


class Listener(NamedTuple):
    """A listening TCP socket of one namespace and port. `local_ip` in the 16-byte form; `device`: the one it is bound
    to, or None."""

    inode: int
    local_ip: bytes
    device: str | None


def listeners_of(local_ip: bytes, device: str | None, listeners: Iterable[Listener]) -> list[Listener]:
    """Which of the listeners on its port a connection to `local_ip` came to, where it is bound to `device`: one, or
    several with one address that share the port (SO_REUSEPORT), or none. Source: __inet_lookup_listener() and
    compute_score(), net/ipv4/inet_hashtables.c: the address itself before a wildcard, 0.0.0.0 before ::, then one that
    is bound to the device before one that is not."""
    best: list[Listener] = []
    best_score = (0, False)
    for listener in listeners:
        score = (_address_score(local_ip, listener.local_ip), listener.device is not None)
        if not score[0] or listener.device not in (None, device):
            continue
        if score > best_score:
            best, best_score = [listener], score
        elif score == best_score:
            best.append(listener)
    return best


def waits_at(
    listeners: Collection[Listener], processes_of: Callable[[int], Set[tuple[int, int]]]
) -> int | None:
    """The inode of the listener whose holders own what waits at one of these. Of several that share a port, any may
    get the connection: they are one only where the same processes, by `processes_of` its inode, hold them all."""
    if len({frozenset(processes_of(one.inode)) for one in listeners}) != 1:
        return None
    return min(one.inode for one in listeners)


def _address_score(local_ip: bytes, listening_ip: bytes) -> int:
    if listening_ip == local_ip:
        return 3
    if listening_ip == _V4_ANY and local_ip.startswith(V4_MAPPED_PREFIX):
        return 2
    # One on :: takes IPv4 too, unless IPV6_V6ONLY, which no table tells.
    return int(listening_ip == _V6_ANY)


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
    return (
        "started in the same clock tick with a higher pid: later"
        if listening
        else "started in the same clock tick with a lower pid: earlier"
    )


def _rank(holder: Holder, listening: bool) -> tuple[bool, int, int, int, int]:
    pid, start_ticks, fd, reporter, _ = holder
    return (
        (pid == 1, start_ticks, pid, fd, reporter)
        if listening
        else (pid == 1, -start_ticks, -pid, fd, reporter)
    )
