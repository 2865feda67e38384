"""The eBPF worker's place in the fleet: one worker for all namespaces, for as long as its events can be trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import Ebpf
from pipeline.ebpf import EventRing, SocketIterator
from pipeline.errors import Denied, Malformed, Unsupported, Vanished
from pipeline.kernel.support import cgroup2_dir
from pipeline.procfs.ns import INITIAL_PID_NAMESPACE, read_pid_namespace
from pipeline.procfs.root import ProcRoot
from pipeline.roles.child import Forked
from pipeline.roles.control import Control
from pipeline.roles.kernel_pass import open_iterator
from pipeline.track.trust import Trust, Verdict

_log = logging.getLogger(__name__)

ROLE = "ebpf"


class EbpfPlace:
    """Decides with every end of the worker whether there is another one. `index`: of its slot on the board; `start`
    forks it. `is_open`: netns workers are not needed."""

    def __init__(self, index: int, start: Callable[[Control], Forked]) -> None:
        self.index = index
        self.start = start
        self._trust = Trust()
        self._reason = ""

    @property
    def is_open(self) -> bool:
        return not self._trust.is_lost

    def began(self) -> None:
        """A worker was forked."""
        self._trust.began()
        self._reason = ""

    def hear(self, message: Mapping[str, Any]) -> bool:
        """Takes what a worker said; whether it was of this."""
        if message["op"] == "ebpf_settled":
            self._trust.settled()
            _log.info("eBPF: one process reads all namespaces")
        elif message["op"] == "ebpf_failed":
            self._reason = message["reason"]
        else:
            return False
        return True

    def ended(self, how: str, now_s: float) -> bool:
        """After the worker's end: whether it is to be started once more. Says which, and why."""
        again = self._trust.failed(now_s) is Verdict.RESTART
        then = "starting it once more, from a fresh state" if again else "reading /proc from now on"
        _log.warning("the eBPF worker stopped: %s; %s", self._reason or how, then)
        return again


def open_sources(settings: Ebpf) -> tuple[EventRing, SocketIterator]:
    """Events first: what opens or closes during the first pass is among them. Raises: Unsupported, Denied."""
    ring = EventRing.open(settings.ring_bytes, cgroup_dir=cgroup2_dir())
    try:
        return ring, SocketIterator.open()
    except BaseException:
        ring.close()
        raise


def is_possible(settings: Ebpf, root: ProcRoot) -> bool:
    """Whether this host lets an eBPF worker run, by `ebpf.mode` and by trying. Says why not, for auto. Raises: Denied,
    for require."""

    def opening() -> SocketIterator:
        _check_pids(root)
        ring, iterator = open_sources(settings)
        ring.close()
        return iterator

    iterator = open_iterator(settings.mode, root, opening)
    if iterator is not None:
        iterator.close()
    return iterator is not None


def _check_pids(root: ProcRoot) -> None:
    """Raises: Unsupported where events, which name pids of the initial pid namespace, would name other processes."""
    try:
        inside = read_pid_namespace(root, os.getpid()) != INITIAL_PID_NAMESPACE
    except (Vanished, Denied, Malformed):
        return  # a kernel without pid namespaces
    if inside:
        raise Unsupported(
            "eBPF: its events name processes by the host's pids, and this is a pid namespace of its own",
            "the host's pid namespace (of a container: --pid=host)",
        )
