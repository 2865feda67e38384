"""Proc trees made on the spot, for processes that a recorded tree does not have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.model.process import Task

PF_KTHREAD = 0x00200000


def write_stat(
    folder: Path, pid: int, comm: bytes = b"server", start_ticks: int = 100, flags: int = 0
) -> None:
    """PID/stat with the kernel's layout as far as field 22."""
    after = f" S 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start_ticks} 0 0\n"
    folder.joinpath("stat").write_bytes(str(pid).encode() + b" (" + comm + b")" + after.encode())


def write_process(
    root: Path,
    pid: int,
    fds: Mapping[int, int],
    comm: bytes = b"server",
    start_ticks: int = 100,
    flags: int = 0,
) -> Task:
    """PID with its stat and descriptors: fd -> socket inode, 0 for a file. Replaces what was there."""
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    write_stat(folder, pid, comm, start_ticks, flags)
    write_fds(folder / "fd", fds)
    return Task(pid, pid)


def write_fds(folder: Path, fds: Mapping[int, int]) -> None:
    folder.mkdir(exist_ok=True)
    for name in os.listdir(folder):
        os.unlink(folder / name)
    for fd, inode in fds.items():
        os.symlink(f"socket:[{inode}]" if inode else "/dev/null", folder / str(fd))
