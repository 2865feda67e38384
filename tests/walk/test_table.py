"""A namespace's tables as a set: identities that last, changes that are no more than the changes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.connection import Connection, Proto, SocketKey, State
from pipeline.model.snapshot import Health, Snapshot, fold
from pipeline.model.socket_row import SocketRow
from pipeline.walk.table import ConnectionTable, Reading, TableChange
from tests.walk.rows import diag, row, text


def keys(change: TableChange) -> list[SocketKey]:
    return sorted((connection.key for connection in change.changed), key=str)


def test_an_unchanged_table_changes_nothing() -> None:
    table = ConnectionTable()
    rows = [row(inode, inode + 1000) for inode in range(1, 24)]
    assert len(table.update(diag(*rows)).changed) == 23
    assert table.update(diag(*reversed(rows))) == ([], [])


def test_only_rows_that_differ_are_changed_and_only_missing_ones_are_gone() -> None:
    table = ConnectionTable()
    table.update(diag(row(1, 101), row(2, 102), row(3, 103)))
    change = table.update(diag(row(1, 101), row(2, 102, state=State.CLOSE_WAIT), row(4, 104)))
    assert keys(change) == [102, 104]
    assert change.gone == [103]


def test_a_socket_that_loses_its_inode_keeps_its_cookie_as_identity() -> None:
    table = ConnectionTable()
    table.update(diag(row(1, 101)))
    change = table.update(diag(row(0, 101, state=State.TIME_WAIT)))
    assert [(one.key, one.state, one.inode) for one in change.changed] == [(101, State.TIME_WAIT, 0)]
    assert change.gone == []
    assert table.inodes == set()
    assert table.take_left() == {1}
    assert table.take_left() == set()


def test_rows_without_inode_and_cookie_are_not_folded_into_one() -> None:
    table = ConnectionTable()
    waiting = [row(0, 0, local_port=port, state=State.TIME_WAIT) for port in range(5000, 5023)]
    assert len({one.key for one in table.update(text(waiting)).changed}) == 23
    assert len(table.connections()) == 23


def test_the_identity_lasts_when_sock_diag_gives_way_to_text_and_comes_back() -> None:
    table = ConnectionTable()
    held, orphan = row(7, 107, 4001), row(0, 108, 4002, State.TIME_WAIT)
    table.update(diag(held, orphan))
    for reading in (text([held, orphan]), diag(held, orphan)):
        change = table.update(reading)
        assert keys(change) == [107, 108]
        assert change.gone == []
    assert table.update(diag(orphan)).gone == [107]


def test_the_identity_lasts_when_text_gives_way_to_sock_diag_and_comes_back() -> None:
    table = ConnectionTable()
    held, orphan = row(7, 107, 4001), row(0, 108, 4002, State.TIME_WAIT)
    first = keys(table.update(text([held, orphan])))
    for reading in (diag(held, orphan), text([held, orphan])):
        change = table.update(reading)
        assert keys(change) == first
        assert change.gone == []
    assert sorted((one.key for one in table.connections()), key=str) == first


def test_an_identity_from_text_lasts_until_the_socket_closes_though_its_inode_goes_first() -> None:
    table = ConnectionTable()
    table.update(text([row(7, 107)]))
    table.update(diag(row(7, 107)))
    change = table.update(diag(row(0, 107, state=State.TIME_WAIT)))
    assert ([one.key for one in change.changed], change.gone) == ([-7], [])
    assert table.update(diag()) == ([], [-7])
    assert keys(table.update(diag(row(7, 207)))) == [207]


def test_sockets_that_share_address_and_port_stay_apart_when_the_source_changes() -> None:
    """SO_REUSEPORT: one tuple, several listeners; one is opened just when the source changes."""
    table = ConnectionTable()
    first, second, third = (row(inode, inode + 100, 80, State.LISTEN) for inode in (1, 2, 3))
    table.update(diag(first, second))
    change = table.update(text([first, second, third]))
    assert len({one.key for one in change.changed}) == 3
    assert {101, 102} < {one.key for one in change.changed}


def test_another_socket_on_the_tuple_of_a_closed_one_is_not_taken_for_it_when_the_source_changes() -> None:
    table = ConnectionTable()
    table.update(diag(row(1, 101, 4001)))
    change = table.update(text([row(2, 102, 4001)]))
    assert ([one.key for one in change.changed], change.gone) == ([-2], [101])


def test_rows_bound_to_different_devices_are_named_and_stay_apart() -> None:
    table = ConnectionTable()
    change = table.update(diag(row(1, 101, ifindex=3), row(2, 102, ifindex=9), devices={3: "eth0"}))
    assert sorted((one.key, one.device) for one in change.changed) == [(101, "eth0"), (102, None)]


def test_uids_are_those_of_the_asked_inodes() -> None:
    table = ConnectionTable()
    table.update(diag(row(1, 101, uid=1000), row(2, 102, uid=33), row(3, 103)))
    assert table.uids_of({1, 2}) == {1000, 33}


# Sockets 1..6; the even ones share one tuple and have an inode for life, as listeners with SO_REUSEPORT.
Shown = dict[int, tuple[bool, State]]
shown = st.dictionaries(
    st.integers(1, 6),
    st.tuples(st.booleans(), st.sampled_from([State.ESTABLISHED, State.CLOSE_WAIT])),
    max_size=6,
)


def reading_of(source: str, sockets: Shown) -> Reading:
    rows = [
        row(number if has_inode or number % 2 == 0 else 0, number + 100, 4000 + number % 2 * number, state)
        for number, (has_inode, state) in sockets.items()
    ]
    return diag(*rows) if source == "sock_diag" else text(rows)


def snapshot(
    generation: int, base: bool, connections: Sequence[Connection], gone: Sequence[SocketKey]
) -> Snapshot:
    return Snapshot(
        "netns", 1, None, 1, generation, base, 0.0, None, "proc", 0, Health(), connections, gone
    )  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["sock_diag", "proc"]), shown), min_size=1, max_size=12))
def test_a_base_equals_the_changes_before_it_whatever_the_source(steps: list[tuple[str, Shown]]) -> None:
    table = ConnectionTable()
    published = [snapshot(0, True, [], [])]
    for generation, (source, sockets) in enumerate(steps, 1):
        change = table.update(reading_of(source, sockets))
        published.append(snapshot(generation, False, change.changed, change.gone))
        base = table.connections()
        assert len(base) == len(sockets)
        assert fold(published).connections == {one.key: one for one in base}
        assert len({one.key for one in base}) == len(sockets)
        assert table.inodes == {number for number, (has, _) in sockets.items() if has or number % 2 == 0}


@given(
    st.lists(st.tuples(st.sampled_from(["sock_diag", "proc"]), st.frozensets(st.integers(1, 6))), max_size=12)
)
def test_a_socket_with_an_inode_has_one_identity_for_life(steps: list[tuple[str, frozenset[int]]]) -> None:
    table = ConnectionTable()
    known: dict[int, SocketKey] = {}
    for source, numbers in steps:
        table.update(reading_of(source, dict.fromkeys(numbers, (True, State.ESTABLISHED))))
        now = {one.inode: one.key for one in table.connections()}
        assert {number: key for number, key in known.items() if number in now} == {
            number: key for number, key in now.items() if number in known
        }
        known = now


@given(st.lists(shown, min_size=2, max_size=6))
def test_changes_of_one_source_are_minimal(steps: list[Shown]) -> None:
    table = ConnectionTable()
    before: dict[SocketKey, Connection] = {}
    for sockets in steps:
        change = table.update(reading_of("sock_diag", sockets))
        after = {one.key: one for one in table.connections()}
        assert {one.key for one in change.changed} == {
            key for key, one in after.items() if before.get(key) != one
        }
        assert set(change.gone) == before.keys() - after.keys()
        before = after


def test_protocols_do_not_replace_each_other() -> None:
    table = ConnectionTable()
    tcp: list[SocketRow] = [row(1, 101)]
    udp: list[SocketRow] = [row(2, 102)]
    table.update(Reading("sock_diag", 5, {Proto.TCP: tcp, Proto.UDP: udp}, {}, 0, 0))
    assert sorted((one.key, one.proto) for one in table.connections()) == [(101, 6), (102, 17)]
    assert table.update(Reading("sock_diag", 5, {Proto.TCP: tcp, Proto.UDP: []}, {}, 0, 0)).gone == [102]
