"""Looking for the holders of new sockets, before the paced pass gets to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.model.process import Task
from pipeline.model.snapshot import Health
from pipeline.walk.holdings import Holdings
from pipeline.walk.search import OwnerSearch
from pipeline.walk.table import ConnectionTable
from pipeline.walk.walker import Walker
from tests.fake_root import FakeRoot
from tests.walk.rows import diag, row
from tests.walk.trees import write_fds, write_process

ENOUGH_CPU_S = 3600.0


@dataclass
class Host:
    """A namespace in a tree: processes with descriptors, tables with rows, and the search over both.

    `listings` are the tasks whose descriptors were listed, in order. The kernel of this host does not tell the
    number of descriptors (a folder on disk has any size) unless `counts` gives one.
    """

    root: FakeRoot
    table: ConnectionTable
    walker: Walker
    search: OwnerSearch
    clock: ManualClock
    listings: list[int]
    tasks: list[Task]

    def process(self, pid: int, fds: dict[int, int]) -> Task:
        task = write_process(Path(self.root.path), pid, fds)
        if task not in self.tasks:
            self.tasks.append(task)
        return task

    def look(self, limit_cpu_s: float = ENOUGH_CPU_S) -> bool:
        self.listings.clear()
        return self.search.run(self.tasks, limit_cpu_s)


class CountingRoot(FakeRoot):
    """On which an fd folder's size is the number of descriptors, as on Linux 6.2 and later."""

    __slots__ = ()

    def size(self, rel: str) -> int:
        super().size(rel)
        return len(super().list(rel))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = CountingRoot(str(tmp_path))
    clock, table, listings = ManualClock(), ConnectionTable(), list[int]()
    walker = Walker(root, 1, Holdings(), Health())

    def on_access(rel: str) -> None:
        if rel.endswith("/stat"):
            clock.used_cpu_s += 0.001
        if rel.endswith("/fd") and opening[0]:
            listings.append(int(rel.split("/")[0]))

    opening = [True]
    root.on_access = on_access
    return Host(root, table, walker, OwnerSearch(walker, table, clock), clock, listings, [])


def held_by(host: Host, inode: int) -> list[int]:
    return [task.pid for task in host.walker.holdings.holders.get(inode, ())]


def test_the_first_search_visits_every_task_and_finds_every_holder(host: Host) -> None:
    for pid in range(10, 33):
        host.process(pid, {3: pid + 1000})
    host.table.update(diag(*(row(pid + 1000, pid) for pid in range(10, 33))))
    assert host.look()
    assert len(host.walker.holdings.files) == 23
    assert host.search.wanted() == set()


def test_a_task_whose_number_of_descriptors_changed_is_read_though_nothing_is_missing(host: Host) -> None:
    host.process(10, {3: 1000, 4: 1001})
    host.table.update(diag(row(1000, 1), row(1001, 2)))
    host.look()
    host.process(10, {3: 1000})
    assert host.look()
    assert held_by(host, 1001) == []


def test_a_descriptor_opened_in_place_of_a_closed_one_is_found_by_the_lost_socket(host: Host) -> None:
    host.process(10, {3: 1000})
    host.process(11, {3: 1001})
    host.table.update(diag(row(1000, 1), row(1001, 2)))
    host.look()
    write_fds(Path(host.root.path) / "11/fd", {3: 2001})
    host.table.update(diag(row(1000, 1), row(2001, 3)))
    assert host.look()
    assert (held_by(host, 2001), held_by(host, 1001)) == ([11], [])


def test_sockets_may_be_lost_by_one_process_while_others_are_missing(host: Host) -> None:
    host.process(10, {3: 1000, 4: 1001})
    host.process(11, {3: 1002})
    host.table.update(diag(row(1000, 1), row(1001, 2), row(1002, 3)))
    host.look()
    host.process(10, {3: 1000})
    host.table.update(diag(row(1000, 1), row(1002, 3), row(9999, 4)))
    assert host.look()
    assert held_by(host, 1001) == []
    assert host.search.wanted() == {9999}
    assert host.look()
    assert host.search.wanted() == set()


def test_a_socket_searched_everywhere_in_vain_is_not_searched_again(host: Host) -> None:
    host.process(10, {3: 1000})
    host.process(11, {3: 1001})
    rows = [row(1000, 1), row(1001, 2), row(7777, 3)]
    host.table.update(diag(*rows))
    assert host.look()
    host.table.update(diag(*rows))
    before_cpu_s = host.clock.used_cpu_s
    assert host.look()
    assert host.clock.used_cpu_s == before_cpu_s  # no process was read
    assert host.search.wanted() == set()


def test_a_socket_searched_in_vain_that_is_held_later_is_found_by_its_holder_s_count(host: Host) -> None:
    host.process(10, {3: 1000})
    host.table.update(diag(row(1000, 1), row(7777, 3)))
    host.look()
    host.process(10, {3: 1000, 4: 7777})
    assert host.look()
    assert held_by(host, 7777) == [10]


def test_an_inode_that_comes_back_after_it_was_gone_is_searched_again(host: Host) -> None:
    host.process(10, {3: 1000})
    host.table.update(diag(row(1000, 1), row(7777, 3)))
    host.look()
    host.table.update(diag(row(1000, 1)))
    host.look()
    host.table.update(diag(row(1000, 1), row(7777, 4)))
    assert host.search.wanted() == {7777}


def test_a_search_stops_at_its_limit_and_is_complete_after_a_few_runs(host: Host) -> None:
    for pid in range(10, 33):
        host.process(pid, {3: pid + 1000})
    host.table.update(diag(*(row(pid + 1000, pid) for pid in range(10, 33))))
    runs = 1
    while not host.look(0.005):
        runs += 1
        assert runs < 100
    assert 3 <= runs <= 10
    assert len(host.walker.holdings.files) == 23


def test_a_search_of_known_tasks_goes_on_where_its_limit_stopped_it(host: Host) -> None:
    for pid in range(10, 33):
        host.process(pid, {3: pid + 1000})
    host.table.update(diag(*(row(pid + 1000, pid) for pid in range(10, 33))))
    host.look()
    # Held by nobody here: every task is asked, and then no more.
    host.table.update(diag(*(row(pid + 1000, pid) for pid in range(10, 33)), row(7777, 7)))
    runs = 1
    while not host.look(0.005):
        runs += 1
        assert runs < 100
    assert 3 <= runs <= 10
    # Not found, but it may have a number that a file had before: the next one reads all descriptors.
    while not host.look(0.005):
        runs += 1
        assert runs < 100
    assert host.search.wanted() == set()


def test_a_copy_closed_of_a_shared_socket_does_not_hide_what_has_its_number_now(host: Host) -> None:
    host.process(10, {3: 1000, 4: 1001})
    host.process(11, {4: 1001})
    host.table.update(diag(row(1000, 1), row(1001, 2)))
    host.look()
    host.process(10, {3: 1000, 4: 2001})
    host.table.update(diag(row(1000, 1), row(1001, 2), row(2001, 3)))
    assert host.look()
    assert (held_by(host, 2001), held_by(host, 1001)) == ([10], [11])


def test_a_socket_with_the_number_of_a_closed_file_is_found_by_the_second_search(host: Host) -> None:
    host.process(10, {3: 1000, 4: 0})
    host.table.update(diag(row(1000, 1)))
    host.look()
    host.process(10, {3: 1000, 4: 2001})
    host.table.update(diag(row(1000, 1), row(2001, 3)))
    assert host.look()
    assert host.search.wanted() == {2001}
    assert host.look()
    assert held_by(host, 2001) == [10]


def test_a_socket_that_appears_while_a_search_rests_is_searched_everywhere_too(host: Host) -> None:
    for pid in range(10, 33):
        host.process(pid, {3: pid + 1000})
    rows = [row(pid + 1000, pid) for pid in range(10, 33)]
    host.table.update(diag(*rows))
    host.look()
    host.table.update(diag(*rows, row(7777, 7)))
    assert not host.look(0.005)
    # Process 10 was asked already. Its number of descriptors stays as it was.
    write_fds(Path(host.root.path) / "10/fd", {4: 8888})
    host.table.update(diag(*rows[1:], row(7777, 7), row(8888, 8)))
    runs = 1
    while not host.look(0.005):
        runs += 1
        assert runs < 100
    assert held_by(host, 8888) == [10]


def test_tasks_that_vanish_or_are_denied_do_not_stop_a_search(host: Host) -> None:
    for pid in (10, 11, 12):
        host.process(pid, {3: pid + 1000})
    host.table.update(diag(row(1010, 1), row(1011, 2), row(1012, 3)))
    host.root.lost.add("10")
    host.root.denied["11/fd"] = "CAP_DAC_READ_SEARCH"
    assert host.look()
    assert held_by(host, 1012) == [12]
    host.root.lost.add("12")
    host.table.update(diag(row(1010, 1), row(1011, 2), row(1012, 3), row(1013, 4)))
    assert host.look()
    assert host.walker.holdings.files == {}


def test_the_likely_holder_by_uid_is_asked_before_the_others(host: Host) -> None:
    for pid in range(10, 33):
        host.process(pid, {3: pid + 1000})
    rows = [row(pid + 1000, pid) for pid in range(10, 33)]
    host.table.update(diag(*rows))
    host.look()
    # Pid 31 closed one and opened one: it lost a socket, so it is asked first and nobody else.
    write_fds(Path(host.root.path) / "31/fd", {4: 8888})
    host.table.update(diag(*(one for one in rows if one[9] != 1031), row(8888, 8)))
    before_cpu_s = host.clock.used_cpu_s
    assert host.look()
    assert held_by(host, 8888) == [31]
    assert host.clock.used_cpu_s - before_cpu_s == pytest.approx(0.001)


def test_a_descriptor_whose_socket_came_and_went_between_two_readings_is_read_again(host: Host) -> None:
    task = host.process(11, {3: 100})
    host.table.update(diag(row(100, 1)))
    host.look()
    # The pass sees socket 101, which no reading of the tables ever shows; then the number is socket 102's.
    host.process(11, {3: 101})
    host.walker.visit(task)
    host.process(11, {3: 102})
    host.table.update(diag(row(102, 3)))
    host.look()
    assert held_by(host, 102) == [11]
    assert held_by(host, 101) == []
