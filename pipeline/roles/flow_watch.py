"""The conntrack worker from the supervisor's side: one child, and which namespaces it is to watch."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

from pipeline.board import DUMP_STARTED_NS, Slot
from pipeline.model.netns import Netns
from pipeline.procfs.ns import ways_into
from pipeline.procfs.root import ProcRoot
from pipeline.roles.single import Single
from pipeline.segment import InstanceFolder, flows_segment

_log = logging.getLogger(__name__)

ROLE = "conntrack"
# Of the budget; what it does not use is the workers'. By default 2.5 % of a core: 2,000 flows that begin and end each
# second take 2.
_BUDGET_PART = 0.5
# As for the netns workers: how long it may be inside a dump, and how long where the namespace is gone.
_DUMP_LIMIT_S = 5.0
_GONE_DUMP_LIMIT_S = 0.5


@dataclass(slots=True)
class _Watched:
    netns: Netns
    ways: list[str]
    stirred_s: float = float("-inf")


class FlowWatch:
    """Told what discovery found, as the fleet is; its caller calls `tend` often."""

    def __init__(
        self, single: Single, slot: Slot, folder: InstanceFolder, root: ProcRoot, budget_cpu: float,
        idle_interval_s: float,
    ) -> None:  # fmt: skip
        """`budget_cpu`: of the whole pipeline, in CPU seconds per second. `idle_interval_s`: as in `[conntrack]`."""
        self.single = single
        self._slot = slot
        self._folder = folder
        self._root = root
        self._share = budget_cpu * _BUDGET_PART
        self._idle_interval_s = idle_interval_s
        self._watched: dict[int, _Watched] = {}
        self._lives = itertools.count(1)
        self._killed_pid = 0

    def add(self, netns: Netns, now_s: float) -> None:
        """A namespace that appeared."""
        watched = self._watched[netns.inode] = _Watched(netns, ways_into(self._root, netns))
        if self.single.child.control is not None:
            self.single.tell(self._assignment(watched), now_s)

    def update(self, netns: Netns, now_s: float) -> None:
        """Its tasks or its ways in changed."""
        watched = self._watched[netns.inode]
        before, watched.netns, watched.ways = watched.ways, netns, ways_into(self._root, netns)
        if watched.ways != before:
            self.single.tell({"op": "ways", "netns": netns.inode, "ways": watched.ways}, now_s)

    def stir(self, inodes: list[int], now_s: float) -> None:
        """Connections came or went in these: the worker asks them sooner."""
        stirred = [
            inode for inode in inodes if now_s - self._watched[inode].stirred_s >= self._idle_interval_s
        ]
        for inode in stirred:
            self._watched[inode].stirred_s = now_s
        if stirred:
            self.single.tell({"op": "stir", "netns": stirred}, now_s)

    def remove(self, inode: int, now_s: float) -> None:
        """It is gone, and so is what was said of it."""
        del self._watched[inode]
        self._folder.unlink(flows_segment(inode))
        self.single.tell({"op": "drop", "netns": inode}, now_s)
        if self._dump_age_s(now_s) > _GONE_DUMP_LIMIT_S:
            self._kill(f"is inside a dump while namespace {inode} is gone")

    def tend(self, now_s: float) -> None:
        """Starts the worker when it is due, with all that it is to watch; kills it when it is stuck."""
        if self.single.is_due(now_s):
            self.single.start(now_s)
            self.single.tell({"op": "share", "cpu": self._share}, now_s)
            for watched in self._watched.values():
                self.single.tell(self._assignment(watched), now_s)
        self.single.tend(now_s)
        if self._dump_age_s(now_s) > _DUMP_LIMIT_S:
            self._kill("is stuck inside a dump")

    def _assignment(self, watched: _Watched) -> dict[str, Any]:
        netns = watched.netns.inode
        segment = self._folder.path_of(flows_segment(netns))
        return {
            "op": "assign",
            "netns": netns,
            "life": next(self._lives),
            "segment": segment,
            "ways": watched.ways,
        }

    def _kill(self, why: str) -> None:
        child = self.single.child
        if child.pid and self._killed_pid != child.pid:
            self._killed_pid = child.pid
            _log.warning("the conntrack worker %s: killed", why)
            child.kill()

    def _dump_age_s(self, now_s: float) -> float:
        started_ns = self._slot[DUMP_STARTED_NS]
        return now_s - started_ns / 1e9 if started_ns else 0.0
