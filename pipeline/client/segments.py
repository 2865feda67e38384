"""The newest snapshot of a namespace straight from shared memory: no aggregator needed, none disturbed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.codec import decode_map
from pipeline.errors import Denied, Vanished
from pipeline.model.connection import Connection
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Snapshot, fold, from_wire
from pipeline.segment import netns_of_segment, netns_segment, read_segment

SEGMENTS = "segments"


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """What the worker of one namespace published last, as it did: not joined with other namespaces.

    `head`: life, generation, times and counts. `connections`: this namespace's tables. `processes`, `holdings`: of
    the processes that live in it; a holding names a socket inode, which may be of another namespace.
    """

    head: Snapshot
    connections: list[Connection]
    processes: list[Process]
    holdings: list[Holding]


class SegmentReader:
    """Reads the segments of the pipeline that runs in `runtime_dir`, or ran: they stay until the next start."""

    def __init__(self, runtime_dir: str = "/run/sockscope") -> None:
        self._folder = Path(runtime_dir) / SEGMENTS

    def namespaces(self) -> list[int]:
        """Inodes of the namespaces that have a segment, sorted. Raises: Vanished (no pipeline), Denied."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            raise Vanished(
                f"no segments at {self._folder}", "see whether `sockscope run` was started there"
            ) from None
        except PermissionError:
            raise self._denied() from None
        return sorted(netns for name in names if (netns := netns_of_segment(name)) is not None)

    def read(self, netns: int) -> NamespaceState:
        """The newest generation of the namespace with this inode.

        Raises: Vanished (no such segment), Denied, Malformed (not a segment of this version).
        """
        try:
            payloads = read_segment(str(self._folder / netns_segment(netns))).payloads
        except PermissionError:
            raise self._denied() from None
        state = fold([from_wire(decode_map(payload)) for payload in payloads])
        return NamespaceState(
            state.head,
            [Connection(*row) for row in state.connections.values()],
            [Process(*row) for row in state.processes.values()],
            [Holding(*row) for row in sorted(state.holdings)],
        )

    def _denied(self) -> Denied:
        return Denied(
            f"may not read the segments at {self._folder}", hint="read them as the user of the pipeline"
        )
