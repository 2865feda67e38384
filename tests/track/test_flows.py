from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.flow import Flow
from pipeline.track.flows import FlowTable

ESTABLISHED, TIME_WAIT = 3, 7


def flow(number: int, state: int | None = ESTABLISHED, server: int = 1) -> Flow:
    """Number `number`, translated to server number `server`."""
    client, real = bytes((10, 0, 0, number)), bytes((10, 9, 9, server))
    return Flow(
        b"key %d" % number, 6, 2, client, 4000, b"\xc0\0\2\1", 80, real, 8080, client, 4000, 0x28, state
    )


def test_what_began_and_what_ended_is_told_once() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.add(flow(2))
    assert table.take_change() == ([flow(1), flow(2)], [])
    table.remove(b"key 1")
    assert table.take_change() == ([], [b"key 1"])
    assert not table.has_changes
    assert table.flows() == [flow(2)]


def test_a_flow_in_time_wait_stays_until_its_entry_is_gone() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.add(flow(1, TIME_WAIT))
    table.resync([flow(1, TIME_WAIT)], whole=True)
    assert table.take_change() == ([flow(1)], [])
    table.remove(b"key 1")
    assert len(table) == 0


def test_a_key_that_is_used_again_for_another_server_is_a_change() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.take_change()
    table.add(flow(1, server=2))
    assert table.take_change() == ([flow(1, server=2)], [])


def test_a_flow_that_ended_and_began_again_is_not_told_as_gone() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.take_change()
    table.remove(b"key 1")
    table.add(flow(1))
    assert table.take_change() == ([flow(1)], [])


def test_the_end_of_an_unknown_flow_is_nothing() -> None:
    table = FlowTable(100)
    table.remove(b"key 1")
    assert not table.has_changes


def test_a_dump_ends_what_it_does_not_find_and_tells_what_it_finds_new() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.add(flow(2))
    table.take_change()
    assert table.resync([flow(2), flow(3)], whole=True) == {b"key 3"}
    assert table.take_change() == ([flow(3)], [b"key 1"])


def test_a_dump_that_may_lack_some_ends_none() -> None:
    table = FlowTable(100)
    table.add(flow(1))
    table.take_change()
    table.resync([flow(2)], whole=False)
    assert table.take_change() == ([flow(2)], [])
    assert len(table) == 2


def test_above_the_limit_new_flows_are_left_out_and_counted() -> None:
    table = FlowTable(2)
    for number in (1, 2, 3):
        table.add(flow(number))
    assert (table.flows(), table.over_limit) == ([flow(1), flow(2)], 1)
    table.add(flow(2, server=3))
    assert (table.flows(), table.over_limit) == ([flow(1), flow(2, server=3)], 1)


def test_above_the_limit_a_dump_leaves_out_those_that_have_ended() -> None:
    table = FlowTable(2)
    found = [flow(1, TIME_WAIT), flow(2), flow(3, None), flow(4, TIME_WAIT)]
    table.resync(found, whole=True)
    assert (table.flows(), table.over_limit) == ([flow(2), flow(3, None)], 2)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("dump"), st.integers(0, 63), st.integers(1, 3)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
    )
)


@given(steps)
def test_changes_put_together_are_the_table(taken: list[tuple[str, int, int]]) -> None:
    table = FlowTable(4)
    followed: dict[bytes, Flow] = {}
    for what, number, server in [*taken, ("take", 0, 0)]:
        if what == "add":
            table.add(flow(number, server=server))
        elif what == "remove":
            table.remove(b"key %d" % number)
        elif what == "dump":
            table.resync([flow(one, server=server) for one in range(1, 7) if number >> one & 1], whole=True)
        else:
            change = table.take_change()
            for key in change.gone:
                followed.pop(key, None)  # it may have begun since the last time
            followed.update((one.key, one) for one in change.flows)
            assert {one.key: one for one in table.flows()} == followed
        assert len(table) <= 4


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(1, 6), st.integers(1, 3))),
    st.integers(0, 20),
)
def test_events_that_came_during_a_dump_lead_to_the_same_end(
    events: list[tuple[str, int, int]], read_at: int
) -> None:
    """Whenever during these events the dump was made: all of them come after it."""
    truth: dict[int, Flow] = {}
    dumped: list[Flow] = []
    for index, (what, number, server) in enumerate(events):
        if what == "add":
            truth[number] = flow(number, server=server)
        else:
            truth.pop(number, None)
        if index == read_at:
            dumped = list(truth.values())
    table = FlowTable(100)
    table.resync(dumped, whole=True)
    for what, number, server in events:
        if what == "add":
            table.add(flow(number, server=server))
        else:
            table.remove(b"key %d" % number)
    assert sorted(table.flows()) == sorted(truth.values())
