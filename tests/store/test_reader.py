"""Reading: one state at a time, never writing, never without end; the file and its rights."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import NoAggregator, Refused
from pipeline.store import Reader, Store
from tests.sample_state import HOST, connection, snapshot

_COUNT = "SELECT count(*) FROM connections"
_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@dataclass(slots=True)
class _HastyClock(ManualClock):
    """Every look at it takes a second."""

    def monotonic_s(self) -> float:
        self.now_s += 1.0
        return self.now_s


def _store(path: Path | str, epoch: str = "epoch-1") -> Store:
    return Store(str(path), epoch, "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def test_moment_shows_one_state_whatever_is_committed_meanwhile(tmp_path: Path) -> None:
    store = _store(tmp_path / "store.db")
    store.apply([snapshot(HOST, 1, connections=[connection(1)])])
    reader = Reader(store.path)

    with reader.moment():
        assert reader.rows(_COUNT) == [(1,)]
        store.apply([snapshot(HOST, 2, base=False, connections=[connection(2)])])
        assert reader.rows(_COUNT) == [(1,)]
    with reader.moment():
        assert reader.rows(_COUNT) == [(2,)]


@pytest.mark.parametrize("path", [":memory:", "store.db"])
def test_reader_cannot_write(tmp_path: Path, path: str) -> None:
    store = _store(path if path == ":memory:" else tmp_path / path)
    store.apply([snapshot(HOST, connections=[connection(1)])])
    reader = store.reader()

    with pytest.raises(Refused, match="readonly"), reader.moment():
        reader.rows("DELETE FROM connection")

    assert store.apply([snapshot(HOST, 2, base=False, connections=[connection(2)])]).seq == 2
    with reader.moment():
        assert reader.rows(_COUNT) == [(2,)]


@pytest.mark.parametrize("path", [":memory:", "store.db"])
def test_query_without_end_is_ended_and_the_reader_goes_on(tmp_path: Path, path: str) -> None:
    store = _store(path if path == ":memory:" else tmp_path / path)
    shared = store.reader()
    reader = Reader(store.path, _HastyClock(), 20.0, shared=shared._database if path == ":memory:" else None)

    with pytest.raises(Refused, match="longer than 20 s") as refused, reader.moment():
        reader.rows(_ENDLESS)

    assert refused.value.code == "timeout"
    with reader.moment():
        assert reader.rows(_COUNT) == [(0,)]


def test_wrong_sql_is_refused_and_not_called_slow(tmp_path: Path) -> None:
    reader = _store(":memory:").reader()

    with pytest.raises(Refused, match="no such table") as refused, reader.moment():
        reader.rows("SELECT * FROM absent")

    assert refused.value.code == "failed"


def test_no_store_is_no_aggregator(tmp_path: Path) -> None:
    with pytest.raises(NoAggregator, match=r"no store at .*absent\.db"):
        Reader(str(tmp_path / "absent.db"))
    assert os.listdir(tmp_path) == []


def test_files_are_for_the_owner_only_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = _store(tmp_path / "store.db")
        store.apply([snapshot(HOST)])
    finally:
        os.umask(before)

    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_store_of_a_predecessor_that_died_is_replaced(tmp_path: Path) -> None:
    dead = _store(tmp_path / "store.db", "epoch-1")
    dead.apply([snapshot(HOST, connections=[connection(1)])])

    store = _store(tmp_path / "store.db", "epoch-2")

    reader = Reader(store.path)
    with reader.moment():
        assert reader.rows("SELECT epoch, seq FROM meta") == [("epoch-2", 0)]
        assert reader.rows(_COUNT) == [(0,)]


def test_link_in_the_place_of_the_store_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "store.db").symlink_to(victim)

    _store(tmp_path / "store.db")

    assert victim.read_text() == "precious"
