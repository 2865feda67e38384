"""Cases of a pipeline that runs and has little to do: `background`, also with eBPF, and `many-namespaces`."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

from pipeline.client import Client
from scripts.benchmarks.load import Load, helper, load, pipeline
from scripts.benchmarks.measure import Effort, Row, TreeMeter, pss_bytes, row_of_runs, tree_pss_bytes

_BACKGROUND_GOAL_PERCENT = 2.0
_EBPF_BACKGROUND_GOAL_PERCENT = 1.0
_BACKGROUND_GOAL_MB = 120.0
_MANY_SMALL = 60
_MANY_SMALL_GOAL_PERCENT = 5.0
_MANY = 500
_MANY_GOAL_PERCENT = 1.5
_MANY_GOAL_MB = 300.0
_WORKER_GOAL_MB = 3.0
# The gate reads a namespace's counters every second for a minute after the last change, and its appearing is one.
_IDLE_AFTER_S = 70.0


@dataclass(frozen=True)
class Steady:
    """What a running program costs: percent of one core, and bytes of memory by pid."""

    cpu_percent: float
    pss_bytes: dict[int, int]
    by_role: dict[str, float]

    @property
    def total_mb(self) -> float:
        return sum(self.pss_bytes.values()) / 1e6


def _measure(pid: int, effort: Effort, settle_s: float, roles: dict[int, str]) -> Steady:
    """Waits until it has settled, then measures."""
    time.sleep(settle_s)
    meter = TreeMeter(pid)
    began_s = time.monotonic()
    time.sleep(effort.measure_s)
    used_cpu_s, took_s = meter.used_cpu_s(), time.monotonic() - began_s
    by_role: dict[str, float] = {}
    for member, used in meter.by_process().items():
        role = roles.get(member, "other")
        by_role[role] = by_role.get(role, 0.0) + 100 * used / took_s
    return Steady(100 * used_cpu_s / took_s, tree_pss_bytes(pid), by_role)


def _measure_pipeline(
    made: Load, namespaces: int, effort: Effort, settle_s: float, workers: list[float] | None = None,
    ebpf: str = "off",
) -> Steady:  # fmt: skip
    """Of a pipeline of its own; appends the memory of its netns workers, in MB, to `workers`."""
    with pipeline(made.pattern, namespaces, ebpf=ebpf) as running:
        with Client(running.runtime_dir) as client:
            roles = {row["pid"]: row["role"] for row in client.status()["workers"]}
        steady = _measure(running.pid, effort, settle_s, roles)
        if workers is not None:
            workers += [steady.pss_bytes.get(pid, 0) / 1e6 for pid, role in roles.items() if role == "netns"]
        return steady


def _measure_procspy(inodes: list[int], effort: Effort) -> Steady:
    command = [sys.executable, "-m", "scripts.benchmarks.procspy", "--background", *map(str, inodes)]
    with helper(command) as process:
        time.sleep(effort.settle_s)
        meter = TreeMeter(process.pid)
        began_s = time.monotonic()
        # Its memory goes up and down with each pass: the most of what was seen counts, as it is what it needs.
        most = 0
        while time.monotonic() < began_s + effort.measure_s:
            time.sleep(0.5)
            most = max(most, pss_bytes(process.pid))
        return Steady(100 * meter.used_cpu_s() / (time.monotonic() - began_s), {process.pid: most}, {})


def _roles_note(runs: list[Steady]) -> str:
    """CPU by role of the last run."""
    return ", ".join(f"{role} {percent:.2f} %" for role, percent in sorted(runs[-1].by_role.items()))


def background(effort: Effort) -> list[Row]:
    """One large namespace where nothing changes, watched."""
    return _background("background", effort, "off", _BACKGROUND_GOAL_PERCENT)


def ebpf_background(effort: Effort) -> list[Row]:
    """One large namespace where nothing changes, watched with eBPF."""
    return _background("ebpf-background", effort, "require", _EBPF_BACKGROUND_GOAL_PERCENT)


def _background(case: str, effort: Effort, ebpf: str, goal_percent: float) -> list[Row]:
    processes, sockets = (4, 50) if effort.quick else (20, 500)
    with load(1, processes, sockets) as made:
        ours = [_measure_pipeline(made, 1, effort, effort.settle_s, ebpf=ebpf) for _ in range(effort.runs)]
        procspy = [_measure_procspy(made.inodes, effort) for _ in range(effort.runs)]
    what = f"{processes} processes x {sockets} sockets in one namespace, steady"
    return [
        row_of_runs(
            case, f"{what}: CPU", "% of a core", [one.cpu_percent for one in ours],
            [one.cpu_percent for one in procspy], peer_name="procspy", goal=goal_percent,
            note=_roles_note(ours),
        ),
        row_of_runs(
            case, f"{what}: memory of all processes", "MB", [one.total_mb for one in ours],
            [one.total_mb for one in procspy], peer_name="procspy", goal=_BACKGROUND_GOAL_MB,
        ),
    ]  # fmt: skip


def many_namespaces(effort: Effort) -> list[Row]:
    """Many namespaces where nothing happens, watched."""
    counts = [4] if effort.quick else [_MANY_SMALL, *([_MANY] if effort.full else [])]
    return [row for count in counts for row in _many(count, effort)]


def _many(count: int, effort: Effort) -> list[Row]:
    workers: list[float] = []
    with load(count, 1, 3, 3) as made:
        settle_s = effort.settle_s if effort.quick else _IDLE_AFTER_S
        ours = [_measure_pipeline(made, count, effort, settle_s, workers) for _ in range(effort.runs)]
        procspy = [_measure_procspy(made.inodes, effort)]
    goal_percent = _MANY_GOAL_PERCENT if count > _MANY_SMALL else _MANY_SMALL_GOAL_PERCENT
    what, case = f"{count} idle namespaces", "many-namespaces"
    processes = f"{len(workers) // effort.runs} workers"
    return [
        row_of_runs(
            case, f"{what}: CPU", "% of a core", [one.cpu_percent for one in ours],
            [one.cpu_percent for one in procspy], peer_name="procspy", goal=goal_percent, note=_roles_note(ours),
        ),
        row_of_runs(
            case, f"{what}: memory of all processes", "MB", [one.total_mb for one in ours],
            [one.total_mb for one in procspy], peer_name="procspy", goal=_MANY_GOAL_MB if count > _MANY_SMALL else None,
        ),
        Row(case, f"{what}: memory of a worker, mean", "MB", statistics.mean(workers), note=processes),
        Row(case, f"{what}: memory of a worker, max", "MB", max(workers), goal=_WORKER_GOAL_MB),
    ]  # fmt: skip
