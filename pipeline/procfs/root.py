"""The proc root: every read of procfs goes through here, and here its errno is sorted, once."""

from __future__ import annotations

import os
from typing import NoReturn

from pipeline.errors import Denied, Vanished
from pipeline.model.process import Task

DEFAULT_PROC_ROOT = "/proc"

# What a seq_file hands out at most per read() is a page or one record, so a larger buffer gains nothing there;
# files that fill it (net/snmp, status) come in one piece.
_READ_BYTES = 32768


class ProcRoot:
    """A mounted procfs, or a recorded tree of one. Paths are relative to it, without a leading slash.

    Every method raises Vanished (ENOENT, ESRCH, ENOTDIR) and Denied (EACCES, EPERM) and nothing else of the
    kernel's; EMFILE and ENOMEM pass, the process is not fit to go on.
    """

    __slots__ = ("_prefix", "path")

    def __init__(self, path: str = DEFAULT_PROC_ROOT) -> None:
        self.path = path
        self._prefix = path.rstrip("/") + "/"

    def full_path(self, rel: str) -> str:
        """`rel` as a path that other calls take (open_netns)."""
        return self._prefix + rel

    def read(self, rel: str, *, in_one: bool = False) -> bytes:
        """The whole file. It may tear between two pages: the kernel prints a table page by page.

        `in_one`: this file is one record, which the first call returns whole: it need not be asked for more.
        Source: single_open(), fs/seq_file.c.
        """
        try:
            fd = os.open(self._prefix + rel, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError) as error:
            raise_sorted(error, self._prefix + rel, "CAP_DAC_READ_SEARCH")
        try:
            data = os.read(fd, _READ_BYTES)
            if not data or in_one:
                return data
            chunks = [data]
            while data := os.read(fd, _READ_BYTES):
                chunks.append(data)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
            # ESRCH: the process ended between open and read.
            raise_sorted(error, self._prefix + rel, "CAP_SYS_PTRACE")
        finally:
            os.close(fd)

    def list(self, rel: str) -> list[str]:
        """The names in a folder, in the kernel's order (pids and fds ascend); `""` is the root itself."""
        try:
            return os.listdir(self._prefix + rel)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError) as error:
            raise_sorted(error, self._prefix + rel, "CAP_DAC_READ_SEARCH")

    def readlink(self, rel: str) -> str:
        """The text of a link, e.g. "net:[4026531840]"."""
        try:
            return os.readlink(self._prefix + rel)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError) as error:
            raise_sorted(error, self._prefix + rel, "CAP_SYS_PTRACE")

    def is_ours(self) -> bool:
        """Whether its pids are those that system calls of this process take: no other pid namespace's procfs, and no
        recorded tree. Source: proc_self_get_link(), fs/proc/self.c."""
        try:
            return self.readlink("self") == str(os.getpid())
        except (Vanished, Denied):
            return False

    def is_live(self) -> bool:
        """Whether it is a mounted procfs, of whichever pid namespace, and no recorded tree: what its links of
        namespaces lead to can be entered. Source: fs/proc/root.c: its root is number 1, and it has no blocks."""
        try:
            return os.stat(self.path).st_ino == 1 and os.statvfs(self.path).f_blocks == 0
        except OSError:
            return False

    def size(self, rel: str) -> int:
        """st_size of `rel`."""
        return self._stat(rel).st_size

    def owner(self, rel: str) -> int:
        """st_uid of `rel`: of a process folder, the effective uid (root where it is not dumpable)."""
        return self._stat(rel).st_uid

    def links(self, rel: str) -> int:
        """st_nlink of `rel`."""
        return self._stat(rel).st_nlink

    def open_dir(self, rel: str) -> int:
        """An fd on a folder, for calls with dir_fd; the caller closes it."""
        try:
            return os.open(self._prefix + rel, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError) as error:
            raise_sorted(error, self._prefix + rel, "CAP_DAC_READ_SEARCH")

    def _stat(self, rel: str) -> os.stat_result:
        try:
            return os.stat(self._prefix + rel)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError) as error:
            raise_sorted(error, self._prefix + rel, "CAP_DAC_READ_SEARCH")


def task_dir(task: Task) -> str:
    """The folder of a task, relative to the root: PID for a process, PID/task/TID for one thread of it."""
    return str(task.pid) if task.tid == task.pid else f"{task.pid}/task/{task.tid}"


def read_net_file(root: ProcRoot, task: Task, name: str, *, in_one: bool = False) -> bytes:
    """PID/net/`name` of the task's namespace; empty where the namespace is there and only the file is not.

    That is a kernel without IPv6. Through the task's own net folder: the root's is the reader's, and with a
    foreign proc root nobody's. Raises: Vanished, Denied.
    """
    folder = task_dir(task) + "/net/"
    try:
        return root.read(folder + name, in_one=in_one)
    except Vanished:
        # A zombie has no net folder either, so what proves the namespace is a file that every one has.
        root.size(folder + "dev")
        return b""


def raise_sorted(error: OSError, path: str, capability: str) -> NoReturn:
    """Raises Denied with `capability` for a PermissionError, else Vanished."""
    if isinstance(error, PermissionError):
        raise Denied(f"{path}: permission denied", capability) from None
    raise Vanished(f"{path} is gone") from None
