"""PID/fd: a process's open descriptors, and the sockets and network namespaces among them."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType

from pipeline.errors import Vanished
from pipeline.model.netns import NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.io_uring import RING_LINK
from pipeline.procfs.root import ProcRoot, raise_sorted, task_dir


def fd_count(root: ProcRoot, task: Task) -> int:
    """How many descriptors the task has open, from st_size of its fd folder.

    Kernels before 6.2 say 0 for everyone: ask for a task that surely has some (the caller itself) once, and if
    that is 0 the number means nothing. A changed count proves a change; an equal one proves nothing.
    Raises: Vanished, Denied. Source: proc_fd_getattr(), fs/proc/fd.c.
    """
    return root.size(task_dir(task) + "/fd")


class FdDir:
    """One task's fd folder, open from construction to the end of the `with` block.

    Descriptors are those of the task's own table: a thread may have unshared it from its leader.
    The open folder pins no namespace. `netns_fds`: of the descriptors read so far, those of a network namespace,
    and its inode; `rings`: those of an io_uring. Raises: Vanished, Denied (CAP_DAC_READ_SEARCH) at construction.
    """

    __slots__ = ("_dir_fd", "_path", "netns_fds", "rings")

    def __init__(self, root: ProcRoot, task: Task) -> None:
        rel = task_dir(task) + "/fd"
        self._path = root.full_path(rel)
        self._dir_fd = root.open_dir(rel)
        self.netns_fds: dict[int, NetnsInode] = {}
        self.rings: list[int] = []

    def __enter__(self) -> FdDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the folder; a second call does nothing."""
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1

    def names(self) -> list[str]:
        """The open descriptors' numbers as text, ascending; none for a zombie leader (its threads have them).

        Raises: Vanished, Denied.
        """
        try:
            return os.listdir(self._dir_fd)
        except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
            raise_sorted(error, self._path, "CAP_DAC_READ_SEARCH")

    def socket_inodes(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """(fd, inode) for each of `names` that is still open, in their order; inode 0: not a socket.

        Raises: Vanished when the process ended meanwhile (where the kernel says so: each link of a dead process
        may also just be missing, so the caller reads start_ticks again), Denied (CAP_SYS_PTRACE).
        """
        readlink = os.readlink
        dir_fd = self._dir_fd
        pairs = []
        for name in names:
            try:
                link = readlink(name, dir_fd=dir_fd)
            except FileNotFoundError:
                # Closed between listing and reading: everyday life, and not a loss.
                continue
            except (ProcessLookupError, PermissionError) as error:
                raise_sorted(error, f"{self._path}/{name}", "CAP_SYS_PTRACE")
            # "socket:[5107]" is what the kernel makes; a file may be *named* that, but its link starts with "/".
            if link.startswith("socket:["):
                pairs.append((int(name), int(link[8:-1])))
                continue
            pairs.append((int(name), 0))
            if link.startswith("net:["):
                self.netns_fds[int(name)] = NetnsInode(int(link[5:-1]))
            elif link == RING_LINK:
                self.rings.append(int(name))
        return pairs


def fd_path(root: ProcRoot, task: Task, fd: int) -> str:
    """The path of one descriptor, for calls that take any path."""
    return root.full_path(f"{task_dir(task)}/fd/{fd}")


def socket_protocol(root: ProcRoot, task: Task, fd: int) -> str:
    """The kernel's name for a socket's protocol: TCP, TCPv6, UDP, UDPv6, UNIX, NETLINK and so on; 8 us.

    Raises: Vanished, also where `fd` is no socket; Denied (CAP_SYS_PTRACE). Source: sockfs_xattr_get(), net/socket.c.
    """
    path = fd_path(root, task, fd)
    try:
        return os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
        raise_sorted(error, path, "CAP_SYS_PTRACE")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        raise Vanished(f"{path} is no socket") from None
