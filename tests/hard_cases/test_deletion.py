"""Cases 16 and 17: namespaces that are deleted at any moment, and pids that are somebody else's by then.

The oracle is a veth: the kernel frees it with the namespace, and not before the last reference to that is gone.
Deleted while its worker is idle or stopped outside a dump: tests/e2e/test_catastrophes.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clock import SystemClock
from pipeline.errors import Vanished
from pipeline.model.process import Task
from pipeline.model.snapshot import Health
from pipeline.procfs.root import ProcRoot
from pipeline.walk.holdings import Holdings
from pipeline.walk.reading import TableReader
from pipeline.walk.walker import Walker
from tests.e2e.host import is_alive, named_netns, seconds_until
from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched, only_walking
from tests.live import LiveNetns, needs_root, wait_until

pytestmark = needs_root

# So many sockets that a dump takes some milliseconds.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4001)]
for one in held:
    one.bind(("127.0.0.1", 0))
say(len(held))
told()
"""


@only_walking
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_namespace_that_is_deleted_inside_its_dump_is_freed(watched: Watched, goes_on: bool) -> None:
    """Case 17, where the worker goes on after it, and 16, where it is stuck: then the supervisor kills it."""
    device = Path("/sys/class/net", f"hard-{secrets.token_hex(4)}")
    with named_netns(watched.mounts, "hard-deleted") as netns:
        with actor(netns, FULL) as process:
            veth = ["ip", "link", "add", device.name, "type", "veth", "peer", "name", "eth0", "netns"]
            subprocess.run([*veth, f"/proc/{process.pid}/ns/net"], check=True)
            seconds_until(
                lambda: len(watched.running.connections(netns=netns.inode, pid=process.pid)) == 4001,
                20.0,
                "walked",
            )
            worker = watched.running.worker_of(netns.inode)
            _stop_inside_a_dump(worker)
        netns.remove()
        assert device.exists(), "the dump's socket keeps it"
        if goes_on:
            os.kill(worker, signal.SIGCONT)
        seconds_until(lambda: not device.exists(), 5.0, f"devices free ({goes_on=})")
    seconds_until(lambda: not is_alive(worker), 10.0, "the worker has ended")
    seconds_until(lambda: watched.running.namespace(netns.inode) is None, 5.0, "gone")
    assert "Traceback" not in watched.running.log


def _stop_inside_a_dump(pid: int) -> None:
    end_s = time.monotonic() + 120.0
    while time.monotonic() < end_s:
        if _is_inside_a_dump(pid):
            os.kill(pid, signal.SIGSTOP)
            # Stopped at the end of what it was in: the kernel's part of the dump may be over by then.
            while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
                pass
            if _is_inside_a_dump(pid):
                return
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("never inside a dump")


def _is_inside_a_dump(pid: int) -> bool:
    """Whether it has a netlink socket, which it opens for nothing else."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").startswith(b"NETLINK"):
                return True
    return False


@contextlib.contextmanager
def process_with_pid(pid: int) -> Iterator[None]:
    """A process of our own namespaces that has this free pid."""
    made: list[subprocess.Popen[bytes]] = []

    def has_it() -> bool:
        """Where somebody else was quicker, that one has to end first."""
        while made:
            made.pop().communicate()
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        made.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        return made[0].pid == pid

    try:
        wait_until(has_it)
        yield
    finally:
        while made:
            made.pop().communicate()


@pytest.mark.parametrize("source", ["auto", "proc"])
def test_a_pid_that_was_recycled_is_no_way_into_the_namespace_it_was_in(source: str) -> None:
    """Case 17."""
    with LiveNetns() as live:
        reader = TableReader(ProcRoot(), live.inode, source, SystemClock())
        task = Task(live.pid, live.pid)
        assert reader.read((), [task]).rows == {6: [], 17: []}
    with process_with_pid(task.pid), pytest.raises(Vanished):
        reader.read((), [task])


def test_descriptors_of_a_recycled_pid_are_not_the_old_process_s() -> None:
    """Case 17."""
    health = Health()
    with LiveNetns() as live:
        walker = Walker(ProcRoot(), live.inode, Holdings(), health)
        task = Task(live.pid, live.pid)
        walker.visit(task)
        before = walker.holdings.files[task].process
    # A pid comes round after thousands of others, never within the 10 ms by which start times are told apart.
    wait_until(
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") > before.start_ticks + 2
    )
    with process_with_pid(task.pid):
        walker.refresh(task, set())
        assert walker.holdings.files == {}
        assert health.pids_vanished == 1
        walker.visit(task)
        after = walker.holdings.files[task].process
        assert (before.pid, before.start_ticks < after.start_ticks) == (after.pid, True)
