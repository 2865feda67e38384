"""bpf(2), as far as a light skeleton, an iterator and a ring buffer need it; its errno sorted.

Every descriptor returned is the caller's to close (they are close-on-exec by the kernel's rule). A program, map or
link lives as long as a descriptor of it: nothing is pinned. Source: include/uapi/linux/bpf.h, union bpf_attr.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NoReturn

from pipeline.errors import Denied, Unsupported
from pipeline.kernel.libc import address_of, bpf, effective_capabilities
from pipeline.kernel.support import has_capability

RIGHTS = "CAP_BPF and CAP_PERFMON"

# enum bpf_cmd
_MAP_CREATE = 0
_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_PROG_LOAD = 5
_PROG_RUN = 10
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_ITER_CREATE = 33

_MAP_TYPE_ARRAY = 2
_PROG_TYPE_SYSCALL = 31
_PROG_SLEEPABLE = 1 << 4
_ATTACH_TRACE_ITER = 28
_ATTACH_SOCK_RELEASE = 34

_ENOTSUPP = 524  # include/linux/errno.h: not for user space, and yet what some of bpf(2) answers

# What says that the kernel does not have it: no such command, type, helper, tracepoint or field.
_NOT_THERE = (errno.ENOSYS, errno.EINVAL, errno.ENOENT, errno.ESRCH, errno.EOPNOTSUPP, errno.E2BIG, _ENOTSUPP)


def create_array(value_bytes: int) -> int:
    """A map of one value of `value_bytes`. Raises: Denied, Unsupported."""
    attributes = bytearray(struct.pack("=IIII", _MAP_TYPE_ARRAY, 4, value_bytes, 1))
    return _sorted("creating a map", bpf(_MAP_CREATE, attributes))


def write_first(map_fd: int, value: bytes) -> None:
    """Sets the value at key 0 of an array. Raises: Denied, Unsupported."""
    _sorted("writing a map", _element(_MAP_UPDATE_ELEM, map_fd, bytearray(value)))


def read_first(map_fd: int, value_bytes: int) -> bytes:
    """The value at key 0 of an array. Raises: Denied, Unsupported."""
    value = bytearray(value_bytes)
    _sorted("reading a map", _element(_MAP_LOOKUP_ELEM, map_fd, value))
    return bytes(value)


def load_syscall_program(instructions: bytes, map_fd: int) -> int:
    """A program that runs when told and may itself call bpf(2); `map_fd` is the map it names by index 0.

    Raises: Denied, Unsupported (before Linux 5.14). Source: kernel/bpf/syscall.c, bpf_prog_load().
    """
    code = bytearray(instructions)
    licence = bytearray(b"Dual BSD/GPL\0")
    maps = bytearray(struct.pack("=i", map_fd))
    attributes = bytearray(128)
    struct.pack_into(
        "=IIQQ", attributes, 0, _PROG_TYPE_SYSCALL, len(code) // 8, address_of(code), address_of(licence)
    )
    struct.pack_into("=I", attributes, 44, _PROG_SLEEPABLE)
    struct.pack_into("=Q", attributes, 120, address_of(maps))
    return _sorted("loading the loader program", bpf(_PROG_LOAD, attributes))


def run_program(program_fd: int, context: bytearray) -> int:
    """Runs a syscall program once on `context`, which it may write; what it returns, signed.

    Raises: Denied, Unsupported. Source: net/bpf/test_run.c, bpf_prog_test_run_syscall().
    """
    attributes = bytearray(80)
    struct.pack_into("=I", attributes, 0, program_fd)
    struct.pack_into("=I4xQ", attributes, 40, len(context), address_of(context))
    _sorted("running the loader program", bpf(_PROG_RUN, attributes))
    return int(struct.unpack_from("=i", attributes, 4)[0])


def open_tracepoint(program_fd: int) -> int:
    """Attaches a tp_btf program, which names its tracepoint itself; detached when the descriptor is closed.

    Raises: Denied, Unsupported.
    """
    attributes = bytearray(struct.pack("=QI4x", 0, program_fd))
    return _sorted("attaching to a tracepoint", bpf(_RAW_TRACEPOINT_OPEN, attributes))


def link_iterator(program_fd: int, pid: int = 0) -> int:
    """A link from which iterators are made; with `pid`, of our pid namespace, they visit that process only.

    Raises: Denied, Unsupported (`pid`: before Linux 6.1). Source: kernel/bpf/task_iter.c, bpf_iter_attach_task().
    """
    target = bytearray(struct.pack("=III", 0, pid, 0))
    info = struct.pack("=QI4x", address_of(target), len(target)) if pid else bytes(16)
    attributes = bytearray(struct.pack("=IIII", program_fd, 0, _ATTACH_TRACE_ITER, 0) + info)
    return _sorted("linking an iterator", bpf(_LINK_CREATE, attributes))


def link_sock_release(program_fd: int, cgroup_fd: int) -> int:
    """Runs a program for every inet socket that is released in a cgroup2 or below it, while the descriptor is open.

    Raises: Denied (CAP_NET_ADMIN as well), Unsupported. Source: net/ipv4/af_inet.c, inet_release().
    """
    attributes = bytearray(struct.pack("=IIII16x", program_fd, cgroup_fd, _ATTACH_SOCK_RELEASE, 0))
    answer = bpf(_LINK_CREATE, attributes)
    if answer == -errno.EBADF:
        raise Unsupported("eBPF: attaching to a cgroup: it is none of version 2")
    return _sorted("attaching to a cgroup", answer)


def create_iterator(link_fd: int) -> int:
    """One pass: a descriptor to read to its end. Raises: Denied, Unsupported."""
    attributes = bytearray(struct.pack("=II", link_fd, 0))
    return _sorted("creating an iterator", bpf(_ITER_CREATE, attributes))


def raise_sorted(what: str, number: int) -> NoReturn:
    """Raises the error of ours that fits errno `number`; resource errors stay an OSError (the process dies)."""
    if number in _NOT_THERE and _lacks_rights():
        # With CAP_BPF alone the verifier refuses what needs CAP_PERFMON with EINVAL.
        number = errno.EPERM
    reason = "not supported" if number == _ENOTSUPP else os.strerror(number)
    message = f"eBPF: {what}: {reason}"
    if number in (errno.EPERM, errno.EACCES):
        raise Denied(
            message,
            RIGHTS,
            f"root, or {RIGHTS}; a locked down kernel or a security module may refuse those as well",
        )
    if number in _NOT_THERE:
        raise Unsupported(message, "a newer kernel; `sockscope probe` shows what works on this one")
    raise OSError(number, message)


def _lacks_rights() -> bool:
    held = effective_capabilities()
    return not has_capability(held, "CAP_SYS_ADMIN") and not (
        has_capability(held, "CAP_BPF") and has_capability(held, "CAP_PERFMON")
    )


def _element(command: int, map_fd: int, value: bytearray) -> int:
    key = bytearray(4)
    attributes = bytearray(struct.pack("=I4xQQQ", map_fd, address_of(key), address_of(value), 0))
    return bpf(command, attributes)


def _sorted(what: str, answer: int) -> int:
    if answer < 0:
        raise_sorted(what, -answer)
    return answer
