"""The eBPF worker's sweeps: what its passes cannot show is read from /proc, now and then, a block at a time.

A whole sweep, over every process, comes once the first state is complete, every minute (descriptors of namespaces tell
of nothing else that they are there), and soon after passes left a socket without holder; only after it a socket may be
the kernel's. In between those processes are read again of which one had told a socket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.config import Config
from pipeline.model.held_socket import HeldSocket
from pipeline.model.process import Task
from pipeline.procfs.fd import fd_path
from pipeline.procfs.root import ProcRoot
from pipeline.roles.ebpf_namespace import EbpfNamespace
from pipeline.walk.beside import Beside, read_beside

# Whole sweeps, in intervals between passes.
_WHOLE_INTERVALS = 6

Namespaces = Mapping[int, EbpfNamespace]


class Sweep:
    """At most one runs at a time. `pass_began_s`: of the newest pass; from its begin on a whole sweep speaks."""

    def __init__(self, root: ProcRoot, config: Config) -> None:
        self._root = root
        self._block = config.walk.fd_block
        self._interval_s = config.tables.full_interval_s
        self._running: Iterator[Beside | None] | None = None
        self._is_whole = self._was_denied = False
        self._began_s = self._whole_began_s = self._pass_began_s = float("-inf")
        self._wanted: set[int] = set()
        self._over: set[int] = set()
        # As of its start: the namespaces (`_over`), and who lives where.
        self._homes: dict[int, int] = {}

    def is_due(self, pass_began_s: float, now_s: float) -> bool:
        """Whether `step` may have anything to do."""
        young = now_s < self._began_s + self._interval_s
        stale = now_s >= self._whole_began_s + _WHOLE_INTERVALS * self._interval_s
        return self._running is not None or (not young and (pass_began_s > self._began_s or stale))

    def step(self, namespaces: Namespaces, pass_began_s: float, now_s: float) -> set[int]:
        """When due: starts one, or reads its next block; returns the namespaces of which something is to be told."""
        if self._running is None and not self._start(namespaces, pass_began_s, now_s):
            return set()
        assert self._running is not None
        told: set[int] = set()
        for beside in self._running:
            if beside is None:
                return told
            namespace = namespaces.get(self._homes[beside.pid])
            if namespace is not None and beside.pid in namespace.members:
                self._was_denied = self._was_denied or beside.denied
                namespace.take_beside(beside.pid, beside.fds, beside.netns_fds)
                told.add(namespace.netns)
        self._running = None
        if self._is_whole:
            for netns in self._over & namespaces.keys():
                namespaces[netns].swept(self._wanted, None if self._was_denied else self._pass_began_s)
                told.add(netns)
        return told

    def _start(self, namespaces: Namespaces, pass_began_s: float, now_s: float) -> bool:
        whole = now_s >= self._whole_began_s + _WHOLE_INTERVALS * self._interval_s or any(
            namespace.unsearched for namespace in namespaces.values()
        )
        self._over = set(namespaces)
        self._homes = {
            pid: netns
            for netns, namespace in namespaces.items()
            for pid in (namespace.members if whole else namespace.telling)
        }
        self._began_s, self._is_whole, self._was_denied = now_s, whole, False
        if whole:
            self._whole_began_s, self._pass_began_s = now_s, pass_began_s
        if not (self._homes or whole):
            return False
        self._wanted = unshown(namespaces)
        self._running = read_beside(self._root, sorted(self._homes), self._wanted, self._block)
        return True

    def prune(self, namespaces: Namespaces, held: Sequence[HeldSocket]) -> None:
        """After a pass: sockets that it showed by now need no other witness."""
        telling = [namespace for namespace in namespaces.values() if namespace.telling]
        if telling:
            shown = {one[7][9] for one in held}
            for namespace in telling:
                namespace.prune_beside(shown)

    def ways(self, namespace: EbpfNamespace) -> dict[int, list[str]]:
        """The namespaces that its processes hold descriptors of, and the paths of those."""
        found: dict[int, list[str]] = {}
        for pid, (_, netns_fds) in sorted(namespace.beside.items()):
            for fd, netns in netns_fds.items():
                found.setdefault(netns, []).append(fd_path(self._root, Task(pid, pid), fd))
        found.pop(namespace.netns, None)
        return found


def unshown(namespaces: Namespaces) -> set[int]:
    """Inodes of the sockets in all tables that no pass showed with a holder."""
    inodes = {
        known.row[9]
        for namespace in namespaces.values()
        for known in namespace.sockets.open.values()
        if known.row[9]
    }
    for namespace in namespaces.values():
        for files in namespace.files.values():
            inodes.difference_update(files.fds.values())
        # What only a sweep told of has to be told again.
        for fds, _ in namespace.beside.values():
            inodes.update(fds.values())
    return inodes
