from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Vanished
from pipeline.procfs.comm import write_own_comm
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.stat import ProcessStat, parse_stat, read_stat
from tests.fake_root import recorded
from tests.live import in_child


@pytest.mark.parametrize(
    "pid, expected",
    [
        (1, ProcessStat(1, "systemd", "S", 4194560, 2, 400)),
        (71, ProcessStat(71, "Web Content) R 9", "S", 4194304, 1, 90210)),
        (72, ProcessStat(72, "caf\\xe9\n(x", "S", 4194304, 1, 90333)),
    ],
)
def test_read_stat_of_recorded_processes(pid: int, expected: ProcessStat) -> None:
    assert read_stat(recorded("two_namespaces"), pid) == expected


def test_a_kernel_thread_is_told_by_its_flag() -> None:
    assert read_stat(recorded("two_namespaces"), 2).is_kernel_thread
    assert not read_stat(recorded("two_namespaces"), 71).is_kernel_thread


@pytest.mark.parametrize("pid", [71, 72, 73])
def test_a_stat_without_parenthesis_cut_short_or_with_a_word_is_malformed(pid: int) -> None:
    with pytest.raises(Malformed):
        read_stat(recorded("broken"), pid)


def test_a_process_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        read_stat(recorded("two_namespaces"), 99)


@given(st.binary(max_size=15).filter(lambda comm: b"\0" not in comm))
def test_any_comm_leaves_the_other_fields_right(comm: bytes) -> None:
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    stat = parse_stat(b"7 (" + comm + b") Z " + fields + b"\n")
    assert stat == ProcessStat(7, comm.decode("utf-8", "backslashreplace"), "Z", 9, 20, 22)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_stat_or_malformed(data: bytes) -> None:
    try:
        parse_stat(data)
    except Malformed:
        return


@given(st.integers(min_value=0, max_value=300))
def test_a_stat_cut_anywhere_gives_a_stat_or_malformed(length: int) -> None:
    data = Path(recorded("two_namespaces").full_path("71/stat")).read_bytes()
    try:
        assert parse_stat(data[:length]).pid == 71
    except Malformed:
        return


def test_read_stat_of_a_process_with_a_hostile_name() -> None:
    def own() -> tuple[str, int, int, float, float]:
        write_own_comm(") R (\n 1 ")
        stat = read_stat(ProcRoot(), os.getpid())
        born = psutil.Process().create_time() - psutil.boot_time()
        return (
            stat.comm,
            stat.pid - os.getpid(),
            stat.num_threads,
            stat.start_ticks / os.sysconf("SC_CLK_TCK"),
            born,
        )

    comm, pid_difference, threads, started_s, born_s = in_child(own)
    assert (comm, pid_difference, threads) == (") R (\n 1 ", 0, 1)
    # psutil's boot time is in whole seconds.
    assert abs(started_s - born_s) < 2
