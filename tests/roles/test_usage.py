"""What our own processes cost; psutil is both the means and, asked again, the oracle."""

from __future__ import annotations

import os
import subprocess

import psutil

from pipeline.clock import ManualClock
from pipeline.procfs.root import ProcRoot
from pipeline.roles.usage import UsageMeter


def test_every_living_process_is_measured_and_those_that_ended_are_left_out() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    rows = UsageMeter(ManualClock(100.0), ProcRoot()).measure_if_due([os.getpid(), ended.pid, 0])
    assert rows is not None
    (row,) = rows
    assert row.pid == os.getpid()
    rss_bytes = psutil.Process().memory_info().rss
    assert 0.5 * rss_bytes < row.rss_bytes < 2 * rss_bytes
    assert row.pss_bytes is not None
    assert 0 < row.pss_bytes <= row.rss_bytes + (1 << 20)


def test_measuring_waits_until_it_is_due_or_a_new_process_is_there() -> None:
    clock = ManualClock(100.0)
    meter = UsageMeter(clock, ProcRoot())
    assert meter.measure_if_due([os.getpid()]) is not None
    clock.advance(9.0)
    assert meter.measure_if_due([os.getpid()]) is None
    assert meter.measure_if_due([os.getpid(), os.getppid()]) is not None
    clock.advance(10.0)
    assert meter.measure_if_due([os.getpid(), os.getppid()]) is not None
