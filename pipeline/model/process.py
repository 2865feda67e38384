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


class Holding(NamedTuple):
    """One descriptor on a socket: process (pid, start_ticks) holds socket `inode` as `fd`."""

    pid: int
    start_ticks: int
    fd: int
    inode: int
