"""Several snapshots of one namespace as one set of changes, so that a commit touches each row once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Connection, SocketKey
from pipeline.model.container import Container
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Snapshot
from pipeline.model.traffic import Traffic


@dataclass(slots=True)
class Change:
    """What the snapshots of one namespace add up to; `head` is the last of them.

    `base`: the rows are the whole state, what is not in them is gone. Otherwise None (False for a holding) stands for
    "gone" and absence for "as before". `closed`: what ended, also where a base comes after it; rows may be in it that
    an earlier change had.
    """

    head: Snapshot
    base: bool
    connections: dict[SocketKey, Connection | None] = field(default_factory=dict)
    processes: dict[tuple[int, int], Process | None] = field(default_factory=dict)
    holdings: dict[Holding, bool] = field(default_factory=dict)
    closed: list[ClosedConnection] = field(default_factory=list)
    # The namespace's own; None: as before.
    addresses: Sequence[bytes] | None = None
    # By id.
    containers: dict[str, Container] = field(default_factory=dict)
    traffic: dict[SocketKey, Traffic] = field(default_factory=dict)

    def add(self, snapshot: Snapshot) -> None:
        """Puts a later snapshot on top."""
        self.head = snapshot
        self.closed += snapshot.closed
        if snapshot.base or snapshot.addresses is not None:
            self.addresses = snapshot.addresses or ()
        self.containers.update((one[0], one) for one in snapshot.containers)
        if snapshot.base:
            self.base = True
            self.connections.clear()
            self.processes.clear()
            self.holdings.clear()
            self.traffic.clear()
        for key in snapshot.gone_connections:
            self.connections[key] = None
            self.traffic.pop(key, None)
        self.traffic.update((one[0], one) for one in snapshot.traffic)
        for gone in snapshot.gone_processes:
            self.processes[gone[0], gone[1]] = None
        for held in snapshot.gone_holdings:
            self.holdings[held] = False
        self.connections.update((row[0], row) for row in snapshot.connections)
        self.processes.update(((row[0], row[1]), row) for row in snapshot.processes)
        self.holdings.update(dict.fromkeys(snapshot.holdings, True))


def combine(snapshots: Iterable[Snapshot]) -> dict[int, Change]:
    """The changes per namespace inode, from snapshots that `Latest` let through, in that order."""
    changes: dict[int, Change] = {}
    for snapshot in snapshots:
        change = changes.get(snapshot.netns)
        if change is None or _another_namespace(change.head, snapshot):
            change = changes[snapshot.netns] = Change(snapshot, snapshot.base)
        change.add(snapshot)
    return changes


def _another_namespace(before: Snapshot, after: Snapshot) -> bool:
    return None not in (before.cookie, after.cookie) and before.cookie != after.cookie
