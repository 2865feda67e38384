"""PID/ns: which namespaces a task is in."""

from __future__ import annotations

import heapq

from pipeline.errors import Malformed
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot, task_dir

# PROC_PID_INIT_INO, include/linux/proc_ns.h: the pid namespace that has every process of the host.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
_WAYS_BY_TASK = 3


def parse_netns_link(link: str) -> NetnsInode:
    """The inode in "net:[4026531840]". Raises: Malformed. Source: ns_get_name(), fs/nsfs.c."""
    return NetnsInode(_parse_link(link, "net"))


def read_netns_inode(root: ProcRoot, task: Task) -> NetnsInode:
    """The inode of the task's network namespace, by readlink (2.8 us; stat takes 7.5).

    Raises: Vanished (also a zombie: it has left its namespaces), Denied (CAP_SYS_PTRACE), Malformed.
    """
    return parse_netns_link(root.readlink(task_dir(task) + "/ns/net"))


def read_pid_namespace(root: ProcRoot, pid: int) -> int:
    """The inode of a process's pid namespace. Raises: Vanished (also without any in the kernel), Denied, Malformed."""
    return _parse_link(root.readlink(f"{pid}/ns/pid"), "pid")


def netns_path(root: ProcRoot, task: Task) -> str:
    """The path to open for entering the task's network namespace."""
    return root.full_path(task_dir(task) + "/ns/net")


def ways_into(root: ProcRoot, netns: Netns) -> list[str]:
    """Paths to enter a namespace by, the lasting ones first; of some tasks, since one may end before it is used."""
    tasks = heapq.nsmallest(_WAYS_BY_TASK, netns.tasks)
    return [*netns.paths, *(netns_path(root, task) for task in tasks)]


def _parse_link(link: str, kind: str) -> int:
    digits = link[len(kind) + 2 : -1]
    if link != f"{kind}:[{digits}]" or not (digits.isascii() and digits.isdecimal()):
        raise Malformed(f"ns/{kind}: {link[:80]!r} is not {kind}:[N]")
    return int(digits)
