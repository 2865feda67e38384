"""Which figures of traffic are told when."""

from __future__ import annotations

from pipeline.model.connection import Proto
from pipeline.model.socket_row import SocketRow
from pipeline.model.traffic import Figures, Traffic
from pipeline.walk.carried import Carried
from pipeline.walk.table import ConnectionTable, Reading

ONE, TWO = Figures(10, 20, 300, 0), Figures(11, 20, 310, 1)


def row(cookie: int, inode: int) -> SocketRow:
    return (2, 1, b"\0\x50", b"\1\xbb", bytes(16), bytes(16), 0, cookie, 0, inode)


def test_what_is_new_is_told_at_once_and_the_rest_when_the_interval_is_over() -> None:
    carried, table = Carried(10.0), ConnectionTable()
    carried.update({1: ONE, 2: ONE}, [1, 2], 100.0)
    assert sorted(carried.tell(table, everything=False)) == [Traffic(1, *ONE), Traffic(2, *ONE)]
    carried.update({1: TWO, 2: TWO, 3: ONE}, [3], 101.0)
    assert carried.tell(table, everything=False) == [Traffic(3, *ONE)]
    assert carried.tell(table, everything=False) == []
    carried.update({1: TWO, 2: TWO, 3: ONE}, [], 110.0)
    assert sorted(carried.tell(table, everything=False)) == [Traffic(1, *TWO), Traffic(2, *TWO)]


def test_what_stays_the_same_is_told_once() -> None:
    carried, table = Carried(10.0), ConnectionTable()
    carried.update({1: ONE}, [1], 100.0)
    carried.tell(table, everything=False)
    carried.update({1: ONE}, [], 200.0)
    assert carried.tell(table, everything=False) == []


def test_a_base_has_the_newest_figures_of_all() -> None:
    carried, table = Carried(10.0), ConnectionTable()
    carried.update({1: ONE, 2: ONE}, [1, 2], 100.0)
    carried.update({1: TWO}, [], 101.0)
    assert carried.tell(table, everything=True) == [Traffic(1, *TWO)]


def test_a_connection_that_went_before_it_was_told_of_is_not() -> None:
    carried, table = Carried(10.0), ConnectionTable()
    carried.update({1: ONE}, [1], 100.0)
    carried.update({}, [], 101.0)
    assert carried.tell(table, everything=False) == []
    assert carried.tell(table, everything=True) == []


def test_figures_go_by_the_key_that_their_connection_is_published_under() -> None:
    table = ConnectionTable()
    table.update(Reading("proc", None, {Proto.TCP: [row(0, 5)]}, {}, 0, 0))
    table.update(Reading("sock_diag", 7, {Proto.TCP: [row(99, 5)]}, {}, 0, 0))
    carried = Carried(10.0)
    carried.update({99: ONE}, [99], 100.0)
    assert carried.tell(table, everything=False) == [Traffic(-5, *ONE)]
