"""Who holds which socket: changes against a model that keeps everything and compares."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.process import Holding, Process, ProcessKey, Task
from pipeline.model.snapshot import Health, Snapshot, fold
from pipeline.walk.holdings import Holdings, HoldingsChange, count_fds

LEADER, THREAD, OTHER = Task(10, 10), Task(10, 11), Task(20, 20)


def process(pid: int, start_ticks: int = 1, comm: str = "server") -> Process:
    return Process(pid, start_ticks, comm, 0, 1, None)


def put(
    holdings: Holdings, task: Task, fds: Mapping[int, int], start_ticks: int = 1, comm: str = "server"
) -> None:
    holdings.put(task, process(task.pid, start_ticks, comm), dict(fds), len(fds))


def test_only_what_is_new_and_what_is_gone_is_a_change() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100, 4: 101, 5: 0})
    first = holdings.take_change()
    assert (first.processes, first.gone_processes, first.gone_holdings) == ([process(10)], [], [])
    assert sorted(first.holdings) == [Holding(10, 1, 3, 100), Holding(10, 1, 4, 101)]
    put(holdings, LEADER, {3: 100, 4: 102, 5: 0})
    assert holdings.take_change() == ([], [], [Holding(10, 1, 4, 102)], [Holding(10, 1, 4, 101)])
    assert not holdings.changed
    assert count_fds(holdings.files) == 3


def test_every_holder_of_a_shared_socket_is_kept() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    put(holdings, OTHER, {7: 100})
    assert holdings.holders == {100: (LEADER, OTHER)}
    holdings.drop(LEADER)
    assert holdings.holders == {100: (OTHER,)}
    holdings.drop(OTHER)
    assert holdings.holders == {}


def test_a_recycled_pid_is_another_process() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    holdings.take_change()
    put(holdings, LEADER, {3: 100}, start_ticks=2)
    assert holdings.take_change() == (
        [process(10, 2)],
        [ProcessKey(10, 1)],
        [Holding(10, 2, 3, 100)],
        [Holding(10, 1, 3, 100)],
    )


def test_exec_changes_the_process_and_no_holding() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    holdings.take_change()
    put(holdings, LEADER, {3: 100}, comm="python3")
    assert holdings.take_change() == ([process(10, comm="python3")], [], [], [])


def test_a_descriptor_that_threads_share_is_gone_only_with_the_last_of_them() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    holdings.take_change()
    put(holdings, THREAD, {3: 100})
    holdings.drop(THREAD)
    assert holdings.take_change().gone_holdings == []
    put(holdings, THREAD, {3: 100})
    holdings.drop(THREAD)
    holdings.drop(LEADER)
    assert holdings.take_change() == ([], [ProcessKey(10, 1)], [], [Holding(10, 1, 3, 100)])


def test_a_descriptor_seen_in_a_second_thread_and_closed_in_both_before_the_next_snapshot_is_gone() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    holdings.take_change()
    put(holdings, THREAD, {3: 100})
    put(holdings, LEADER, {})
    put(holdings, THREAD, {})
    assert holdings.take_change().gone_holdings == [Holding(10, 1, 3, 100)]


def test_a_thread_of_the_process_that_had_the_pid_before_keeps_nothing_of_it_alive() -> None:
    holdings = Holdings()
    put(holdings, LEADER, {3: 100})
    put(holdings, THREAD, {3: 100})
    holdings.take_change()
    put(holdings, LEADER, {3: 100}, start_ticks=2)
    holdings.drop(THREAD)
    change = holdings.take_change()
    assert (change.gone_holdings, change.gone_processes) == ([Holding(10, 1, 3, 100)], [ProcessKey(10, 1)])


# What happens to a task: its descriptors, its start time and its name as a visit saw them; or None, it is gone.
steps = st.lists(
    st.tuples(
        st.sampled_from([LEADER, THREAD, OTHER]),
        st.one_of(
            st.none(),
            st.tuples(
                st.dictionaries(st.integers(3, 5), st.integers(0, 3), max_size=3),
                st.integers(1, 2),
                st.sampled_from(["a", "b"]),
            ),
        ),
        st.booleans(),
    ),
    max_size=20,
)


@given(steps)
def test_changes_add_up_to_what_a_model_that_keeps_everything_has(
    happened: list[tuple[Task, tuple[dict[int, int], int, str] | None, bool]],
) -> None:
    holdings = Holdings()
    seen: dict[Task, tuple[dict[int, int], int]] = {}
    published = [_snapshot(0, True, holdings.everything())]
    for task, files, publish in [*happened, (Task(30, 30), None, True)]:
        if files is None:
            holdings.drop(task)
            seen.pop(task, None)
        else:
            fds, start_ticks, comm = files
            put(holdings, task, fds, start_ticks, comm)
            seen[task] = (fds, start_ticks)
        model = {
            Holding(one.pid, start_ticks, fd, inode)
            for one, (fds, start_ticks) in seen.items()
            for fd, inode in fds.items()
            if inode
        }
        assert set(holdings.everything().holdings) == model
        assert {inode: set(tasks) for inode, tasks in holdings.holders.items()} == {
            inode: {one for one, (fds, _) in seen.items() if inode in fds.values()}
            for fds, _ in seen.values()
            for inode in fds.values()
            if inode
        }
        if publish:
            published.append(_snapshot(len(published), False, holdings.take_change()))
            state = fold(published)
            assert state.holdings == model
            assert state.processes == {(one[0], one[1]): one for one in holdings.everything().processes}


def _snapshot(generation: int, base: bool, change: HoldingsChange) -> Snapshot:
    return Snapshot(
        "netns", 1, None, 1, generation, base, 0.0, None, "proc", 0, Health(), [], [],
        change.processes, change.gone_processes, change.holdings, change.gone_holdings,
    )  # fmt: skip


def test_a_socket_that_a_thread_holds_too_is_held_until_the_last_of_them_closes_it() -> None:
    holdings = Holdings()
    leader, thread = Task(71, 71), Task(71, 72)
    one = process(71, 100)
    shared, own = Holding(71, 100, 3, 402), Holding(71, 100, 4, 404)
    holdings.put(leader, one, {3: 402}, 1)
    holdings.put(thread, one, {3: 402, 4: 404}, 2)
    assert set(holdings.take_change().holdings) == {shared, own}
    holdings.put(leader, one, {}, 0)
    assert holdings.take_change().gone_holdings == []
    holdings.drop(leader)
    assert holdings.take_change().gone_processes == []
    holdings.drop(thread)
    change = holdings.take_change()
    assert set(change.gone_holdings) == {shared, own}
    assert change.gone_processes == [(71, 100)]
    assert holdings.everything().holdings == []
