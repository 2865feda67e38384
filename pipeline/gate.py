"""Which namespaces need a look: a few counters of the kernel, much cheaper than dumping the tables.

A dump walks the host-wide TCP hash, so even an empty namespace's costs 0.5 to 40 ms; these counters cost 0.05 ms.
They move with every open and close. State changes like ESTABLISHED to CLOSE_WAIT move none of these; they take a
segment, though, and segments are counted. So a namespace with sockets is looked at once in `full_interval_s`, but for
one that has been quiet for a minute, has no UDP (connecting it moves nothing) and has neither sent nor received a
segment since the last look: that one is as it was. Nothing counts accept(): a connection that waits in a listener's
queue for more than a minute, and is then accepted in silence, is shown as waiting for up to six such intervals, after
which a still namespace is looked at, too, if anything waits there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pipeline.errors import Denied, Malformed, Vanished
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.snmp import SnmpTcp, read_snmp_tcp
from pipeline.procfs.sockstat import Sockstat6, read_sockstat, read_sockstat6

# A namespace that changed within this time is checked every `interval_s`, others every `idle_interval_s`.
_BUSY_S = 60.0
# One that was there already when we started is quiet after so long.
_SETTLING_S = 5.0
# A look in so many full intervals, however still a namespace is.
_STILL_INTERVALS = 6
# While the number of a namespace's sockets stays as it is, those over IPv6 are counted again at every so manieth check.
_SIX_CHECKS = 6
_TRIES = 3


class Counters(NamedTuple):
    """What the gate compares; all of one namespace (orphans are not: the kernel counts them host-wide)."""

    tcp: SnmpTcp
    tcp_inuse: int
    tcp_tw: int
    udp_inuse: int

    @property
    def of_sockets(self) -> tuple[int, ...]:
        """What moves when a socket comes or goes: all but the segments."""
        return (*self.tcp[:3], *self[1:])

    @property
    def is_empty(self) -> bool:
        """No socket at all, so an unchanged namespace need not be dumped to know its tables."""
        return not (self.tcp_inuse or self.tcp_tw or self.udp_inuse or self.tcp.curr_estab)


class Verdict(Enum):
    LOOK = "look"
    REFRESH = "refresh"  # proven, but a look is due all the same
    UNCHANGED = "unchanged"  # proven: what the last look showed still holds
    WAIT = "wait"  # not proven, but a look is not due


@dataclass(frozen=True, slots=True)
class GateSettings:
    """`[tables]`, in seconds."""

    interval_s: float = 1.0
    idle_interval_s: float = 5.0
    full_interval_s: float = 10.0


@dataclass(slots=True)
class _Gated:
    next_check_s: float
    changed_s: float
    looked_s: float = -1e9
    counters: Counters | None = None
    # As they were when the last look was ordered.
    at_look: Counters | None = None

    def is_still(self, counters: Counters) -> bool:
        """Whether these prove that the tables are as at the last look."""
        return counters == self.at_look and not counters.udp_inuse


class Gate:
    """Pure: decides from counters and time. Namespaces are checked in turn, spread over their interval."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._gated: dict[int, _Gated] = {}

    def add(self, netns: int, now_s: float, *, is_settled: bool = False) -> None:
        """A new namespace: due at once, and busy at first; one that `is_settled` soon counts as quiet, unless its
        counters move."""
        self._gated[netns] = _Gated(now_s, now_s - (_BUSY_S - _SETTLING_S if is_settled else 0.0))

    def remove(self, netns: int) -> None:
        self._gated.pop(netns, None)

    def members_changed(self, netns: int, now_s: float) -> None:
        """A process came or went: it may hold sockets that exist already, which moves no counter."""
        gated = self._gated[netns]
        gated.changed_s = gated.next_check_s = now_s
        gated.counters = None

    def busy(self, now_s: float) -> set[int]:
        """The namespaces that changed within the last minute."""
        return {netns for netns, gated in self._gated.items() if now_s - gated.changed_s < _BUSY_S}

    def due(self, now_s: float) -> list[int]:
        """The namespaces to check now."""
        return [netns for netns, gated in self._gated.items() if gated.next_check_s <= now_s]

    def check(self, netns: int, counters: Counters | None, now_s: float) -> Verdict:
        """What follows from a namespace's counters (None: they cannot be read), and sets the next check."""
        settings, gated = self._settings, self._gated[netns]
        before, gated.counters = gated.counters, counters
        moved = counters is None or before is None or counters.of_sockets != before.of_sockets
        if moved and counters is not None and gated.at_look is not None:
            gated.changed_s = now_s
        busy = now_s - gated.changed_s < _BUSY_S
        gated.next_check_s += settings.interval_s if busy else settings.idle_interval_s
        if gated.next_check_s <= now_s:
            gated.next_check_s = now_s + (settings.interval_s if busy else settings.idle_interval_s)
        age_s = now_s - gated.looked_s
        if counters is None:
            still, due = False, age_s >= (settings.interval_s if busy else settings.idle_interval_s)
        elif moved:
            still, due = False, True
        else:
            still = counters.is_empty or (not busy and gated.is_still(counters))
            intervals = _STILL_INTERVALS if still else 1
            due = not counters.is_empty and age_s >= settings.full_interval_s * intervals
        if not due:
            return Verdict.UNCHANGED if still else Verdict.WAIT
        gated.looked_s, gated.at_look = now_s, counters
        return Verdict.REFRESH if still else Verdict.LOOK


@dataclass(slots=True)
class _Six:
    used: int
    counted: Sockstat6
    left: int


class CounterReader:
    """Reads the counters of the same namespaces again and again.

    The file of IPv6, a third of the price, is read only when the number of sockets of all families changed, and at
    every sixth check. Missed until then: a listener or a UDP socket over IPv6 that came while some other socket went
    that is neither TCP nor UDP.
    """

    def __init__(self) -> None:
        self._six: dict[int, _Six] = {}

    def read(self, netns: int, root: ProcRoot, tasks: Iterable[Task]) -> Counters | None:
        """The counters of namespace `netns`, read through the first few of its `tasks` that are alive; None if no one
        is."""
        for task, _ in zip(tasks, range(_TRIES), strict=False):
            try:
                four, tcp = read_sockstat(root, task), read_snmp_tcp(root, task)
                six = self._read_six(netns, four.used, root, task)
            except (Vanished, Denied, Malformed):
                continue  # the look that follows meets the same and counts it
            return Counters(tcp, four.tcp_inuse + six.tcp_inuse, four.tcp_tw, four.udp_inuse + six.udp_inuse)
        return None

    def forget(self, netns: int) -> None:
        """It is gone."""
        self._six.pop(netns, None)

    def _read_six(self, netns: int, used: int, root: ProcRoot, task: Task) -> Sockstat6:
        known = self._six.get(netns)
        if known is not None and known.used == used and known.left:
            known.left -= 1
            return known.counted
        counted = read_sockstat6(root, task)
        self._six[netns] = _Six(used, counted, _SIX_CHECKS - 1)
        return counted


def read_counters(root: ProcRoot, tasks: Iterable[Task]) -> Counters | None:
    """The counters of the namespace of `tasks`, read once."""
    return CounterReader().read(0, root, tasks)
