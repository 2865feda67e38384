"""Children of the supervisor: how they end, and when the next one is due."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.roles.child import Child, Process, start_child
from pipeline.roles.control import Control
from tests.live import wait_until

# Python 3.12 warns of forks beside threads; what runs in these children touches no lock.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def fail() -> None:
    os._exit(3)


def wait_for_ever() -> None:
    while True:
        signal.pause()


def test_a_child_runs_its_work_and_ends_with_status_0_and_a_fault_with_70(tmp_path: Path) -> None:
    assert start_child("test", None, (tmp_path / "made").touch, []).reap(wait=True) == "status 0"
    assert (tmp_path / "made").exists()
    assert start_child("test", None, fail, []).reap(wait=True) == "status 3"
    assert start_child("test", None, lambda: 1 // 0, []).reap(wait=True) == "status 70"  # type: ignore[arg-type]


def test_a_killed_child_is_reaped_as_such_and_no_zombie_is_left() -> None:
    process = start_child("test", 4026531840, wait_for_ever, [])
    assert process.reap() is None
    process.kill()
    assert process.reap(wait=True) == "signal 9"
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_child_closes_what_it_is_told_to(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def is_closed() -> None:
        try:
            os.fstat(writer)
        except OSError:
            (tmp_path / "closed").touch()

    process = start_child("test", None, is_closed, [writer])
    assert process.reap(wait=True) == "status 0"
    assert (tmp_path / "closed").exists()
    os.close(reader)
    os.close(writer)


def test_a_signal_in_a_child_does_not_write_into_what_took_the_number_of_the_wake_up_pipe(
    tmp_path: Path,
) -> None:
    """As a program of its own: the wake-up pipe belongs to a process's main thread."""
    script = f"""
import os, signal
from pipeline.roles.child import start_child
reader, writer = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda number, frame: None)
def main():
    fd = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, writer)
    os.kill(os.getpid(), signal.SIGTERM)
print(start_child("test", None, main, [reader, writer]).reap(wait=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=_ROOT
    )
    assert (done.stdout, done.stderr) == ("status 0\n", "")
    assert (tmp_path / "file").read_bytes() == b""


_ROOT = Path(__file__).parents[2]


def test_a_place_is_filled_again_with_back_off_that_ends_after_a_settled_minute() -> None:
    place = Child(backoff_s=0.5)
    waits = []
    now_s = 100.0
    for lived_s in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 61.0):
        place.start(lambda theirs: start_child("test", None, fail, []), now_s)
        assert place.pid > 0
        now_s += lived_s
        assert place.reap(now_s, wait=True) == "status 3"
        assert (place.pid, place.control) == (0, None)
        waits.append(place.start_at_s - now_s)
        now_s = place.start_at_s
    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 0.5])
    assert place.restarts == 8


def test_a_place_whose_start_fails_is_empty_and_not_taken_for_filled() -> None:
    place = Child(backoff_s=0.5)

    def refuse(theirs: Control) -> Process:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        place.start(refuse, 100.0)
    assert (place.pid, place.control) == (0, None)
    place.start(lambda theirs: start_child("test", None, fail, []), 100.0)
    assert place.reap(100.0, wait=True) == "status 3"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pipeline.roles.child import start_child
def main():
    while True:
        signal.pause()
print(start_child("test", None, main, []).pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate(timeout=60)
    wait_until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
