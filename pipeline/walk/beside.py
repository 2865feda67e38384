"""What the eBPF iterator does not show of a process, from /proc: descriptors of network namespaces, and sockets held
otherwise than by a descriptor of TCP or UDP: registered with an io_uring, or of multipath TCP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from pipeline.errors import Denied, Malformed, Vanished
from pipeline.model.netns import NetnsInode
from pipeline.model.process import Task, registered
from pipeline.procfs.fd import FdDir
from pipeline.procfs.io_uring import read_registered_sockets
from pipeline.procfs.root import ProcRoot


class Beside(NamedTuple):
    """Of one process: descriptor (or model.process.registered) -> inode of a socket, and descriptor -> namespace."""

    pid: int
    fds: dict[int, int]
    netns_fds: dict[int, NetnsInode]
    denied: bool = False


def read_beside(root: ProcRoot, pids: Iterable[int], wanted: Set[int], block: int) -> Iterator[Beside | None]:
    """Reads the descriptors of each process: of their sockets tells those in `wanted` (inodes), and all that are
    registered with an io_uring. None after each `block` descriptors: a place to rest. Who vanished is left out; threads
    with descriptors of their own are not asked."""
    left = block
    for pid in pids:
        task = Task(pid, pid)
        try:
            with FdDir(root, task) as fd_dir:
                names = fd_dir.names()
                fds: dict[int, int] = {}
                for begin in range(0, len(names), block):
                    chunk = names[begin : begin + block]
                    fds.update(pair for pair in fd_dir.socket_inodes(chunk) if pair[1] in wanted)
                    left -= len(chunk)
                    if left <= 0:
                        yield None
                        left = block
                for ring in fd_dir.rings:
                    fds.update(
                        (registered(ring, inode), inode)
                        for inode in read_registered_sockets(root, task, ring)
                    )
                yield Beside(pid, fds, fd_dir.netns_fds)
        except Vanished:
            continue
        except (Denied, Malformed):
            yield Beside(pid, {}, {}, denied=True)
