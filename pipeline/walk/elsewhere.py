"""Namespaces that one's processes hold without living there: what else may keep them alive, and a way into them.

By a descriptor of the namespace itself, or by a socket that was opened there. Which namespace a socket belongs to is
asked once for each that is in none of our own tables: its protocol first, since most are of others (UNIX).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import islice
from typing import NamedTuple

from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.kernel.enter import netns_of_socket
from pipeline.model.process import Task
from pipeline.procfs.fd import fd_path, socket_protocol
from pipeline.procfs.root import ProcRoot
from pipeline.walk.walker import Walker

# Any one way in is enough; some more, as each may be closed at any moment.
_WAYS = 4
# New sockets asked in one go, at 10 to 30 us each: the others, the next time.
_ASKED_AT_ONCE = 2000
_PROTOCOLS = frozenset(("TCP", "TCPv6", "UDP", "UDPv6", "MPTCP", "MPTCPv6"))


class Elsewhere(NamedTuple):
    """One namespace held from here: `paths` are descriptors, each a way in."""

    netns: int
    paths: list[str]


class ElsewhereSearch:
    """Finds them in what `walker` has read."""

    def __init__(self, root: ProcRoot, walker: Walker) -> None:
        self._root = root
        self._walker = walker
        # Socket inode -> its namespace; 0 where that does not matter (UNIX and so on) or may not be known.
        self._netns_of: dict[int, int] = {}

    def find(self, own_inodes: Set[int]) -> list[Elsewhere]:
        """The namespaces held now, by inode. `own_inodes`: the sockets in the tables of our own."""
        held: dict[int, list[str]] = {}
        for netns, path in (*self._by_descriptor(), *self._by_socket(own_inodes)):
            held.setdefault(netns, []).append(path)
        held.pop(self._walker.netns_inode, None)
        return [Elsewhere(netns, sorted(paths)[:_WAYS]) for netns, paths in sorted(held.items())]

    def _by_descriptor(self) -> Iterator[tuple[int, str]]:
        """(namespace, path of the descriptor) of each descriptor of a namespace."""
        for task, fds in self._walker.netns_fds.items():
            for fd, netns in fds.items():
                yield netns, fd_path(self._root, task, fd)

    def _by_socket(self, own_inodes: Set[int]) -> Iterator[tuple[int, str]]:
        """(namespace, path of the descriptor) of each socket that was opened elsewhere."""
        holders, own_netns = self._walker.holdings.holders, self._walker.netns_inode
        known = self._netns_of = {inode: netns for inode, netns in self._netns_of.items() if inode in holders}
        unknown = set(islice(holders.keys() - own_inodes - known.keys(), _ASKED_AT_ONCE))
        foreign = {inode for inode, netns in known.items() if netns not in (0, own_netns)}
        if unknown and not self._root.is_ours():
            unknown = set()  # the system calls that tell would ask other processes
        for task, fd, inode in self._descriptors(unknown | foreign):
            if inode in unknown:
                known[inode] = self._ask(task, fd)
            if known[inode] not in (0, own_netns):
                yield known[inode], fd_path(self._root, task, fd)

    def _descriptors(self, inodes: Set[int]) -> Iterable[tuple[Task, int, int]]:
        """(task, fd, inode): one descriptor of each of these sockets."""
        if not inodes:
            return
        left = set(inodes)
        for task, files in self._walker.holdings.files.items():
            for fd, inode in files.fds.items():
                if inode in left:
                    left.discard(inode)
                    yield task, fd, inode

    def _ask(self, task: Task, fd: int) -> int:
        """The namespace of a TCP or UDP socket, else 0."""
        try:
            if socket_protocol(self._root, task, fd) not in _PROTOCOLS:
                return 0
            return netns_of_socket(task.pid, task.tid, fd)
        except (Vanished, Denied, Unsupported):
            return 0  # closed, or nothing that this user may know: the namespace may have other ways in
