"""Network namespaces, as discovery finds them and as the roster lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

from pipeline.model.process import Task

NetnsInode = NewType("NetnsInode", int)


@dataclass(frozen=True, slots=True)
class Netns:
    """One namespace at one moment. `names` and `mounts` run in parallel, sorted by name.

    `held`: where there is neither a mount nor a task, paths of the descriptors that keep it alive.
    """

    inode: NetnsInode
    names: tuple[str, ...]
    mounts: tuple[str, ...]
    tasks: frozenset[Task]
    held: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The ways in that need no task, for open_netns."""
        return self.mounts or self.held


class RosterRow(NamedTuple):
    """What the supervisor says of one namespace. `checked_at_s`: CLOCK_MONOTONIC of the gate's last proof that
    nothing changed since the worker's last look. `state`: walking, restarting, gone."""

    netns: int
    names: list[str]
    worker_pid: int
    life: int
    state: str
    segment: str
    checked_at_s: float


class WorkerRow(NamedTuple):
    """One process of the pipeline, for `status`. `role`: supervisor, netns, aggregator, ..."""

    role: str
    pid: int
    netns: list[int]
    state: str
    restarts: int
    cpu_share: float


class UsageRow(NamedTuple):
    """What one of our processes uses, as measured. `cpu_percent`: of one core, since the measurement before.
    `pss_bytes`: its share of memory, pages shared by n processes counting 1/n; None where it may not be read."""

    pid: int
    cpu_percent: float
    rss_bytes: int
    pss_bytes: int | None


class BudgetRow(NamedTuple):
    """What all our processes may use and did use over the last minute, query work left out, in percent of one core."""

    cpu_percent: float
    used_percent: float
