"""How the cost of one reading grows with each thing that there may be more of, ten times as many at the most."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.benchmarks.load import Load, load
from scripts.benchmarks.measure import SOCKSCOPE, Effort, Row, run_command

_STEPS = (1, 3, 10)


@dataclass(frozen=True)
class _Axis:
    """`more(n)`: the load (namespaces, processes, sockets, other descriptors) with n times as many of `what`, and how
    many that are in all."""

    what: str
    more: Callable[[int], tuple[tuple[int, int, int, int], int]]


_AXES = (
    _Axis("process of 20 sockets and 20 other descriptors", lambda n: ((1, 30 * n, 20, 20), 30 * n)),
    _Axis("descriptor that is no socket", lambda n: ((1, 10, 20, 300 * n), 3000 * n)),
    _Axis("socket", lambda n: ((1, 10, 100 * n, 20), 1000 * n)),
    _Axis(
        "namespace of one process, 20 sockets and 20 other descriptors",
        lambda n: ((10 * n, 1, 20, 20), 10 * n),
    ),
)


def growth(effort: Effort) -> list[Row]:
    """What one process, descriptor, socket or namespace more costs a snapshot, by a line through 1, 3 and 10 times."""
    return [_grow(axis, effort) for axis in _AXES]


def _grow(axis: _Axis, effort: Effort) -> Row:
    steps = _STEPS[:2] if effort.quick else _STEPS
    counts, costs_s = [], []
    for step in steps:
        (namespaces, processes, sockets, other_fds), count = axis.more(step)
        with load(namespaces, processes, sockets, other_fds) as made:
            counts.append(count)
            costs_s.append(_cpu_s(made, effort))
    points = list(zip(counts, costs_s, strict=True))
    shown = ", ".join(f"{count}: {1000 * cost:.1f} ms" for count, cost in points)
    each_s = [(cost - less) / (more - fewer) for (fewer, less), (more, cost) in itertools.pairwise(points)]
    bends = (
        f"; the later ones cost {each_s[-1] / each_s[0]:.2f} times as much as the first" if each_s[1:] else ""
    )
    return Row(
        "growth", f"per {axis.what}", "us CPU", 1e6 * slope(counts, costs_s), runs=costs_s, note=f"{shown}{bends}",
    )  # fmt: skip


def _cpu_s(made: Load, effort: Effort) -> float:
    """The median of some snapshots."""
    command = [*SOCKSCOPE, "snapshot", "--json", "--netns", made.pattern]
    return statistics.median(run_command(command).cpu_s for _ in range(max(5, effort.runs)))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line nearest to the points, by least squares."""
    return statistics.linear_regression(xs, ys).slope
