"""Meters: CPU time of a command or of a running process tree, and its memory; and the rows that come of them."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
SOCKSCOPE = [sys.executable, "-m", "pipeline.cli"]


@dataclass(frozen=True)
class Effort:
    """How thorough a run is. `minutes`: of the case `endurance`. `quick` makes loads and times small: it shows that all
    works, not what it costs."""

    runs: int = 3
    quick: bool = False
    full: bool = False
    minutes: float = 4.0

    @property
    def settle_s(self) -> float:
        return 3.0 if self.quick else 15.0

    @property
    def measure_s(self) -> float:
        return 4.0 if self.quick else 30.0


@dataclass
class Row:
    """One figure. `goal`: the most it should be, in `unit`. `runs`: our figure in each run, `sockscope` their median.

    `peer`: the other program's figure in the same run, None where there is none to compare with.
    """

    case: str
    what: str
    unit: str
    sockscope: float
    peer: float | None = None
    peer_name: str = ""
    goal: float | None = None
    runs: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the peer's figure is ours."""
        return self.peer / self.sockscope if self.peer is not None and self.sockscope else None

    def to_json(self) -> dict[str, Any]:
        met = None if self.goal is None else self.sockscope <= self.goal
        return asdict(self) | {"ratio": self.ratio, "goal_met": met}


def row_of_runs(
    case: str, what: str, unit: str, ours: Sequence[float], peer: Sequence[float] = (), **more: Any
) -> Row:
    """The medians of some runs as a row."""
    theirs = statistics.median(peer) if peer else None
    return Row(case, what, unit, statistics.median(ours), theirs, runs=list(ours), **more)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` % of them do not exceed. Raises: ValueError for none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def clean_environment() -> dict[str, str]:
    """The environment without settings of the caller's, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SOCKSCOPE_")}


@dataclass(frozen=True)
class Ran:
    """What a finished command used, with its descendants: CPU seconds, and the largest resident set of one process."""

    cpu_s: float
    peak_bytes: int


def run_command(command: Sequence[str]) -> Ran:
    """Runs it to its end with its output thrown away. Raises: CalledProcessError."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=clean_environment())
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Ran(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


class TreeMeter:
    """The CPU time that a process and its descendants use from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = {member: cpu_s(member) for member in tree_of(pid)}
        self._began_reaped_s = self._reaped_s()

    def used_cpu_s(self) -> float:
        """Descendants that ended meanwhile and were waited for by the first process are included."""
        now = self.by_process()
        gone_before_s = sum(value for member, value in self._began.items() if member not in now)
        return sum(now.values()) + self._reaped_s() - self._began_reaped_s - gone_before_s

    def by_process(self) -> dict[int, float]:
        """Of those that live now: CPU seconds by pid."""
        return {member: cpu_s(member) - self._began.get(member, 0.0) for member in tree_of(self._pid)}

    def _reaped_s(self) -> float:
        times = psutil.Process(self._pid).cpu_times()
        return float(times.children_user + times.children_system)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far; 0 where it has ended. In nanoseconds where the kernel keeps run times
    (/proc/PID/task/TID/schedstat): clock ticks of 10 ms hide what an idle worker uses."""
    try:
        total_ns = 0
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
        return total_ns / 1e9
    except FileNotFoundError:
        pass
    try:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except psutil.NoSuchProcess:
        return 0.0


def pss_bytes(pid: int) -> int:
    """Its memory, pages shared by n processes counting 1/n each; 0 where it has ended."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def tree_pss_bytes(pid: int) -> dict[int, int]:
    """Of each process of the tree."""
    return {member: pss_bytes(member) for member in tree_of(pid)}
