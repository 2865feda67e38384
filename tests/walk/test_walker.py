"""Visiting processes: what is read, what is skipped and counted, where a pass stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.model.process import Process, Task
from pipeline.model.snapshot import Health
from pipeline.walk.holdings import Holdings
from pipeline.walk.walker import Walker
from tests.fake_root import TREES, FakeRoot
from tests.walk.trees import PF_KTHREAD, write_fds, write_process, write_stat

NETNS = 4026531840
SERVER = Task(71, 71)


def walker_on(root: FakeRoot) -> tuple[Walker, Health]:
    health = Health()
    return Walker(root, NETNS, Holdings(), health), health


@pytest.fixture
def tree(tmp_path: Path) -> FakeRoot:
    return FakeRoot(str(tmp_path))


def test_a_visit_reads_every_descriptor_of_a_recorded_process() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    walker, health = walker_on(root)
    walker.visit(SERVER)
    files = walker.holdings.files[SERVER]
    assert sorted(fd for fd, inode in files.fds.items() if inode) == [5, 7, 12]
    assert files.listed == 6
    assert (files.process.pid, files.process.netns) == (71, NETNS)
    assert health == Health()


def test_a_thread_of_its_own_is_visited_by_its_own_folder() -> None:
    walker, health = walker_on(FakeRoot(f"{TREES}/two_namespaces"))
    walker.visit(Task(1, 9))
    files = walker.holdings.files[Task(1, 9)]
    assert files.process.pid == 1
    assert files.fds
    assert health == Health()


def test_a_kernel_thread_is_known_but_not_read(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 2, {3: 100}, flags=PF_KTHREAD)
    walker, health = walker_on(tree)
    walker.visit(task)
    assert walker.is_known(task)
    assert walker.holdings.files == {}
    assert health == Health()


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"my server", "my server"),
        (b"a) S 1 (b", "a) S 1 (b"),
        (b"((", "(("),
        (b"caf\xc3\xa9", "caf\xe9"),
        (b"\xff\x01x", "\\xff\x01x"),
        (b"", ""),
    ],
)
def test_a_process_may_call_itself_anything(tree: FakeRoot, comm: bytes, shown: str) -> None:
    task = write_process(Path(tree.path), 71, {3: 100}, comm)
    walker, _ = walker_on(tree)
    walker.visit(task)
    found = walker.holdings.files[task].process
    assert (found.comm, found.start_ticks) == (shown, 100)


@pytest.mark.parametrize("path", ["71", "71/stat", "71/fd"])
def test_a_visit_skips_and_counts_a_process_that_is_gone(path: str) -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    walker, health = walker_on(root)
    walker.visit(SERVER)
    root.lost.add(path)
    walker.visit(SERVER)
    assert walker.holdings.files == {}
    assert walker.holdings.holders == {}
    assert health == Health(pids_vanished=1)


def test_a_visit_drops_a_process_that_vanishes_between_listing_and_fds() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    walker, health = walker_on(root)
    stats_read: list[str] = []

    def vanish_after_first_stat(rel: str) -> None:
        if rel == "71/stat":
            stats_read.append(rel)
            if len(stats_read) == 2:
                root.lost.add("71")

    root.on_access = vanish_after_first_stat
    walker.visit(SERVER)
    assert stats_read == ["71/stat", "71/stat"]
    assert walker.holdings.files == {}
    assert health == Health(pids_vanished=1)


@pytest.mark.parametrize("cheaply", [False, True])
def test_what_was_read_of_two_processes_with_one_pid_is_dropped(tree: FakeRoot, cheaply: bool) -> None:
    task = write_process(Path(tree.path), 71, {3: 100})
    walker, health = walker_on(tree)
    walker.visit(task)
    tree.on_access = lambda rel: (
        write_stat(Path(tree.path) / "71", 71, start_ticks=200) if rel == "71/fd" else None
    )
    if cheaply:
        walker.refresh(task, set())
    else:
        write_stat(Path(tree.path) / "71", 71)
        walker.visit(task)
    assert walker.holdings.files == {}
    assert health == Health(pids_vanished=1)
    walker.visit(task)
    assert walker.holdings.files[task].process.start_ticks == 200


@pytest.mark.parametrize("path", ["71", "71/fd"])
def test_a_process_that_may_not_be_read_is_denied_and_counted_once(path: str) -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    walker, health = walker_on(root)
    root.denied[path] = "CAP_SYS_PTRACE"
    walker.visit(SERVER)
    walker.visit(SERVER)
    assert walker.denied == {SERVER}
    assert walker.is_known(SERVER)
    assert health == Health(pids_denied=1)
    root.denied.clear()
    walker.visit(SERVER)
    assert walker.denied == set()
    assert SERVER in walker.holdings.files


def test_a_known_process_that_becomes_unreadable_is_no_holder_any_more() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    walker, health = walker_on(root)
    walker.visit(SERVER)
    root.denied["71/fd"] = "CAP_DAC_READ_SEARCH"
    assert walker.count_changed(SERVER)
    walker.refresh(SERVER, set())
    assert (walker.holdings.holders, walker.denied) == ({}, {SERVER})
    assert health == Health(pids_denied=1)


def test_a_stat_that_is_not_one_is_counted_and_changes_nothing(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {3: 100})
    walker, health = walker_on(tree)
    walker.visit(task)
    (Path(tree.path) / "71/stat").write_bytes(b"71 (server S")
    walker.visit(task)
    walker.refresh(task, set())
    assert walker.holdings.holders == {100: (task,)}
    assert health == Health(rows_malformed=2)


def test_exec_shows_as_a_new_name_of_the_same_process(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {3: 100}, b"sh")
    walker, _ = walker_on(tree)
    walker.visit(task)
    write_stat(Path(tree.path) / "71", 71, b"nginx")
    walker.refresh(task, set())
    assert walker.holdings.files[task].process == Process(71, 100, "nginx", 0, NETNS, None)


def test_a_refresh_reads_only_new_descriptors_and_those_of_lost_sockets(tree: FakeRoot) -> None:
    folder = Path(tree.path)
    task = write_process(folder, 71, {3: 100, 4: 101, 5: 0})
    walker, _ = walker_on(tree)
    walker.visit(task)
    write_fds(folder / "71/fd", {3: 200, 4: 201, 6: 202})
    walker.refresh(task, {100})
    # Descriptor 4 stays as it was known: its socket is still in the tables, so it cannot have been closed.
    assert walker.holdings.files[task].fds == {3: 200, 4: 101, 6: 202}
    assert walker.holdings.files[task].listed == 3


def test_a_pass_stops_after_each_block_inside_a_process_too(tree: FakeRoot) -> None:
    fds = {fd: fd + 100_000 for fd in range(20_000)}
    tasks = {write_process(Path(tree.path), 71, fds), write_process(Path(tree.path), 72, {3: 1})}
    walker, _ = walker_on(tree)
    blocks = walker.pass_in_blocks(tasks, 300)
    for _ in range(66):
        next(blocks)
        assert walker.holdings.files == {}  # half a process is not published
    # 66 blocks are 19,800 descriptors; the last 200, the prices of two visits and 72's one fit in one block.
    assert next(blocks, "ended") == "ended"
    assert len(walker.holdings.files[Task(71, 71)].fds) == 20_000
    assert walker.holdings.files[Task(72, 72)].fds == {3: 1}


def test_processes_without_descriptors_have_a_price_too(tree: FakeRoot) -> None:
    tasks = {write_process(Path(tree.path), pid, {}) for pid in range(1, 24)}
    walker, _ = walker_on(tree)
    assert sum(1 for _ in walker.pass_in_blocks(tasks, 5)) == 4
    assert len(walker.holdings.files) == 23


def test_a_great_process_after_small_ones_is_read_in_blocks_all_the_same(tree: FakeRoot) -> None:
    small = {write_process(Path(tree.path), pid, {}) for pid in range(1, 8)}
    great = write_process(Path(tree.path), 71, {fd: fd + 100 for fd in range(101)})
    walker, _ = walker_on(tree)
    # 101 descriptors and the prices of eight visits.
    assert sum(1 for _ in walker.pass_in_blocks({*small, great}, 5)) == 21
    assert len(walker.holdings.files[great].fds) == 101


def test_a_pid_recycled_while_a_block_rests_is_not_published(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {fd: fd + 100 for fd in range(11)})
    walker, health = walker_on(tree)
    blocks = walker.pass_in_blocks({task}, 7)
    next(blocks)
    write_process(Path(tree.path), 71, {3: 999}, start_ticks=200)
    assert list(blocks) == []
    assert walker.holdings.files == {}
    assert health == Health(pids_vanished=1)


@pytest.mark.parametrize("leaves", ["before its turn", "during its visit"])
def test_a_process_that_leaves_the_namespace_during_a_pass_is_no_holder_in_it(
    tree: FakeRoot, leaves: str
) -> None:
    first = write_process(Path(tree.path), 71, {fd: fd + 100 for fd in range(11)})
    second = write_process(Path(tree.path), 72, {fd: fd + 200 for fd in range(11)})
    tasks = {first, second}
    walker, health = walker_on(tree)
    blocks = walker.pass_in_blocks(tasks, 7)
    next(blocks)
    leaver = second if leaves == "before its turn" else first
    tasks.discard(leaver)
    walker.forget(leaver)
    for _ in blocks:
        pass
    assert set(walker.holdings.files) == tasks
    assert health == Health()


def test_a_forgotten_task_leaves_nothing_behind(tree: FakeRoot) -> None:
    tasks = [
        write_process(Path(tree.path), 71, {3: 100}),
        write_process(Path(tree.path), 72, {3: 100}, flags=PF_KTHREAD),
        write_process(Path(tree.path), 73, {3: 100}),
    ]
    tree.denied["73"] = "CAP_SYS_PTRACE"
    walker, _ = walker_on(tree)
    for task in tasks:
        walker.visit(task)
        assert walker.is_known(task)
        walker.forget(task)
        assert not walker.is_known(task)
    assert walker.holdings.holders == {}


class CountingRoot(FakeRoot):
    """Tells the number of descriptors as st_size, as Linux 6.2 does, and notes whose folder is opened."""

    __slots__ = ("opened",)

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.opened: list[str] = []

    def size(self, rel: str) -> int:
        return len(self.list(rel))

    def open_dir(self, rel: str) -> int:
        self.opened.append(rel)
        return super().open_dir(rel)


def test_a_pass_that_need_not_list_again_opens_only_processes_whose_count_changed(tmp_path: Path) -> None:
    root = CountingRoot(str(tmp_path))
    tasks = {write_process(tmp_path, pid, {0: 0, 3: pid * 10}) for pid in (11, 12, 13)}
    walker, _ = walker_on(root)
    list(walker.pass_in_blocks(tasks, 300))
    root.opened.clear()
    write_fds(tmp_path / "12" / "fd", {0: 0, 3: 120, 4: 121})
    list(walker.pass_in_blocks(tasks, 300, relist=False))
    assert root.opened == ["12/fd"]
    assert walker.holdings.holders.keys() == {110, 120, 121, 130}


def test_a_pass_that_need_not_list_again_sees_a_recycled_pid_and_an_exec(tmp_path: Path) -> None:
    root = CountingRoot(str(tmp_path))
    tasks = {write_process(tmp_path, pid, {3: pid * 10}) for pid in (11, 12)}
    walker, _ = walker_on(root)
    list(walker.pass_in_blocks(tasks, 300))
    write_process(tmp_path, 11, {3: 115}, start_ticks=900)
    write_process(tmp_path, 12, {3: 120}, comm=b"other")
    list(walker.pass_in_blocks(tasks, 300, relist=False))
    assert walker.holdings.holders.keys() == {115, 120}
    assert walker.holdings.files[Task(11, 11)].process.start_ticks == 900
    assert walker.holdings.files[Task(12, 12)].process.comm == "other"


def test_a_kernel_thread_s_pid_that_a_process_takes_over_is_read_in_the_next_pass(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 2, {}, flags=PF_KTHREAD)
    walker, _ = walker_on(tree)
    walker.visit(task)
    write_process(Path(tree.path), 2, {3: 100}, start_ticks=900)
    list(walker.pass_in_blocks({task}, 300))
    assert walker.holdings.holders.keys() == {100}


def put_into(tree: FakeRoot, pid: int, path: str) -> None:
    (Path(tree.path) / str(pid) / "cgroup").write_text(path)


def test_a_process_has_the_name_of_its_container_and_gets_another_with_an_exec(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {3: 100}, b"runc:[2:INIT]")
    put_into(tree, 71, "0::/system.slice/docker.service\n")
    walker, health = walker_on(tree)
    walker.visit(task)
    assert walker.holdings.files[task].process.container == "docker.service"
    put_into(tree, 71, f"0::/docker/{'ab' * 32}\n")
    walker.refresh(task, set())
    assert walker.holdings.files[task].process.container == "docker.service"
    write_stat(Path(tree.path) / "71", 71, b"server")
    walker.refresh(task, set())
    assert walker.holdings.files[task].process.container == "abababababab"
    put_into(tree, 71, "0::/\n")
    walker.visit(task)
    assert walker.holdings.files[task].process.container is None
    assert health == Health()


def test_a_cgroup_that_cannot_be_read_costs_a_process_nothing_but_its_container(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {3: 100})
    put_into(tree, 71, "nonsense")
    walker, health = walker_on(tree)
    walker.visit(task)
    assert walker.holdings.files[task].fds == {3: 100}
    assert walker.holdings.files[task].process.container is None
    assert health == Health(rows_malformed=1)


def test_descriptors_of_namespaces_are_known_until_they_are_closed(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {3: 100})
    folder = Path(tree.path) / "71/fd"
    (folder / "4").symlink_to("net:[4026532417]")
    walker, _ = walker_on(tree)
    walker.visit(task)
    assert walker.netns_fds == {task: {4: 4026532417}}
    (folder / "5").symlink_to("net:[4026532418]")
    walker.refresh(task, set())
    assert walker.netns_fds == {task: {4: 4026532417, 5: 4026532418}}
    (folder / "4").unlink()
    walker.refresh(task, set())
    assert walker.netns_fds == {task: {5: 4026532418}}
    (folder / "5").unlink()
    walker.visit(task)
    assert walker.netns_fds == {}


def test_a_task_that_is_forgotten_holds_no_namespace_any_more(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 71, {})
    (Path(tree.path) / "71/fd/4").symlink_to("net:[4026532417]")
    walker, _ = walker_on(tree)
    walker.visit(task)
    walker.forget(task)
    assert walker.netns_fds == {}


def test_a_thread_in_this_namespace_is_of_a_process_that_lives_in_its_leader_s() -> None:
    walker, _ = walker_on(FakeRoot(f"{TREES}/two_namespaces"))
    walker.netns_inode = 4026532417
    walker.visit(Task(1, 9))
    assert walker.holdings.files[Task(1, 9)].process.netns == NETNS


def test_a_refresh_while_a_visit_rests_is_not_undone_by_what_was_read_before(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 11, {3: 100, 4: 101, 5: 102})
    walker, _ = walker_on(tree)
    walker.visit(task)
    blocks = walker.pass_in_blocks({task}, 2)
    next(blocks)  # two of three descriptors are read
    write_fds(Path(tree.path) / "11" / "fd", {3: 200, 4: 201, 5: 102})
    walker.refresh(task, {100, 101})
    list(blocks)
    assert walker.holdings.holders.keys() == {200, 201, 102}


def test_a_process_that_ends_a_block_is_known_before_the_pass_rests(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 11, {3: 100, 4: 101})
    walker, _ = walker_on(tree)
    next(walker.pass_in_blocks({task}, 2))
    assert walker.holdings.holders.keys() == {100, 101}


def test_sockets_registered_with_an_io_uring_are_held_by_the_descriptor_of_the_ring(tree: FakeRoot) -> None:
    task = write_process(Path(tree.path), 10, {3: 1000, 4: 0})
    folder = Path(tree.path) / "10"
    (folder / "fd/4").unlink()
    (folder / "fd/4").symlink_to("anon_inode:[io_uring]")
    (folder / "fdinfo").mkdir()

    def register(*inodes: int) -> None:
        lines = [f"    {place}: socket:[{inode}]\n" for place, inode in enumerate(inodes)]
        (folder / "fdinfo/4").write_text(
            f"pos:\t0\nUserFiles:\t{len(inodes)}\n{''.join(lines)}UserBufs:\t0\n"
        )

    walker, _ = walker_on(tree)
    register(2001, 1000, 4_294_967_295)
    walker.visit(task)
    held = [(holding.fd, holding.inode) for holding in walker.holdings.take_change().holdings]
    assert sorted(held) == [(3, 1000), (4, 1000), (4, 2001), (4, 4_294_967_295)]
    assert set(walker.holdings.holders) == {1000, 2001, 4_294_967_295}

    register(2002)
    walker.refresh(task, set())
    change = walker.holdings.take_change()
    assert [(holding.fd, holding.inode) for holding in change.holdings] == [(4, 2002)]
    assert sorted((holding.fd, holding.inode) for holding in change.gone_holdings) == [
        (4, 1000),
        (4, 2001),
        (4, 4_294_967_295),
    ]

    (folder / "fd/4").unlink()
    walker.refresh(task, set())
    assert set(walker.holdings.holders) == {1000}
