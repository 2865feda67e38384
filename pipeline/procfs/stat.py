"""PID/stat: what a process is and when it began."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import Malformed
from pipeline.procfs.root import ProcRoot

# include/linux/sched.h
PF_KTHREAD = 0x00200000


class ProcessStat(NamedTuple):
    """`comm`: undecodable bytes as \\xNN. `state`: one letter, Z for a zombie. `flags`: PF_*.
    `start_ticks`: field 22, clock ticks since boot; with the pid it is the process's identity."""

    pid: int
    comm: str
    state: str
    flags: int
    num_threads: int
    start_ticks: int

    @property
    def is_kernel_thread(self) -> bool:
        """Kernel threads hold no descriptors and live in the initial network namespace."""
        return bool(self.flags & PF_KTHREAD)


def parse_stat(data: bytes) -> ProcessStat:
    """The fields of one stat file. Raises: Malformed. Source: do_task_stat(), fs/proc/array.c."""
    opened = data.find(b"(")
    # comm may hold spaces, parentheses and newlines; what follows it never holds a parenthesis.
    closed = data.rfind(b")")
    fields = data[closed + 1 :].split(None, 21)
    if opened < 0 or closed < opened or len(fields) < 21:
        raise Malformed(f"stat: not pid (comm) and 20 fields or more: {data[:80]!r}")
    try:
        return ProcessStat(
            int(data[:opened]),
            data[opened + 1 : closed].decode("utf-8", "backslashreplace"),
            fields[0].decode("ascii"),
            int(fields[6]),
            int(fields[17]),
            int(fields[19]),
        )
    except ValueError:
        raise Malformed(f"stat: a field is not a number: {data[:80]!r}") from None


def read_stat(root: ProcRoot, pid: int) -> ProcessStat:
    """The stat of process `pid`. Raises: Vanished, Denied, Malformed."""
    return parse_stat(root.read(f"{pid}/stat", in_one=True))
