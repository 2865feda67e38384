"""How fast the paced fd walk goes. Pure: every function is told the time.

One block of file descriptors per tick; the period between ticks is adapted after each pass so that a pass
takes about `target_s`; what is left of the target is rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Pacing:
    """The settings of `[walk]`, in seconds. `late_factor`: a pass over `late_factor * target_s` is late."""

    fd_block: int = 300
    period_initial_s: float = 0.050
    period_min_s: float = 0.050
    period_max_s: float = 0.500
    target_s: float = 10.0
    late_factor: float = 1.5


class NextPass(NamedTuple):
    """What follows a pass. `rest_s` is negative where the pass took longer than its target: start at once."""

    period_s: float
    rest_s: float
    late: bool


def plan_next_pass(pacing: Pacing, period_s: float, took_s: float) -> NextPass:
    """The period and rest after a pass of `took_s` at `period_s`: period * target / took, clamped."""
    ratio = pacing.target_s / took_s if took_s > 0 else math.inf
    period = min(max(period_s * ratio, pacing.period_min_s), pacing.period_max_s)
    return NextPass(period, pacing.target_s - took_s, took_s / pacing.target_s > pacing.late_factor)


class Ticks:
    """Absolute deadlines `start + k * period`. A missed tick is skipped, never caught up with a burst.

    Relative sleeps add up the time of the work between them: 300 ms in 200 ticks.
    """

    def __init__(self, start_s: float, period_s: float) -> None:
        self._start_s = start_s
        self._period_s = period_s
        self.deadline_s = start_s

    def advance(self, now_s: float) -> float:
        """Moves to the first deadline after `now_s` (and after the last one) and returns it."""
        passed = math.floor((max(now_s, self.deadline_s) - self._start_s) / self._period_s + 1e-9)
        self.deadline_s = self._start_s + (passed + 1) * self._period_s
        return self.deadline_s


class Pacer:
    """When the next block of one namespace's walk is due: the current ticks, and the rest between passes."""

    def __init__(self, pacing: Pacing, start_s: float) -> None:
        self._pacing = pacing
        self._period_s = pacing.period_initial_s
        self._began_s = start_s
        self._ticks = Ticks(start_s, self._period_s)

    def begin(self, start_s: float) -> None:
        """Has the first pass begin at `start_s`."""
        self._began_s = start_s
        self._ticks = Ticks(start_s, self._period_s)

    @property
    def due_s(self) -> float:
        """The monotonic time of the next block."""
        return self._ticks.deadline_s

    @property
    def period_s(self) -> float:
        return self._period_s

    def block_done(self, now_s: float) -> None:
        self._ticks.advance(now_s)

    def pass_done(self, now_s: float) -> NextPass:
        """Ends a pass and plans the next one, which begins at `due_s`."""
        plan = plan_next_pass(self._pacing, self._period_s, now_s - self._began_s)
        self._period_s = plan.period_s
        self._began_s = now_s + max(0.0, plan.rest_s)
        self._ticks = Ticks(self._began_s, self._period_s)
        return plan
