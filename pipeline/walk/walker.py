"""Reading the descriptors of a namespace's processes: one visit, and the pass over all of them in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from pipeline.errors import Denied, Malformed, SockscopeError, Vanished
from pipeline.model.container import Container
from pipeline.model.netns import NetnsInode
from pipeline.model.process import Process, Task, registered
from pipeline.model.snapshot import Health
from pipeline.procfs.cgroup import read_container
from pipeline.procfs.fd import FdDir, fd_count
from pipeline.procfs.io_uring import read_registered_sockets
from pipeline.procfs.ns import read_netns_inode
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.stat import PF_KTHREAD, read_stat
from pipeline.walk.holdings import Holdings


@dataclass(slots=True)
class _Room:
    """How many descriptors may still be read in this block."""

    block: int
    left: int = 0

    def __post_init__(self) -> None:
        self.left = self.block


class Walker:
    """Visits tasks of one namespace and keeps `holdings` up to date.

    `denied` and `kernel_threads` are the tasks that cannot or need not be read; `health` counts the losses.
    """

    def __init__(self, root: ProcRoot, netns_inode: int, holdings: Holdings, health: Health) -> None:
        self.holdings = holdings
        self.denied: set[Task] = set()
        # By name, of all processes read since the last pass began, at least.
        self.containers: dict[str, Container] = {}
        # Descriptors of network namespaces, by task; only of tasks that have some.
        self.netns_fds: dict[Task, dict[int, NetnsInode]] = {}
        # Descriptors of io_urings, by task; only of tasks that have some.
        self._rings: dict[Task, list[int]] = {}
        self._kernel_threads: set[Task] = set()
        self._counts_known = False
        self._root = root
        self.netns_inode = netns_inode
        self._health = health

    def forget(self, task: Task) -> None:
        """The task left the namespace or ended."""
        self._drop(task)
        self.denied.discard(task)
        self._kernel_threads.discard(task)

    def visit(self, task: Task) -> None:
        """Reads all descriptors of a task. What vanished or is denied is counted, not raised."""
        for _ in self._visit_in_blocks(task, _Room(1 << 30)):
            raise AssertionError("a visit in one block does not stop")

    def identify(self, task: Task, *, anew: bool = False) -> Process | None:
        """The process of a task, without its descriptors; None for a kernel thread, and where it may not be read or
        has vanished, which is counted. `anew`: its container too, where it is known already."""
        self._kernel_threads.discard(task)
        known = None if anew else self.holdings.files.get(task)
        try:
            process = self._read_process(task, known.process if known else None)
        except (Vanished, Denied, Malformed) as error:
            self._count_loss(task, error)
        else:
            self.denied.discard(task)
            return process
        return None

    def is_known(self, task: Task) -> bool:
        """Whether a visit has ended with an answer, be it that nothing may be read."""
        return task in self.holdings.files or task in self.denied or task in self._kernel_threads

    def count_changed(self, task: Task) -> bool:
        """Whether the kernel's number of open descriptors differs from what the last visit listed. Always
        False where the kernel does not tell it (st_size of the fd folder, Linux 6.2)."""
        try:
            count = fd_count(self._root, task)
        except (Vanished, Denied):
            return True  # the visit that follows meets the same error and counts it
        self._counts_known = self._counts_known or count > 0
        return self._counts_known and count != self.holdings.files[task].listed

    def refresh(self, task: Task, lost: Set[int]) -> None:
        """A cheaper visit of a known task: lists the descriptors, and reads only those not known before or
        known for a socket in `lost`."""
        known = self.holdings.files[task]
        try:
            with FdDir(self._root, task) as fd_dir:
                names = fd_dir.names()
                fds: dict[int, int] = {}
                unread: list[str] = []
                for name in names:
                    inode = known.fds.get(int(name))
                    if inode is None or inode in lost:
                        unread.append(name)
                    else:
                        fds[int(name)] = inode
                fds.update(fd_dir.socket_inodes(unread))
                netns_fds = fd_dir.netns_fds
                for fd, netns in self.netns_fds.get(task, netns_fds).items():
                    if fds.get(fd) == 0:
                        netns_fds[fd] = netns
                rings = fd_dir.rings + [fd for fd in self._rings.get(task, ()) if fds.get(fd) == 0]
                self._add_registered(task, rings, fds)
            process = self._read_process(task, known.process)
        except (Vanished, Denied, Malformed) as error:
            self._count_loss(task, error)
        else:
            if process is not None:
                self.holdings.put(task, process, fds, len(names))
                self._note_special(task, netns_fds, rings)

    def pass_in_blocks(self, tasks: Set[Task], block: int, relist: bool = True) -> Iterator[None]:
        """One pass over `tasks`; stops after every `block` descriptors, inside a process too. Without `relist` a
        process that has as many descriptors as before is not listed again.

        Who leaves `tasks` meanwhile is skipped: a process that moved to another namespace lives on, and what was
        put here after it was forgotten nobody would ever remove.
        """
        room = _Room(block)
        for task in sorted(tasks):
            if task in tasks and (relist or not self._is_as_before(task)):
                yield from self._visit_in_blocks(task, room)
            if task not in tasks:
                self.forget(task)
        if self.containers:
            named = {files.process.container for files in self.holdings.files.values()}
            self.containers = {name: one for name, one in self.containers.items() if name in named}

    def _is_as_before(self, task: Task) -> bool:
        """Whether it is the same process, of the same name, with as many descriptors as the last visit listed."""
        known = self.holdings.files.get(task)
        if known is None or self.count_changed(task) or not self._counts_known:
            return False
        try:
            return self._read_process(task, known.process) == known.process
        except (Vanished, Denied, Malformed):
            return False  # the visit that follows meets the same and counts it

    def _visit_in_blocks(self, task: Task, room: _Room) -> Iterator[None]:
        # Looked at again each time: its pid may be a user's process by now.
        self._kernel_threads.discard(task)
        before = self.holdings.files.get(task)
        try:
            process = self._read_process(task, None)
            if process is None:
                return
            with FdDir(self._root, task) as fd_dir:
                names = fd_dir.names()
                fds: dict[int, int] = {}
                begin = 0
                while begin < len(names):
                    chunk = names[begin : begin + room.left]
                    fds.update(fd_dir.socket_inodes(chunk))
                    begin += len(chunk)
                    room.left -= len(chunk)
                    if room.left <= 0 and begin < len(names):
                        yield
                        room.left = room.block
                self._add_registered(task, fd_dir.rings, fds)
            # The pid may have been recycled meanwhile: then what was read is of two processes.
            process = self._read_process(task, process)
        except (Vanished, Denied, Malformed) as error:
            self._count_loss(task, error)
        else:
            self.denied.discard(task)
            # A search that refreshed the task while this visit rested knows better than the descriptors read before.
            if process is not None and self.holdings.files.get(task) is before:
                self.holdings.put(task, process, fds, len(names))
                self._note_special(task, fd_dir.netns_fds, fd_dir.rings)
        room.left -= 1  # a visit has a price of its own, also where nothing is open
        if room.left <= 0:
            yield
            room.left = room.block

    def _read_process(self, task: Task, expected: Process | None) -> Process | None:
        """The process of a task now, or None for a kernel thread. Raises: Denied, Malformed; Vanished, also
        where it is no longer the `expected` one."""
        stat = read_stat(self._root, task.pid)
        if stat.flags & PF_KTHREAD:
            self._kernel_threads.add(task)
            return None
        if expected is None:
            uid = self._root.owner(str(task.pid))
            # A process is where its leader is; one whose leader has ended, where its threads are.
            netns = (
                self.netns_inode if task.tid == task.pid or stat.state == "Z" else self._leader_netns(task)
            )
            return Process(task.pid, stat.start_ticks, stat.comm, uid, netns, self._container(task.pid))
        if stat.start_ticks != expected.start_ticks:
            raise Vanished(f"pid {task.pid} was recycled")
        if stat.comm == expected.comm:
            return expected
        # An exec: what starts a container calls itself something else until it has put itself there.
        return expected._replace(comm=stat.comm, container=self._container(task.pid))

    def _leader_netns(self, task: Task) -> int:
        return read_netns_inode(self._root, Task(task.pid, task.pid))

    def _container(self, pid: int) -> str | None:
        try:
            container = read_container(self._root, pid)
        except Malformed:
            self._health.rows_malformed += 1
            return None  # nothing to lose its descriptors for
        if container is None:
            return None
        self.containers[container.name] = container
        return container.name

    def _add_registered(self, task: Task, rings: list[int], fds: dict[int, int]) -> None:
        """Adds the sockets that are registered with io_urings."""
        for fd in rings:
            fds.update(
                (registered(fd, inode), inode) for inode in read_registered_sockets(self._root, task, fd)
            )

    def _note_special(self, task: Task, netns_fds: dict[int, NetnsInode], rings: list[int]) -> None:
        if netns_fds:
            self.netns_fds[task] = netns_fds
        elif self.netns_fds:
            self.netns_fds.pop(task, None)
        if rings:
            self._rings[task] = rings
        elif self._rings:
            self._rings.pop(task, None)

    def _drop(self, task: Task) -> None:
        self.holdings.drop(task)
        self.netns_fds.pop(task, None)
        self._rings.pop(task, None)

    def _count_loss(self, task: Task, error: SockscopeError) -> None:
        """What could not be read is not known any more; a line that does not decode says nothing of the descriptors."""
        if isinstance(error, Malformed):
            self._health.rows_malformed += 1
            return
        if isinstance(error, Vanished):
            self._health.pids_vanished += 1
        elif task not in self.denied:
            self._health.pids_denied += 1
            self.denied.add(task)
        self._drop(task)
