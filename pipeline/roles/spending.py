"""What all our processes together use, over the last minute: beside the budget in `status`. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from pipeline.model.netns import BudgetRow, UsageRow

_WINDOW_S = 60.0


class Spending:
    """Adds up measurements. `budget_percent`: what may be used, in percent of one core."""

    def __init__(self, budget_percent: float, now_s: float) -> None:
        self._budget_percent = budget_percent
        self._measured_s = now_s
        self._own_cpu_s = 0.0
        # CPU seconds used in each period, and when that ended.
        self._periods: deque[tuple[float, float]] = deque([(now_s, 0.0)])

    def add(self, usage: Iterable[UsageRow], own_pid: int, own_cpu_s: float, now_s: float) -> BudgetRow:
        """A measurement that covers the time since the one before. `own_cpu_s`: of the process `own_pid`, instead of
        what was measured, which has query work in it; so far."""
        took_s = now_s - self._measured_s
        others = sum(row.cpu_percent for row in usage if row.pid != own_pid) / 100 * took_s
        self._periods.append((now_s, others + own_cpu_s - self._own_cpu_s))
        self._measured_s, self._own_cpu_s = now_s, own_cpu_s
        # The first one kept is where the window begins: what was used before its end is not in it.
        while len(self._periods) > 2 and now_s - self._periods[0][0] > _WINDOW_S:
            self._periods.popleft()
        used_s = sum(used for _, used in list(self._periods)[1:])
        window_s = now_s - self._periods[0][0]
        return BudgetRow(self._budget_percent, round(100 * used_s / window_s, 3) if window_s > 0 else 0.0)
