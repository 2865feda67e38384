"""Facts about this host that need no procfs: capability numbers, BTF, room in /dev/shm. No decisions."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

Answer = Literal["yes", "no", "unknown"]

# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

BTF_PATH = "/sys/kernel/btf/vmlinux"
SHM_DIR = "/dev/shm"
# Where the unified hierarchy is mounted: alone, or beside those of version 1 (systemd's hybrid layout).
_CGROUP2_DIRS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")

# One worker's segment with some thousand sockets.
_SHM_TRIAL_BYTES = 1 << 20


class Feature(NamedTuple):
    """One thing that this host allows or not. `answer`: yes, no, unknown (could not be tried). `detail`: what was
    seen. `instead`: what is used, or missing, without it; empty where the answer is yes."""

    name: str
    answer: Answer
    detail: str
    instead: str


def has_capability(effective_capabilities: int, name: str) -> bool:
    """Whether the bit of capability `name` is set. Raises: KeyError for one that is not in CAPABILITIES."""
    return bool(effective_capabilities >> CAPABILITIES[name] & 1)


def host_name() -> str:
    """The kernel's name for this host, as uname(2) tells it in our UTS namespace; need not resolve."""
    return os.uname().nodename


def cgroup2_dir() -> str | None:
    """The root of cgroup version 2 as we see it; None where it is not mounted at either usual place."""
    for path in _CGROUP2_DIRS:
        # Only this version has that file. Source: Documentation/admin-guide/cgroup-v2.rst.
        if os.path.exists(f"{path}/cgroup.controllers"):
            return path
    return None


def probe_btf(path: str = BTF_PATH) -> Feature:
    """Whether the kernel's own type information can be read: eBPF objects are fitted to the kernel by it."""
    try:
        with open(path, "rb") as file:
            is_btf = file.read(2) in (b"\x9f\xeb", b"\xeb\x9f")
    except OSError as error:
        return Feature("btf", "no", f"{path}: {error.strerror}", "no eBPF: /proc and sock_diag are read")
    if not is_btf:
        return Feature("btf", "no", f"{path} is not BTF", "no eBPF: /proc and sock_diag are read")
    return Feature("btf", "yes", path, "")


def probe_shm(directory: str = SHM_DIR) -> Feature:
    """Whether `directory` takes one more segment, by allocating one without a name, and how much is free."""
    instead = "no latest state in shared memory: a restarted aggregator waits for the next pass"
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SHM_TRIAL_BYTES)
            room = os.fstatvfs(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return Feature("shared_memory", "no", f"{directory}: {error.strerror}", instead)
    free_mb = room.f_bavail * room.f_frsize >> 20
    return Feature("shared_memory", "yes", f"{directory}: {free_mb} MB free", "")
