"""Several snapshots as one set of changes."""

from __future__ import annotations

from hypothesis import given

from pipeline.merge.changes import combine
from pipeline.model.process import ProcessKey
from pipeline.model.snapshot import Snapshot, fold
from tests.sample_state import BLUE, HOST, connection, histories, holding, process, snapshot


def test_delta_keeps_what_went_apart_from_what_stayed() -> None:
    changes = combine([
        snapshot(
            HOST, 5, base=False, connections=[connection(1)], gone_connections=[2], processes=[process(8, "sh")],
            gone_processes=[ProcessKey(9, 90)], holdings=[holding(8, 3, 1)], gone_holdings=[holding(9, 3, 2)],
        )
    ])  # fmt: skip

    change = changes[HOST]
    assert not change.base
    assert change.connections == {1: connection(1), 2: None}
    assert change.processes == {(8, 80): process(8, "sh"), (9, 90): None}
    assert change.holdings == {holding(8, 3, 1): True, holding(9, 3, 2): False}


def test_base_makes_everything_before_it_moot() -> None:
    changes = combine(
        [
            snapshot(HOST, 5, base=False, connections=[connection(1)], gone_connections=[2]),
            snapshot(HOST, 6, connections=[connection(3)]),
            snapshot(HOST, 7, base=False, gone_connections=[3], connections=[connection(4)]),
        ]
    )

    assert changes[HOST].base
    assert changes[HOST].connections == {3: None, 4: connection(4)}
    assert changes[HOST].head.generation == 7


def test_namespaces_are_kept_apart() -> None:
    changes = combine(
        [snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(1)])]
    )

    assert list(changes) == [HOST, BLUE]


def test_another_cookie_takes_nothing_over() -> None:
    changes = combine(
        [
            snapshot(HOST, 1, cookie=138, connections=[connection(-1)]),
            snapshot(HOST, 2, cookie=4163, connections=[connection(-2)]),
        ]
    )

    assert changes[HOST].connections == {-2: connection(-2)}


@given(histories())
def test_combined_history_says_the_same_as_its_fold(history: list[Snapshot]) -> None:
    for netns, change in combine(history).items():
        folded = fold([one for one in history if one.netns == netns])
        assert {key: row for key, row in change.connections.items() if row is not None} == folded.connections
        assert {key: row for key, row in change.processes.items() if row is not None} == folded.processes
        assert {row for row, held in change.holdings.items() if held} == folded.holdings
        assert change.head == folded.head
