"""A real aggregator fed with made-up snapshots: `python -m scripts.benchmarks.synthetic NAMESPACES CONNECTIONS_EACH`.

It reads their bases from segments and takes a delta of each namespace every second, as from that many workers: 1 % of
the connections are replaced by new ones, with their owners. So many real sockets would slow every reading of every
namespace on the host. Prints `READY {json}` once all is merged; ends when its input does.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import tempfile
import time
from dataclasses import replace

from pipeline.board import Board
from pipeline.clock import SystemClock
from pipeline.codec import encode
from pipeline.config import Config
from pipeline.model.connection import Connection, Family, Proto, State
from pipeline.model.netns import RosterRow, WorkerRow
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Health, Snapshot
from pipeline.roles.aggregator import Aggregator
from pipeline.roles.control import Control
from pipeline.roles.roster import Roster, RosterWriter
from pipeline.segment import SegmentWriter
from pipeline.transport.ingest import Pusher
from scripts.benchmarks.measure import cpu_s, pss_bytes

_FIRST_INODE = 4_026_600_000
_PROCESSES = 50
_CHANGED_PART = 0.01
_READY_S = 60.0
# Of each namespace's first connections this part is replaced in turn; the others stay, and are looked up.
_MOVING_PART = 0.5


class MadeUp:
    """The state of one namespace, and its next snapshots. Socket cookies and inodes are `first_key` and up."""

    def __init__(self, number: int, connections: int, path: str) -> None:
        self.netns = _FIRST_INODE + number
        self._segment = SegmentWriter(path)
        self._pids = range(100_000 + number * _PROCESSES, 100_000 + (number + 1) * _PROCESSES)
        first_key = 1 + number * 10_000_000
        self._keys = itertools.count(first_key)
        self._rows = [self._make() for _ in range(connections)]
        self._moving = int(connections * _MOVING_PART)
        self._next = 0
        self._changed = max(1, int(connections * _CHANGED_PART))
        self._head = Snapshot(
            "netns", self.netns, first_key, 1, 1, True, time.monotonic(), time.monotonic(), "sock_diag", 0, Health()
        )  # fmt: skip
        self._segment.write_base(1, 1, encode(self._base().to_wire()))

    def staying_keys(self) -> list[int]:
        return [row.cookie for row, _ in self._rows[self._moving :]]

    def next_delta(self) -> bytes:
        """The next generation, committed to the segment."""
        places = [(self._next + step) % self._moving for step in range(self._changed)]
        self._next = (self._next + self._changed) % self._moving
        gone = [self._rows[place] for place in places]
        for place in places:
            self._rows[place] = self._make()
        new = [self._rows[place] for place in places]
        now_s = time.monotonic()
        self._head = replace(
            self._head, generation=self._head.generation + 1, base=False, taken_at_s=now_s, walked_at_s=now_s
        )
        delta = replace(
            self._head, connections=[row for row, _ in new], gone_connections=[row.key for row, _ in gone],
            holdings=[held for _, held in new], gone_holdings=[held for _, held in gone],
        )  # fmt: skip
        payload = encode(delta.to_wire())
        if self._segment.wants_base:
            self._segment.write_base(1, self._head.generation, encode(self._base().to_wire()))
        else:
            self._segment.append(1, self._head.generation, payload)
        return payload

    def _base(self) -> Snapshot:
        return replace(
            self._head, base=True, connections=[row for row, _ in self._rows],
            holdings=[held for _, held in self._rows],
            processes=[Process(pid, pid, f"made-up-{pid % 7}", 1000, self.netns, None) for pid in self._pids],
        )  # fmt: skip

    def _make(self) -> tuple[Connection, Holding]:
        key = next(self._keys)
        pid = self._pids[key % _PROCESSES]
        local, remote = b"\x0a\x00" + self.netns.to_bytes(8, "big")[-2:], key.to_bytes(8, "big")[-4:]
        row = Connection(
            key, Proto.TCP, Family.INET, State.ESTABLISHED, local, 1024 + key % 60_000, remote, 443, None, key, key, 0
        )  # fmt: skip
        return row, Holding(pid, pid, key % 100_000, key)


def main(namespaces: int, each: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sockscope-bench-") as folder:
        paths = [f"{folder}/netns-{number}" for number in range(namespaces)]
        made = [MadeUp(number, each, path) for number, path in enumerate(paths)]
        rows = [
            RosterRow(one.netns, [], os.getpid(), 1, "walking", path, 0.0)
            for one, path in zip(made, paths, strict=True)
        ]
        roster = RosterWriter(f"{folder}/roster")
        roster.write(Roster(rows, [WorkerRow("netns", os.getpid(), [], "running", 0, 0.0)], 0))
        ours, theirs = Control.pair()
        pid = os.fork()  # before this process has a ZeroMQ context
        if pid == 0:
            ours.close()
            _be_aggregator(theirs, folder)
        theirs.close()
        try:
            ours.wait(_READY_S)
            ready = {
                "aggregator_pid": pid, "runtime_dir": folder, "load_cpu_s": cpu_s(pid), "pss_bytes": pss_bytes(pid),
                "keys": [key for one in made for key in one.staying_keys()],
            }  # fmt: skip
            print("READY " + json.dumps(ready), flush=True)
            _feed(made, Pusher(f"{folder}/ingest.ipc"))
        finally:
            ours.close()  # the aggregator ends with the line to it
            os.waitpid(pid, 0)


def _be_aggregator(control: Control, folder: str) -> None:
    status = 1
    try:
        slot = Board(1).slot(0)
        Aggregator(control, slot, Config(), folder, f"{folder}/roster", SystemClock()).run()
        status = 0
    finally:
        os._exit(status)


def _feed(made: list[MadeUp], pusher: Pusher) -> None:
    """A delta of each namespace every second, spread evenly, until the input ends."""
    due_s = time.monotonic()
    for one in itertools.cycle(made):
        due_s += 1 / len(made)
        if select.select([sys.stdin], [], [], max(0.0, due_s - time.monotonic()))[0]:
            break
        pusher.send(one.next_delta())
    pusher.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
