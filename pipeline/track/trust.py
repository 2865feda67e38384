"""Whether the event tracker may still be believed. Pure: told the time and what happened.

Events only tell of changes, so one that is lost or out of order leaves a state that nothing ever puts right. Then the
tracker is stopped and started once more from a fresh initial state; if that is not enough, /proc is read for good.
"""

from __future__ import annotations

from enum import Enum

# Two failures within this time are no accident.
WINDOW_S = 60.0


class Verdict(Enum):
    """RESTART: start again, with a fresh initial state. FALL_BACK: never again; read /proc."""

    RESTART = "restart"
    FALL_BACK = "fall back"


class Trust:
    """Of one run of the pipeline. Times are CLOCK_MONOTONIC seconds, and never go back."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._failed_s: float | None = None
        self._has_begun = False
        self._is_settled = False
        self.is_lost = False

    def began(self) -> None:
        """A tracker was started."""
        self._has_begun, self._is_settled = True, False

    def settled(self) -> None:
        """Its initial state is complete."""
        self._is_settled = self._has_begun

    def failed(self, now_s: float) -> Verdict:
        """It lost events, met them in a wrong order, or ended. `is_lost` from the first FALL_BACK on."""
        again = self._failed_s is not None and now_s - self._failed_s <= self._window_s
        # One that fails before it has a state would fail again.
        if again or not self._is_settled:
            self.is_lost = True
        self._failed_s, self._is_settled = now_s, False
        return Verdict.FALL_BACK if self.is_lost else Verdict.RESTART
