"""The eBPF worker by itself, with real programs: it ends, and says why, when they are not to be trusted."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.board import Board
from pipeline.clock import SystemClock
from pipeline.codec import decode_map
from pipeline.config import Config
from pipeline.ebpf import EventRing, SocketIterator
from pipeline.errors import Unsupported
from pipeline.model.process import Task
from pipeline.model.snapshot import fold, from_wire
from pipeline.roles.control import Control, assignment
from pipeline.roles.ebpf_place import open_sources
from pipeline.roles.ebpf_worker import EbpfWorker
from tests.live import LiveNetns, needs_root

pytestmark = needs_root


class Line:
    """A worker in this very thread: all orders are given before it runs, and it stops itself or is told to."""

    def __init__(self) -> None:
        self.ours, self.theirs = Control.pair()
        self.sent: list[bytes] = []

    def run(self, sources: object = None) -> list[dict[str, object]]:
        """What it said until it ended."""
        opening = sources if callable(sources) else lambda: open_sources(Config().ebpf)
        slot = Board(1).slot(0)
        EbpfWorker(self.theirs, slot, Config(), self._take, SystemClock(), opening).run()
        said = self.ours.receive() or []
        self.ours.close()
        self.theirs.close()
        return said

    def _take(self, payload: bytes) -> bool:
        self.sent.append(payload)
        # The first snapshot is all that these tests wait for.
        self.ours.send({"op": "stop"}, 0.0)
        return True


def test_its_first_snapshot_is_a_whole_namespace(tmp_path: Path) -> None:
    with LiveNetns() as netns:
        line = Line()
        task = Task(netns.pid, netns.pid)
        for order in assignment(netns.inode, 3, str(tmp_path / "segment"), (netns.path,), [task], 1, 0.0):
            line.ours.send(order, 0.0)
        assert line.run() == [{"op": "ebpf_settled"}]
        state = fold([from_wire(decode_map(payload)) for payload in line.sent])
        assert (state.head.source, state.head.life, state.head.role) == ("ebpf", 3, "netns")
        assert [process[0] for process in state.processes.values()] == [netns.pid]


def test_it_ends_when_its_programs_were_unloaded() -> None:
    def unloaded() -> tuple[EventRing, SocketIterator]:
        ring, iterator = open_sources(Config().ebpf)
        while ring._skeleton.links:
            os.close(ring._skeleton.links.pop())
        return ring, iterator

    assert Line().run(unloaded) == [
        {"op": "ebpf_failed", "reason": "the programs in the kernel tell nothing any more"}
    ]


def test_it_ends_when_the_kernel_does_not_let_it_begin() -> None:
    def refused() -> tuple[EventRing, SocketIterator]:
        raise Unsupported("no BTF")

    assert Line().run(refused) == [{"op": "ebpf_failed", "reason": "no BTF"}]
