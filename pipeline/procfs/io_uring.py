"""PID/fdinfo of an io_uring: the files registered with it, which stay open without any descriptor of their own."""

from __future__ import annotations

from pipeline.errors import Denied, Vanished
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot, task_dir

# What the link of a ring's descriptor says.
RING_LINK = "anon_inode:[io_uring]"


def parse_registered_sockets(data: bytes) -> set[int]:
    """Inodes of the sockets among the registered files; empty for what is no ring's.

    Each file has a line of its place in the table and its path, below a line with their number.
    Source: io_uring_show_fdinfo(), io_uring/fdinfo.c.
    """
    begin = data.find(b"\nUserFiles:")
    if begin < 0:
        return set()
    inodes = set()
    for line in data[begin:].split(b"\n")[2:]:
        place, colon, path = line.strip().partition(b": ")
        if not colon or not place.isdigit():
            break
        digits = path[8:-1]
        if path == b"socket:[%b]" % digits and digits.isdigit():
            inodes.add(int(digits))
    return inodes


def read_registered_sockets(root: ProcRoot, task: Task, fd: int) -> set[int]:
    """Those of the ring that is `fd` of the task; empty where it is closed by now, or may not be read."""
    try:
        return parse_registered_sockets(root.read(f"{task_dir(task)}/fdinfo/{fd}"))
    except (Vanished, Denied):
        return set()
