"""Who holds which socket in one namespace: its processes' descriptors, and what changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.model.process import Holding, Process, ProcessKey, Task, shown_fd


@dataclass(slots=True)
class TaskFiles:
    """What one visit saw. `fds`: descriptor (or model.process.registered) -> socket inode, 0 for what is no socket.
    `listed`: number of descriptors the kernel reported (st_size of the fd folder), the cheap sign that something
    changed."""

    process: Process
    fds: dict[int, int]
    listed: int


class HoldingsChange(NamedTuple):
    processes: list[Process]
    gone_processes: list[ProcessKey]
    holdings: list[Holding]
    gone_holdings: list[Holding]


@dataclass(slots=True)
class Holdings:
    """The latest descriptors by task, an index by socket inode, and the changes not yet taken."""

    files: dict[Task, TaskFiles] = field(default_factory=dict)
    # Inode -> tasks that hold it. A tuple, not a set: nearly always one task, and its tuple is shared.
    holders: dict[int, tuple[Task, ...]] = field(default_factory=dict)
    # Inodes that several tasks hold.
    shared: set[int] = field(default_factory=set)
    _added: set[Holding] = field(default_factory=set)
    _gone: set[Holding] = field(default_factory=set)
    _processes: dict[ProcessKey, Process] = field(default_factory=dict)
    _gone_processes: set[ProcessKey] = field(default_factory=set)
    # Tasks that are threads, by pid: nearly no process has any.
    _threads: dict[int, set[Task]] = field(default_factory=dict)

    def put(self, task: Task, process: Process, fds: dict[int, int], listed: int) -> None:
        """Replaces what is known of a task. A recycled pid (another start time) replaces the process too."""
        before = self.files.get(task)
        if before is not None and _key(before.process) != _key(process):
            self.drop(task)
            before = None
        if task.tid != task.pid:
            self._threads.setdefault(task.pid, set()).add(task)
        old = before.fds if before else {}
        for fd, inode in old.items():
            if inode and fds.get(fd) != inode:
                self._release(task, process, fd, inode)
        for fd, inode in fds.items():
            if inode and old.get(fd) != inode:
                self._take(task, process, fd, inode)
        self._index(task, set(old.values()) - {0}, set(fds.values()) - {0})
        if before is None or before.process != process:
            self._processes[_key(process)] = process
            self._gone_processes.discard(_key(process))
            for files in self._siblings(task, process):
                files.process = process  # a base tells of it once, as the changes did: with its newest name
        self.files[task] = TaskFiles(process, fds, listed)

    def drop(self, task: Task) -> None:
        """Forgets a task that is gone, its process too unless another task of it is known."""
        gone = self.files.pop(task, None)
        if gone is None:
            return
        for fd, inode in gone.fds.items():
            if inode:
                self._release(task, gone.process, fd, inode)
        self._index(task, set(gone.fds.values()) - {0}, set())
        if not self._siblings(task, gone.process):
            key = _key(gone.process)
            self._processes.pop(key, None)
            self._gone_processes.add(key)
        if task.tid != task.pid:
            self._threads[task.pid].discard(task)
            if not self._threads[task.pid]:
                del self._threads[task.pid]

    def take_change(self) -> HoldingsChange:
        """What changed since the last call."""
        change = HoldingsChange(
            list(self._processes.values()), list(self._gone_processes), list(self._added), list(self._gone)
        )
        self._added, self._gone, self._processes, self._gone_processes = set(), set(), {}, set()
        return change

    @property
    def changed(self) -> bool:
        return bool(self._added or self._gone or self._processes or self._gone_processes)

    def everything(self) -> HoldingsChange:
        """The whole state, for a base; does not touch the changes."""
        processes = {_key(files.process): files.process for files in self.files.values()}
        holdings = {
            Holding(files.process.pid, files.process.start_ticks, shown_fd(fd), inode)
            for files in self.files.values()
            for fd, inode in files.fds.items()
            if inode
        }
        return HoldingsChange(list(processes.values()), [], list(holdings), [])

    def _siblings(self, task: Task, process: Process) -> list[TaskFiles]:
        """The other tasks of the same process: only threads with a namespace or descriptors of their own are tasks
        beside their leader, so almost always none."""
        threads = self._threads.get(process.pid)
        if threads is None:
            return []
        others = (
            self.files.get(other) for other in (Task(process.pid, process.pid), *threads) if other != task
        )
        return [files for files in others if files is not None and _key(files.process) == _key(process)]

    def _is_shared(self, task: Task, process: Process, fd: int, inode: int) -> bool:
        """Whether another task of the process holds the same socket by the same descriptor."""
        return any(files.fds.get(fd) == inode for files in self._siblings(task, process))

    def _take(self, task: Task, process: Process, fd: int, inode: int) -> None:
        if self._is_shared(task, process, fd, inode):
            return  # taken already; taken twice it would not be released as often
        holding = Holding(process.pid, process.start_ticks, shown_fd(fd), inode)
        if holding in self._gone:
            self._gone.discard(holding)
        else:
            self._added.add(holding)

    def _release(self, task: Task, process: Process, fd: int, inode: int) -> None:
        if self._is_shared(task, process, fd, inode):
            return
        holding = Holding(process.pid, process.start_ticks, shown_fd(fd), inode)
        if holding in self._added:
            self._added.discard(holding)
        else:
            self._gone.add(holding)

    def _index(self, task: Task, before: set[int], after: set[int]) -> None:
        for inode in before - after:
            left = tuple(other for other in self.holders.get(inode, ()) if other != task)
            if left:
                self.holders[inode] = left
            else:
                self.holders.pop(inode, None)
            if len(left) < 2:
                self.shared.discard(inode)
        alone = (task,)
        for inode in after - before:
            others = self.holders.get(inode)
            if others:
                self.holders[inode] = others + alone
                self.shared.add(inode)
            else:
                self.holders[inode] = alone


def _key(process: Process) -> ProcessKey:
    return ProcessKey(process.pid, process.start_ticks)


def count_fds(files: Mapping[Task, TaskFiles]) -> int:
    """Descriptors known in all tasks together."""
    return sum(len(one.fds) for one in files.values())
