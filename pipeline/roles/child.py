"""Forking the children of the supervisor: each dies with it, keeps nothing it need not, and is reaped.

os.fork and a pidfd rather than multiprocessing.Process: what its bootstrap touches is copied into every child, half
a megabyte of the three that a worker may have. multiprocessing-logging is satisfied by the start method.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, Protocol

from pipeline.kernel.libc import prctl_set_pdeathsig
from pipeline.procfs.comm import write_own_comm
from pipeline.roles.control import Control
from pipeline.roles.log_relay import become

_log = logging.getLogger(__name__)

EXIT_FAILED = 70
_BACKOFF_MAX_S = 30.0
# A child that lived so long starts again without the back-off that earlier failures earned.
_SETTLED_S = 60.0


def assert_forking() -> None:
    """multiprocessing-logging works with no other start method, and workers share the supervisor's memory by it."""
    multiprocessing.set_start_method("fork", force=True)
    assert multiprocessing.get_start_method() == "fork"


class Forked(Protocol):
    """A process that was forked and not reaped yet. `pidfd` can be read once it has ended."""

    pid: int
    pidfd: int

    def kill(self) -> None: ...
    def reap(self, *, wait: bool = False) -> str | None: ...


@dataclass(slots=True)
class Process:
    """A child of ours that was forked and not reaped yet."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """Does nothing to one that has ended already."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self, *, wait: bool = False) -> str | None:
        """How it ended ("status 1", "signal 9"), and frees it; None while it lives, unless told to `wait`."""
        pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
        if pid == 0:
            return None
        os.close(self.pidfd)
        return describe_end(status)


def describe_end(status: int) -> str:
    """A wait status in words: "status 1" or "signal 9"."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"status {code}"


def start_child(role: str, netns: int | None, main: Callable[[], None], close_fds: Sequence[int]) -> Process:
    """Forks a child that runs `main` and exits. `close_fds`: files of the supervisor alone, closed in it.

    Call it from the main thread only: PR_SET_PDEATHSIG fires when the *thread* that forked ends.
    """
    parent_pid = os.getpid()
    # What lives now is for no collector to look at any more, here or in the child: looking writes into each object,
    # and what either writes is copied. Collected first, so that no garbage is kept for ever.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        run_and_exit(lambda: _become_child(parent_pid, role, netns, main, close_fds))
    return Process(pid, os.pidfd_open(pid))


def run_and_exit(main: Callable[[], None]) -> NoReturn:
    """In a child: runs `main` and ends, and never goes on in the parent's code, whatever happens."""
    status = EXIT_FAILED
    try:
        main()
        status = 0
    except Exception:
        _log.exception("stops because of a fault")
    finally:
        os._exit(status)


def _become_child(
    parent_pid: int, role: str, netns: int | None, main: Callable[[], None], close_fds: Sequence[int]
) -> None:
    prctl_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(EXIT_FAILED)  # the supervisor died before the line above: nobody would tell us
    # Ctrl-C goes to the terminal's foreground group: the supervisor, which stops us in order.
    os.setpgid(0, 0)
    # The supervisor's wake-up pipe is closed next, and its number soon another file: a signal would write into it.
    signal.set_wakeup_fd(-1)
    for fd in close_fds:
        os.close(fd)
    write_own_comm(f"sockscope-{role}")
    become(role, netns)
    main()


@dataclass(slots=True)
class Child:
    """One place in the process tree: the child that fills it now, or when the next one is due.

    `control` is our end of its line while it lives.
    """

    backoff_s: float
    process: Forked | None = None
    control: Control | None = None
    start_at_s: float = 0.0
    restarts: int = 0
    _started_s: float = 0.0
    _failures: int = 0

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self.process.pid if self.process is not None else 0

    @property
    def has_ended(self) -> bool:
        """Whether there is one to be reaped."""
        if self.process is None:
            return False
        poller = select.poll()
        poller.register(self.process.pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def fds(self) -> list[int]:
        """The files that the supervisor holds for it."""
        fds = [self.process.pidfd] if self.process is not None else []
        return [*fds, self.control.fileno()] if self.control is not None else fds

    def start(self, start: Callable[[Control], Forked], now_s: float) -> Control:
        """Fills the place; returns our end of the line to it."""
        self.control, theirs = Control.pair()
        self._started_s = now_s
        try:
            self.process = start(theirs)
        except BaseException:
            # With a line and nobody at its end the place would count as filled, and stay empty for ever.
            self.control.close()
            self.control = None
            raise
        finally:
            theirs.close()
        return self.control

    def reap(self, now_s: float, *, wait: bool = False) -> str | None:
        """As Process.reap, and plans the next start."""
        ended = self.process.reap(wait=wait) if self.process is not None else None
        if ended is None:
            return None
        if self.control is not None:
            self.control.close()
        self.process = self.control = None
        self._failures = 1 if now_s - self._started_s > _SETTLED_S else self._failures + 1
        self.start_at_s = now_s + min(self.backoff_s * 2 ** (self._failures - 1), _BACKOFF_MAX_S)
        self.restarts += 1
        return ended

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
