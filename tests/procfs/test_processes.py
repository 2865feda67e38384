from __future__ import annotations

import os
import threading

import psutil
import pytest

from pipeline.errors import Vanished
from pipeline.procfs.processes import count_threads, list_pids, list_tids
from pipeline.procfs.root import ProcRoot
from tests.fake_root import recorded


def test_list_pids_leaves_out_what_is_no_process() -> None:
    assert sorted(list_pids(recorded("two_namespaces"))) == [1, 2, 71, 72]


def test_list_tids_has_the_leader_and_its_threads() -> None:
    assert sorted(list_tids(recorded("two_namespaces"), 1)) == [1, 9]
    assert list_tids(recorded("two_namespaces"), 71) == [71]


def test_list_tids_says_vanished_for_a_pid_that_is_gone() -> None:
    with pytest.raises(Vanished):
        list_tids(recorded("two_namespaces"), 99)


def test_count_threads_counts_without_listing() -> None:
    assert count_threads(recorded("two_namespaces"), 1) == 2
    assert count_threads(recorded("two_namespaces"), 71) == 1
    with pytest.raises(Vanished):
        count_threads(recorded("two_namespaces"), 99)


def test_list_tids_shows_a_thread_of_ours_and_list_pids_ourselves() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        tids = list_tids(ProcRoot(), os.getpid())
        assert set(tids) == {entry.id for entry in psutil.Process().threads()}
        assert thread.native_id in tids
        assert count_threads(ProcRoot(), os.getpid()) == psutil.Process().num_threads()
    finally:
        end.set()
        thread.join()
    assert os.getpid() in list_pids(ProcRoot())
