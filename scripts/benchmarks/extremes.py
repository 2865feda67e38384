"""The case `extremes`: hosts of odd shapes with the default budget: is it kept, and how fresh is what is shown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import Config
from scripts.benchmarks.load import load, pipeline
from scripts.benchmarks.measure import Effort, Row
from scripts.benchmarks.watched import watch

_SETTLE_S = 90.0
_WATCH_S = 130.0
_BUDGET_SLACK = 1.2


@dataclass(frozen=True)
class _Shape:
    """`parts`: of loads, each (namespaces, processes, sockets, other descriptors)."""

    what: str
    parts: tuple[tuple[int, int, int, int], ...]

    @property
    def namespaces(self) -> int:
        return sum(part[0] for part in self.parts)


_SHAPES = (
    _Shape("one process with 18,000 descriptors", ((1, 1, 2, 18_000),)),
    _Shape("5,000 processes with 10 descriptors", ((5, 1000, 2, 8),)),
    _Shape("500 namespaces", ((500, 1, 3, 3),)),
    _Shape("50,000 sockets in one namespace, 200 idle ones", ((1, 10, 5000, 0), (200, 1, 3, 3))),
)
_QUICK_SHAPES = (_Shape("one process with 500 descriptors", ((1, 1, 2, 500),)),)


def extremes(effort: Effort) -> list[Row]:
    """Very many descriptors, processes, namespaces or sockets: CPU against the budget, age of what is shown."""
    return [row for shape in (_QUICK_SHAPES if effort.quick else _SHAPES) for row in _measure(shape, effort)]


def _measure(shape: _Shape, effort: Effort) -> list[Row]:
    settle_s, watch_s = (effort.settle_s, effort.measure_s) if effort.quick else (_SETTLE_S, _WATCH_S)
    with _loads(shape) as patterns, pipeline(patterns, shape.namespaces) as running:
        time.sleep(settle_s)
        watched = watch(running, watch_s)
    status, budget = watched.status, Config().budget.cpu_percent
    rows = [
        Row(
            "extremes", f"{shape.what}: age of the namespaces, p95, at worst", "s", max(watched.ages_p95_s),
            note=f"at the end: p50 {status['age_p50_s']:.1f} s, max {status['age_max_s']:.1f} s, "
            f"{status['namespaces']['stale']} of {status['namespaces']['total']} stale",
        ),
        Row(
            "extremes", f"{shape.what}: since the last pass over a namespace's descriptors, max", "s",
            status["owner_age_max_s"] or float("inf"),
        ),
        Row("extremes", f"{shape.what}: memory of all processes", "MB",
            sum(samples[-1][1] for samples in watched.pss.values()) / 1e6),
    ]  # fmt: skip
    if watched.minutes:
        costliest = Row(
            "extremes", f"{shape.what}: the costliest minute", "% of a core", max(watched.minutes),
            goal=budget * _BUDGET_SLACK, runs=watched.minutes, note=f"budget {budget:g} %; {watched.cpu()}",
        )  # fmt: skip
        rows.insert(0, costliest)
    return rows


@contextlib.contextmanager
def _loads(shape: _Shape) -> Iterator[list[str]]:
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(load(*part)).pattern for part in shape.parts]
