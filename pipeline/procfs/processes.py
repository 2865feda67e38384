"""Which processes and threads there are: the folders of the proc root and of PID/task."""

from __future__ import annotations

from pipeline.procfs.root import ProcRoot


def list_pids(root: ProcRoot) -> list[int]:
    """Pids of all visible processes, kernel threads and zombies included, ascending on a real procfs.

    Others' processes are absent where procfs is mounted with hidepid=2. Source: proc_pid_readdir(), fs/proc/base.c.
    """
    return [int(name) for name in root.list("") if name.isdecimal()]


def list_tids(root: ProcRoot, pid: int) -> list[int]:
    """Tids of a process's threads, the leader's (the pid) among them. Raises: Vanished, Denied.

    Threads that start or end meanwhile may be missed. Source: proc_task_readdir(), fs/proc/base.c.
    """
    return [int(name) for name in root.list(f"{pid}/task") if name.isdecimal()]


def count_threads(root: ProcRoot, pid: int) -> int:
    """How many threads a process has, its leader included, without listing them. Raises: Vanished, Denied.

    Source: proc_task_getattr(), fs/proc/base.c, which adds the number of threads to the folder's 2 links.
    """
    return root.links(f"{pid}/task") - 2
