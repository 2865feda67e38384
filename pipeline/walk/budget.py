"""The CPU budget: how it is shared out, and how a worker keeps to its share. Pure: told the time and what was spent."""

from __future__ import annotations

from collections.abc import Sequence

# How much unused share may be saved up: a look after a quiet minute is not delayed by what it costs.
BURST_S = 10.0
# The part of the budget that is shared out equally whatever anybody needs: nobody starves.
_EQUAL_PART = 0.1


class CpuBudget:
    """Lets `share` CPU seconds be spent per second; what was overspent delays the next work.

    Work is charged after it was done, since its price is only known then: one look or block may overshoot, and
    the debt is paid off before the next.
    """

    def __init__(self, share: float, now_s: float) -> None:
        self._share = share
        self._saved_cpu_s = share * BURST_S
        self._at_s = now_s

    def set_share(self, share: float, now_s: float) -> None:
        """From now on; a debt stays the CPU time it was and is paid off at the new rate."""
        self._advance(now_s)
        self._share = share

    def charge(self, cpu_s: float, now_s: float) -> None:
        self._advance(now_s)
        self._saved_cpu_s -= cpu_s

    def ready_s(self, now_s: float) -> float:
        """The earliest monotonic time from `now_s` on at which work may be done."""
        return now_s + self.debt_cpu_s(now_s) / self._share

    def debt_cpu_s(self, now_s: float) -> float:
        """The CPU time that was overspent; 0 within the budget."""
        self._advance(now_s)
        return max(0.0, -self._saved_cpu_s)

    def _advance(self, now_s: float) -> None:
        earned = max(0.0, now_s - self._at_s) * self._share
        self._saved_cpu_s = min(self._saved_cpu_s + earned, self._share * BURST_S)
        self._at_s = now_s


def share_out(total: float, needs: Sequence[float]) -> list[float]:
    """The share of each of `needs` (CPU seconds per second): small needs are met, the greatest divide the rest.

    Everyone gets an equal part of a tenth of `total` in any case. What nobody needs is spread equally, so that a
    namespace that wakes up has something to start with. The shares add up to `total`.
    """
    if not needs:
        return []
    floor = total * _EQUAL_PART / len(needs)
    left = total - floor * len(needs)
    shares = [floor] * len(needs)
    waiting = sorted(range(len(needs)), key=lambda index: needs[index])
    for position, index in enumerate(waiting):
        part = min(max(0.0, needs[index] - floor), left / (len(waiting) - position))
        shares[index] += part
        left -= part
    return [share + left / len(needs) for share in shares]
