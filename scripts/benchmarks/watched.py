"""A pipeline watched while it runs: CPU of each minute, memory of each process, losses, and how fresh it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.client import Client
from scripts.benchmarks.growth import slope
from scripts.benchmarks.load import Pipeline
from scripts.benchmarks.measure import TreeMeter, tree_pss_bytes

_SAMPLE_S = 10.0
_MINUTE_S = 60.0


@dataclass
class Watched:
    """`minutes`: CPU of each whole minute, in percent of one core; `by_role`: of the last one. `pss`: (seconds, bytes),
    of each process that was there from the first sample to the last. `roles` by pid. `status`: as it was at the end."""

    minutes: list[float] = field(default_factory=list)
    by_role: dict[str, float] = field(default_factory=dict)
    pss: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    ages_p95_s: list[float] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)

    def slopes(self) -> list[tuple[float, str]]:
        """(bytes a minute, role) of each process, the fastest growing last."""
        found = []
        for pid, samples in self.pss.items():
            seconds, sizes = zip(*samples, strict=True)
            found.append((60 * slope(seconds, sizes), self.roles.get(pid, "other")))
        return sorted(found)

    def cpu(self) -> str:
        """The minutes in words."""
        minutes = ", ".join(f"{percent:.1f}" for percent in self.minutes)
        roles = ", ".join(
            f"{role} {percent:.1f} %" for role, percent in sorted(self.by_role.items()) if percent >= 0.05
        )
        return f"minute by minute: {minutes} %; in the last: {roles}"


def watch(running: Pipeline, duration_s: float) -> Watched:
    """Samples every 10 s. Processes that end or begin meanwhile have no slope."""
    watched = Watched()
    with Client(running.runtime_dir, timeout_s=30.0) as client:
        watched.roles = {row["pid"]: row["role"] for row in client.status()["workers"]} | {
            running.pid: "main"
        }
        began_s = minute_s = time.monotonic()
        meter = TreeMeter(running.pid)
        while (now_s := time.monotonic()) < began_s + duration_s:
            _note_memory(watched, running.pid, now_s - began_s)
            watched.status = client.status()
            watched.ages_p95_s.append(watched.status["age_p95_s"] or 0.0)
            time.sleep(max(0.0, _SAMPLE_S - (time.monotonic() - now_s)))
            if (spent_s := time.monotonic() - minute_s) >= _MINUTE_S:
                watched.minutes.append(100 * meter.used_cpu_s() / spent_s)
                watched.by_role = dict.fromkeys(watched.roles.values(), 0.0)
                for pid, used_s in meter.by_process().items():
                    watched.by_role[watched.roles.get(pid, "main")] += 100 * used_s / spent_s
                meter, minute_s = TreeMeter(running.pid), time.monotonic()
    return watched


def _note_memory(watched: Watched, pid: int, at_s: float) -> None:
    sizes = tree_pss_bytes(pid)
    if not watched.pss:
        watched.pss = {member: [] for member in sizes}
    watched.pss = {
        member: [*known, (at_s, sizes[member])] for member, known in watched.pss.items() if member in sizes
    }
