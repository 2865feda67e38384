"""A child of the supervisor of which there is one, as the aggregator: started, heard, started again with back-off."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.board import Board
from pipeline.clock import Clock
from pipeline.model.netns import WorkerRow
from pipeline.roles.child import Child, Process, start_child
from pipeline.roles.control import Control

_log = logging.getLogger(__name__)

# What the child runs: its end of the control line.
SingleMain = Callable[[Control], None]


class Single:
    """The place of one such child. Its caller calls `tend` often."""

    def __init__(
        self,
        role: str,
        main: SingleMain,
        board: Board,
        index: int,
        backoff_s: float,
        close_fds: Callable[[], list[int]],
    ) -> None:
        """`index`: of its slot on the board. `close_fds`: tells what is the supervisor's alone at a fork."""
        self.child = Child(backoff_s)
        # Counts starts and ends: what the roster shows of it changed.
        self.changes = 0
        self._role = role
        self._main = main
        self._board = board
        self._index = index
        self._close_fds = close_fds

    def is_due(self, now_s: float) -> bool:
        """Whether there is none and it is time for one."""
        return self.child.control is None and now_s >= self.child.start_at_s

    def start(self, now_s: float) -> Control:
        """Starts one where `is_due`; returns our end of the line to it."""
        self._board.reset(self._index)
        self.changes += 1
        return self.child.start(self._fork, now_s)

    def tend(self, now_s: float) -> list[dict[str, Any]]:
        """Reaps one that ended, sends what waits; returns what it said."""
        ended = self.child.reap(now_s)
        if ended is not None:
            self.changes += 1
            _log.warning(
                "the %s process ended (%s); starting it again in %.1f s",
                self._role,
                ended,
                self.child.start_at_s - now_s,
            )
        if self.child.control is None:
            return []
        self.child.control.flush(now_s)
        return list(self.child.control.receive() or ())

    def tell(self, message: dict[str, Any], now_s: float) -> None:
        """Sends `message`, if there is anybody to get it."""
        if self.child.control is not None:
            self.child.control.send(message, now_s)

    def row(self) -> WorkerRow:
        state = "running" if self.child.pid else "restarting"
        return WorkerRow(self._role, self.child.pid, [], state, self.child.restarts, 0.0)

    def _fork(self, control: Control) -> Process:
        return start_child(self._role, None, lambda: self._main(control), self._close_fds())


def stop_all(children: Iterable[Child], limit_s: float, clock: Clock) -> None:
    """Tells all to stop, and kills who has not ended after `limit_s`."""
    now_s = clock.monotonic_s()
    children = list(children)
    for child in children:
        if child.control is not None:
            child.control.send({"op": "stop"}, now_s)
    end_s = now_s + limit_s
    for child in children:
        while child.process is not None and child.reap(now_s) is None:
            poller = select.poll()
            poller.register(child.process.pidfd, select.POLLIN)
            if not poller.poll(max(0.0, end_s - clock.monotonic_s()) * 1000):
                _log.warning("process %d does not end: killed", child.pid)
                child.kill()
                child.reap(now_s, wait=True)
