"""One netns worker, on a clock that a test moves: when it tells of what."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.board import Board
from pipeline.clock import ManualClock
from pipeline.codec import decode_map
from pipeline.config import Config
from pipeline.model.process import Task
from pipeline.model.snapshot import Snapshot, from_wire
from pipeline.roles.control import Control, assignment
from pipeline.roles.netns_worker import NetnsWorker
from tests.live import LiveNetns, needs_root

pytestmark = needs_root


def test_passes_that_find_nothing_new_are_told_of_now_and_then(tmp_path: Path) -> None:
    """Else the moment at which owners were last seen would stand still in a quiet namespace."""
    clock = ManualClock(now_s=1000.0)
    ours, theirs = Control.pair()
    told: list[Snapshot] = []

    def send(payload: bytes) -> bool:
        told.append(from_wire(decode_map(payload)))
        return True

    worker = NetnsWorker(Config(), clock)
    worker.attach(theirs, Board(1).slot(0), send)
    with LiveNetns() as live, subprocess.Popen(["sleep", "600"]) as quiet:
        try:
            task = Task(quiet.pid, quiet.pid)
            orders = assignment(live.inode, 1, str(tmp_path / "netns-1"), (live.path,), [task], 1, 0.0)
            for order in [*orders, {"op": "look", "netns": [live.inode], "order": 2, "still": []}]:
                ours.send(order, clock.monotonic_s())
            worker._obey_all()
            worker._work()
            first = len(told)
            assert first == 1 and told[0].base
            for _ in range(590):
                clock.advance(0.1)
                worker._work()
            assert len(told) == first
            for _ in range(150):
                clock.advance(0.1)
                worker._work()
        finally:
            quiet.kill()
            ours.close()
            theirs.close()
    assert len(told) == first + 1
    assert told[-1].walked_at_s is not None and told[-1].walked_at_s >= 1060.0
    assert not told[-1].base and not told[-1].connections
