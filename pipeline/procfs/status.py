"""PID/status: what a process is allowed to do."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import Malformed
from pipeline.procfs.lines import rest_of_line
from pipeline.procfs.root import ProcRoot


class ProcessStatus(NamedTuple):
    """`effective_uid`; `effective_capabilities`: bit N is capability number N."""

    effective_uid: int
    effective_capabilities: int


def parse_status(data: bytes) -> ProcessStatus:
    """The fields of one status file. Raises: Malformed. Source: proc_pid_status(), fs/proc/array.c."""
    try:
        # The first line is "Name:", where the kernel escapes newlines: no comm can fake a line.
        return ProcessStatus(
            int(rest_of_line(data, b"\nUid:").split()[1]), int(rest_of_line(data, b"\nCapEff:"), 16)
        )
    except (IndexError, ValueError):
        raise Malformed(f"status: no Uid and CapEff in {len(data)} bytes") from None


def read_status(root: ProcRoot, pid: int) -> ProcessStatus:
    """The status of process `pid`. Raises: Vanished, Denied, Malformed."""
    return parse_status(root.read(f"{pid}/status"))
