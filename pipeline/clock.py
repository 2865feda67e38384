"""The clock, as a parameter: the system's, or one that tests move by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """All in seconds. `monotonic_s` is CLOCK_MONOTONIC: comparable between processes of one host."""

    def monotonic_s(self) -> float: ...
    def wall_s(self) -> float: ...
    def cpu_s(self) -> float: ...


class SystemClock:
    """The kernel's clocks. `cpu_s` is the CPU time of the whole calling process, user and system."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def cpu_s(self) -> float:
        return time.process_time()


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until a test moves it."""

    now_s: float = 0.0
    wall_offset_s: float = 1_700_000_000.0
    used_cpu_s: float = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s + self.wall_offset_s

    def cpu_s(self) -> float:
        return self.used_cpu_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
