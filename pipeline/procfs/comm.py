"""PID/comm: the name of a process, as ps shows it."""

from __future__ import annotations

import os

_OWN_COMM_PATH = "/proc/self/comm"


def write_own_comm(name: str) -> None:
    """Names the calling process; the kernel keeps the first 15 bytes. Source: comm_write(), fs/proc/base.c.

    Where there is no procfs of ours it keeps its name: a name is nothing to fail for.
    """
    try:
        fd = os.open(_OWN_COMM_PATH, os.O_WRONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    os.write(fd, os.fsencode(name))
    os.close(fd)
