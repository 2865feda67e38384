"""What our own processes cost, by psutil: CPU and memory of each, for `status`."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from pipeline.clock import Clock
from pipeline.model.netns import UsageRow
from pipeline.procfs.root import ProcRoot

# One process costs 0.1 ms, its PSS 1 ms more: with 64 workers every second would be a tenth of the budget.
_INTERVAL_S = 10.0
_PSS_INTERVAL_S = 60.0


class UsageMeter:
    """Measures the same processes again and again; CPU is that since the measurement before."""

    def __init__(self, clock: Clock, root: ProcRoot) -> None:
        """`root`: where processes are read, if its pids are ours."""
        self._clock = clock
        if root.is_ours():
            psutil.PROCFS_PATH = root.path  # a setting of the module's: this is its one importer
        self._processes: dict[int, psutil.Process] = {}
        self._pss: dict[int, int | None] = {}
        self._measured_s = self._pss_measured_s = -1e9

    def measure_if_due(self, pids: Iterable[int]) -> list[UsageRow] | None:
        """A row per living process, or None while the last measurement is fresh enough."""
        now_s = self._clock.monotonic_s()
        wanted = {pid for pid in pids if pid}
        if now_s - self._measured_s < _INTERVAL_S and wanted <= self._processes.keys():
            return None
        self._measured_s = now_s
        with_pss = now_s - self._pss_measured_s >= _PSS_INTERVAL_S
        if with_pss:
            self._pss_measured_s = now_s
        self._processes = {pid: process for pid, process in self._processes.items() if pid in wanted}
        self._pss = {pid: pss for pid, pss in self._pss.items() if pid in wanted}
        rows = (self._measure(pid, with_pss or pid not in self._pss) for pid in sorted(wanted))
        return [row for row in rows if row is not None]

    def _measure(self, pid: int, with_pss: bool) -> UsageRow | None:
        """None where the process has ended: the supervisor will say so."""
        try:
            process = self._processes.get(pid)
            if process is None or not process.is_running():
                process = self._processes[pid] = psutil.Process(pid)
            with process.oneshot():
                cpu_percent, rss_bytes = process.cpu_percent(), process.memory_info().rss
            if with_pss:
                self._pss[pid] = _pss_bytes(process)
        except psutil.NoSuchProcess:
            self._processes.pop(pid, None)
            return None
        return UsageRow(pid, cpu_percent, rss_bytes, self._pss.get(pid))


def _pss_bytes(process: psutil.Process) -> int | None:
    try:
        # psutil looks when it is imported whether the kernel tells it, in /proc, whatever is there then.
        pss: int | None = getattr(process.memory_full_info(), "pss", None)
    except psutil.AccessDenied:
        return None
    return pss
