"""The nursery: a process that does nothing but fork netns workers, so that they share nearly all of their memory.

What the forking process writes between two forks, the first one's child keeps for itself alone: forked from the
supervisor, which is always at work, a worker costs 0.9 MB more. The nursery is forked once, with a worker ready
made; then it runs one loop of calls into C, since each Python function it ran would copy some 20 kB into each
worker. Workers die with it, and it with the supervisor.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.errors import SockscopeError
from pipeline.kernel.libc import malloc_one_arena, prctl_set_pdeathsig
from pipeline.procfs.comm import write_own_comm
from pipeline.roles.child import EXIT_FAILED, Process, run_and_exit, start_child
from pipeline.roles.log_relay import become

ROLE = "nursery"
WORKER_ROLE = "netns"
_ANSWER_LIMIT_S = 5.0
# Slot, namespace inode (0: several); the answer is a pid.
_REQUEST = struct.Struct("=IQ")
_ANSWER = struct.Struct("=I")
_FD = struct.Struct("=i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_FD.size)

# What a forked worker runs: (its end of the control line, its slot on the board).
WorkerMain = Callable[[socket.socket, int], None]


class NurseryLost(SockscopeError, ConnectionError):
    """The nursery has ended or does not answer: start another one."""


@dataclass(slots=True)
class Nurseling:
    """A worker forked by the nursery, as the supervisor sees it. `pidfd` can be read once it has ended."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """Does nothing to one that has ended already."""
        Process(self.pid, self.pidfd).kill()

    def reap(self, *, wait: bool = False) -> str | None:
        """That it has ended; how, only its parent could know, and the worker itself logs a fault of its own. None
        while it lives, unless told to `wait`."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(None if wait else 0):
            return None
        os.close(self.pidfd)
        return "killed, or by a fault it logged"


@dataclass(slots=True)
class Nursery:
    """The supervisor's side of the nursery."""

    process: Process
    _line: socket.socket

    @classmethod
    def start(cls, worker_main: WorkerMain, close_fds: list[int]) -> Nursery:
        """Forks the nursery. `worker_main` is prepared with all that workers can share."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = start_child(ROLE, None, lambda: _serve(theirs, worker_main), [*close_fds, ours.fileno()])
        theirs.close()
        ours.settimeout(_ANSWER_LIMIT_S)
        return cls(process, ours)

    def fork_worker(self, control: socket.socket, slot: int, netns: int | None) -> Nurseling:
        """A new worker, which gets its own copy of `control`. Raises: NurseryLost."""
        try:
            socket.send_fds(self._line, [_REQUEST.pack(slot, netns or 0)], [control.fileno()])
            (pid,) = _ANSWER.unpack(self._line.recv(_ANSWER.size))
            return Nurseling(pid, os.pidfd_open(pid))
        except (OSError, struct.error) as error:
            raise NurseryLost(f"the nursery does not fork: {error}") from None

    def fds(self) -> list[int]:
        """Nothing for another child."""
        return [self.process.pidfd, self._line.fileno()]

    def close(self) -> None:
        """Ends the nursery, and with it every worker that is left."""
        self._line.close()
        self.process.kill()
        self.process.reap(wait=True)


def _serve(line: socket.socket, worker_main: WorkerMain) -> None:
    """In the nursery: forks when asked, until the supervisor closes the line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.disable()
    # libzmq's two threads in each worker allocate little: an arena each would be pages for nothing.
    malloc_one_arena()
    own_pid = os.getpid()
    while True:
        request, ancillary, _, _ = line.recvmsg(_REQUEST.size, _ANCILLARY_BYTES)
        if not request:
            return
        (control_fd,) = _FD.unpack(ancillary[0][2])
        pid = os.fork()
        if pid == 0:
            os.close(line.fileno())
            run_and_exit(partial(_become_worker, worker_main, own_pid, control_fd, *_REQUEST.unpack(request)))
        os.close(control_fd)
        line.send(_ANSWER.pack(pid))


def _become_worker(worker_main: WorkerMain, parent_pid: int, control_fd: int, slot: int, netns: int) -> None:
    prctl_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(EXIT_FAILED)
    gc.enable()
    write_own_comm(f"sockscope-{WORKER_ROLE}")
    become(WORKER_ROLE, netns or None)
    worker_main(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, control_fd), slot)
