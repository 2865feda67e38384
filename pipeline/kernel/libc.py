"""System calls that Python 3.11 lacks, with their errno sorted; the only user of ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NoReturn

from pipeline.errors import Denied, Unsupported, Vanished

# include/uapi/linux/sched.h
CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# System call numbers: one for all architectures since 5.0; kcmp is older and has its own in each.
_NR_PIDFD_GETFD = 438
_NR_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}.get(
    os.uname().machine
)
_KCMP_FILES = 2  # include/uapi/linux/kcmp.h
_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(os.uname().machine)

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1

_CAPABILITY_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h

_M_ARENA_MAX = -8  # malloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def setns(fd: int, nstype: int) -> None:
    """Moves the calling thread, and only it, into the namespace behind `fd`; `nstype` is its CLONE_NEW* or 0.

    Raises: Denied (CAP_SYS_ADMIN over the namespace's user namespace), Vanished (a pidfd whose process ended),
    Unsupported (`fd` is no namespace of that type). Source: setns(2), kernel/nsproxy.c.
    """
    if _libc.setns(fd, nstype) != 0:
        _raise_sorted("setns", "CAP_SYS_ADMIN")


def unshare(flags: int) -> None:
    """Gives the calling thread its own copies of what the CLONE_* `flags` name.

    Raises: Denied (CAP_SYS_ADMIN), Unsupported; ENOMEM and ENOSPC (too many namespaces) pass as OSError.
    """
    if _libc.unshare(flags) != 0:
        _raise_sorted("unshare", "CAP_SYS_ADMIN")


def prctl_set_pdeathsig(signal_number: int) -> None:
    """Has the kernel send `signal_number` to this process when the *thread* that forked it ends.

    The caller must look at its parent's pid afterwards: a parent that died before this call sends nothing.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        _raise_sorted("prctl(PR_SET_PDEATHSIG)", "")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy, in this process, of descriptor `fd` of the process behind `pidfd`; the caller closes it soon.

    Raises: Vanished (the process or its descriptor), Denied (CAP_SYS_PTRACE), Unsupported (before Linux 5.6).
    Source: kernel/pid.c.
    """
    copy = _libc.syscall(_NR_PIDFD_GETFD, ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    if copy < 0:
        if ctypes.get_errno() == errno.EBADF:
            raise Vanished(f"pidfd_getfd: descriptor {fd} is closed")
        _raise_sorted("pidfd_getfd", "CAP_SYS_PTRACE")
    return int(copy)


def share_files(tid: int, other_tid: int) -> bool:
    """Whether two tasks have one table of descriptors. Both are numbers of our own pid namespace.

    Raises: Vanished, Denied (CAP_SYS_PTRACE), Unsupported (no CONFIG_KCMP). Source: kcmp(2), kernel/kcmp.c.
    """
    if _NR_KCMP is None:
        raise Unsupported(f"kcmp: its number on {os.uname().machine} is not known here")
    order = _libc.syscall(_NR_KCMP, tid, other_tid, _KCMP_FILES, 0, 0)
    if order < 0:
        _raise_sorted("kcmp", "CAP_SYS_PTRACE")
    return bool(order == 0)


def bpf(command: int, attributes: bytearray) -> int:
    """What bpf(2) returns, or minus the errno; the kernel may write into `attributes`. Sorting is the caller's, since
    a loader program answers with the same numbers. Source: kernel/bpf/syscall.c."""
    if _NR_BPF is None:
        return -errno.ENOSYS
    size = len(attributes)
    answer = _libc.syscall(
        ctypes.c_long(_NR_BPF),
        ctypes.c_int(command),
        ctypes.c_void_p(address_of(attributes)),
        ctypes.c_uint(size),
    )
    return int(answer) if answer >= 0 else -ctypes.get_errno()


def effective_capabilities() -> int:
    """The calling thread's effective capabilities, a bit each. Source: capget(2)."""
    header = bytearray(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = bytearray(24)
    if _libc.capget(ctypes.c_void_p(address_of(header)), ctypes.c_void_p(address_of(data))) != 0:
        _raise_sorted("capget", "")
    low, high = struct.unpack("=I8xI8x", data)
    return int(high) << 32 | int(low)


def address_of(buffer: bytearray) -> int:
    """Where `buffer` lies in memory, for the kernel to read or write. The caller keeps it alive and of that size."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def malloc_one_arena() -> None:
    """Has all threads allocate from one arena, in this process and what it forks. glibc only; elsewhere it does
    nothing. Source: mallopt(3)."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _raise_sorted(call: str, capability: str) -> NoReturn:
    """Raises the error of ours that fits ctypes' errno; resource errors stay an OSError (the process dies)."""
    number = ctypes.get_errno()
    message = f"{call}: {os.strerror(number)}"
    if number in (errno.EPERM, errno.EACCES):
        raise Denied(message, capability)
    if number == errno.ESRCH:
        raise Vanished(message)
    if number in (errno.EINVAL, errno.ENOSYS):
        raise Unsupported(message)
    raise OSError(number, message)
