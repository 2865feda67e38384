"""Into another network namespace for one short errand, and back for certain.

Whatever is opened inside and kept open (a socket, an nsfs fd, a thread) pins the namespace and its devices, so
callers close at once; see "Rules of the process tree" in ARCHITECTURE.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.errors import Denied, SockscopeError, Unsupported, Vanished
from pipeline.kernel.libc import CLONE_NEWNET, pidfd_getfd, setns

EXIT_STRANDED = 70

_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
_PIDFD_THREAD = os.O_EXCL  # include/uapi/linux/pidfd.h

# PID/fd/N or PID/task/TID/fd/N below a proc root.
_DESCRIPTOR = re.compile(r"/(\d+)(?:/task/(\d+))?/fd/(\d+)")

# The calling thread's own namespace. Always the real procfs, never a configured proc root, which may belong to
# another pid namespace, where we do not exist: the one path of procfs that stands outside pipeline/procfs.
_OWN_NETNS_PATH = "/proc/thread-self/ns/net"

# (process id, open fd of that process's own namespace): a forked child opens its own, since it may have closed
# what it inherited, and the number may be another file by then.
_home: tuple[int, int] = (0, -1)


def open_netns(path: str, expected_inode: int) -> int:
    """An fd of the namespace at `path`; the caller closes it soon. `path`: PID/ns/net, a bind mount, or PID/fd/N, a
    descriptor that holds the namespace: one of itself, or a socket that was opened in it.

    Raises: Vanished, also where `path` is another namespace than `expected_inode` by now (a recycled pid, a
    mount point used again); Denied (CAP_SYS_PTRACE for another user's /proc/PID/ns; CAP_NET_ADMIN over the
    namespace for a socket's).
    """
    try:
        held = _DESCRIPTOR.search(path) if "/fd/" in path else None
        if held is not None:
            found = os.stat(path)
            if stat.S_ISSOCK(found.st_mode):
                return _expect(open_netns_of_socket(*_numbers(held)), path, expected_inode)
            if found.st_ino != expected_inode:
                # Whatever it is by now: opening a FIFO would wait, and a device would be started.
                raise Vanished(f"{path} is another file now")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except SockscopeError:
        raise  # sorted already, and a child of the builtins below
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        raise Vanished(f"{path} is gone") from None
    except PermissionError:
        raise Denied(f"{path} may not be opened", "CAP_SYS_PTRACE") from None
    return _expect(fd, path, expected_inode)


def open_netns_of_socket(pid: int, tid: int, fd: int) -> int:
    """An fd of the namespace in which a task's socket `fd` was opened, wherever the task lives; the caller closes it
    soon. The numbers are those of our own pid namespace.

    Raises: Vanished, also where `fd` is no socket; Denied (CAP_SYS_PTRACE; CAP_NET_ADMIN over the namespace);
    Unsupported (before Linux 5.6; threads with descriptors of their own, before 6.9).
    """
    try:
        pidfd = os.pidfd_open(tid, 0 if tid == pid else _PIDFD_THREAD)
    except (ProcessLookupError, FileNotFoundError):
        raise Vanished(f"task {tid} is gone") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Unsupported("pidfd_open: no PIDFD_THREAD") from None
    try:
        copy = pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
    try:
        return fcntl.ioctl(copy, _SIOCGSKNS)
    except PermissionError:
        raise Denied("the namespace of a socket may not be asked", "CAP_NET_ADMIN") from None
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EBADF):
            raise
        raise Vanished(f"descriptor {fd} of task {tid} is no socket") from None
    finally:
        os.close(copy)


def netns_of_socket(pid: int, tid: int, fd: int) -> int:
    """The inode of the namespace in which a task's socket `fd` was opened. Raises: as open_netns_of_socket."""
    netns_fd = open_netns_of_socket(pid, tid, fd)
    try:
        return os.fstat(netns_fd).st_ino
    finally:
        os.close(netns_fd)


def _numbers(descriptor: re.Match[str]) -> tuple[int, int, int]:
    pid, tid, fd = descriptor.groups()
    return int(pid), int(tid or pid), int(fd)


def _expect(fd: int, path: str, expected_inode: int) -> int:
    inode = os.fstat(fd).st_ino
    if inode != expected_inode:
        os.close(fd)
        raise Vanished(f"{path} is namespace {inode} now, not {expected_inode}")
    return fd


def netns_inode_at(path: str) -> int | None:
    """The inode of the network namespace bound at `path`; None where it is anything else, gone or denied.

    `ip netns add` leaves a plain file when its mount fails; namespaces of other types can be bound there too.
    """
    try:
        # O_NONBLOCK: should it be a FIFO, opening must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    try:
        return os.fstat(fd).st_ino if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET else None
    except OSError:
        return None  # ENOTTY and its like: no namespace file
    finally:
        os.close(fd)


class inside:  # in lower case: it reads as a statement
    """Context: the calling thread is in the namespace of `netns_fd` for the length of the block, then back home.

    Raises: Denied (CAP_SYS_ADMIN), Unsupported (not a network namespace). Where the way back is barred the
    process ends with status 70: going on would read and report the wrong namespace, and pin it.
    """

    __slots__ = ("_home_fd", "_netns_fd")

    def __init__(self, netns_fd: int) -> None:
        self._netns_fd = netns_fd
        self._home_fd = _home_fd()

    def __enter__(self) -> None:
        setns(self._netns_fd, CLONE_NEWNET)

    def __exit__(self, *_: object) -> None:
        try:
            setns(self._home_fd, CLONE_NEWNET)
        except (SockscopeError, OSError):
            os._exit(EXIT_STRANDED)


@contextmanager
def way_into(ways: Iterable[str], inode: int) -> Iterator[int | None]:
    """Context: an fd of the namespace by the first of the paths that leads to it; None for our own, which needs no
    entering. Raises: Vanished, Denied, as the last way did."""
    if inode == home_inode():
        yield None
        return
    error: SockscopeError = Vanished(f"no way into namespace {inode}")
    for way in ways:
        try:
            netns_fd = open_netns(way, inode)
            break
        except (Vanished, Denied) as reason:
            error = reason
    else:
        raise error
    try:
        yield netns_fd
    finally:
        os.close(netns_fd)


def home_inode() -> int:
    """The inode of this process's own namespace, which needs no entering and which `inside` comes back to."""
    return os.fstat(_home_fd()).st_ino


def _home_fd() -> int:
    """The fd of this process's own namespace, opened at the first call in each process."""
    global _home
    if _home[0] != os.getpid():
        _home = (os.getpid(), _open_home())
    return _home[1]


def _open_home() -> int:
    try:
        return os.open(_OWN_NETNS_PATH, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        # No procfs here, or one where we do not exist. A new socket is in our own namespace, too.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                return fcntl.ioctl(sock, _SIOCGSKNS)
            except PermissionError:
                raise Denied(
                    "without /proc, one's own namespace may not be asked for", "CAP_NET_ADMIN"
                ) from None
