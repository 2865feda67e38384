"""The case `endurance`: does anything grow, and is the budget kept, while connections come and go."""

from __future__ import annotations

import time

from pipeline.config import Config
from scripts.benchmarks.load import load, pipeline
from scripts.benchmarks.measure import Effort, Row
from scripts.benchmarks.watched import watch

_CHURN = 20.0
# Caches and pools fill up at first.
_WARM_UP_S = 90.0
_GOAL_MB_A_MINUTE = 0.1
_BUDGET_SLACK = 1.2


def endurance(effort: Effort) -> list[Row]:
    """Memory of every process and CPU of every minute, 20 namespaces with 20 pairs a second replaced in each."""
    namespaces = 2 if effort.quick else 20
    minutes = 0.5 if effort.quick else effort.minutes
    with load(namespaces, 1, 51, 20, churn=_CHURN) as made, pipeline(made.pattern, namespaces) as running:
        time.sleep(effort.settle_s if effort.quick else _WARM_UP_S)
        watched = watch(running, 60 * minutes)
    what = f"{namespaces} namespaces x {_CHURN:.0f} pairs a second, {minutes:g} minutes"
    slopes = watched.slopes()
    lost = {name: watched.status["losses"].get(name, 0) for name in ("messages_dropped", "segment_full")}
    budget = Config().budget.cpu_percent
    rows = [
        Row(
            "endurance", f"{what}: memory of the process that grows fastest", "MB a minute", slopes[-1][0] / 1e6,
            goal=_GOAL_MB_A_MINUTE, runs=[one / 1e6 for one, _ in slopes],
            note=f"it is the {slopes[-1][1]}; {len(slopes)} processes, a line through a sample every 10 s",
        ),
        Row("endurance", f"{what}: generations lost", "", float(sum(lost.values())), goal=0.0),
        Row("endurance", f"{what}: age of the namespaces, p95, at worst", "s", max(watched.ages_p95_s)),
    ]  # fmt: skip
    if watched.minutes:
        worst = Row(
            "endurance", f"{what}: the costliest minute", "% of a core", max(watched.minutes),
            goal=budget * _BUDGET_SLACK, runs=watched.minutes, note=f"budget {budget:g} %; {watched.cpu()}",
        )  # fmt: skip
        rows.insert(0, worst)
    return rows
