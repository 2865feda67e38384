"""Processes and what they hold."""

from __future__ import annotations

from typing import NamedTuple, NewType

Pid = NewType("Pid", int)
Tid = NewType("Tid", int)


class Task(NamedTuple):
    """A process (tid == pid), or one thread with a namespace or descriptors of its own, or one that stands for a
    process whose leader has ended."""

    pid: int
    tid: int


class ProcessKey(NamedTuple):
    """A process's identity: the pid alone is recycled. `start_ticks`: field 22 of stat, clock ticks since boot."""

    pid: int
    start_ticks: int


class Process(NamedTuple):
    """One process. `netns` is its own (its leader's) namespace inode; `comm` is printable by construction:
    undecodable bytes were replaced by \\xNN (backslashreplace). `uid` owns /proc/PID: the effective uid.
    `container`: the name of its container or service (model.container.Container.name), or None."""

    pid: int
    start_ticks: int
    comm: str
    uid: int
    netns: int
    container: str | None


# A socket registered with an io_uring has no descriptor of its own: in a task's descriptors it has a number below 0,
# made of the ring's descriptor and of its inode, which has 32 bits.
_RING_SHIFT = 32


def registered(ring_fd: int, inode: int) -> int:
    """The number that stands for the descriptor of socket `inode`, registered with a ring."""
    return -1 - (ring_fd << _RING_SHIFT | inode)


def shown_fd(fd: int) -> int:
    """The descriptor itself; of a registered socket that of its ring, by which it is held."""
    return fd if fd >= 0 else (-1 - fd) >> _RING_SHIFT


class Holding(NamedTuple):
    """One descriptor on a socket: process (pid, start_ticks) holds socket `inode` as `fd`, or registered with the
    io_uring that is `fd`."""

    pid: int
    start_ticks: int
    fd: int
    inode: int
