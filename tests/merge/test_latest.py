"""The newest snapshot per namespace: in order, in any order, again and again."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.merge.latest import Latest, Verdict
from pipeline.model.snapshot import Snapshot
from tests.sample_state import BLUE, HOST, snapshot


def _delta(generation: int, *, life: int = 1, cookie: int | None = 7, netns: int = HOST) -> Snapshot:
    return snapshot(netns, generation, base=False, life=life, cookie=cookie)


def _base(generation: int, *, life: int = 1, cookie: int | None = 7, netns: int = HOST) -> Snapshot:
    return snapshot(netns, generation, life=life, cookie=cookie)


def test_consecutive_generations_apply() -> None:
    latest = Latest()

    verdicts = [latest.offer(one) for one in (_base(1), _delta(2), _delta(3), _base(4), _delta(5))]

    assert verdicts == [Verdict.APPLY] * 5


def test_delta_without_a_base_is_a_gap() -> None:
    assert Latest().offer(_delta(1)) is Verdict.GAP


def test_missing_generation_is_a_gap_until_what_is_missing_came() -> None:
    latest = Latest()
    latest.offer(_base(1))

    assert latest.offer(_delta(3)) is Verdict.GAP
    assert latest.offer(_delta(2)) is Verdict.APPLY
    assert latest.offer(_delta(3)) is Verdict.APPLY


def test_base_after_a_gap_applies() -> None:
    latest = Latest()
    latest.offer(_base(1))

    assert latest.offer(_base(9)) is Verdict.APPLY


def test_content_of_a_segment_applies_from_where_the_messages_stopped() -> None:
    latest = Latest()
    for one in (_base(4), _delta(5), _delta(6)):
        latest.offer(one)
    assert latest.offer(_delta(8)) is Verdict.GAP

    verdicts = [latest.offer(one) for one in (_base(4), _delta(5), _delta(6), _delta(7), _delta(8))]

    assert verdicts == [Verdict.OLD, Verdict.OLD, Verdict.OLD, Verdict.APPLY, Verdict.APPLY]


def test_restarted_worker_starts_over_and_its_predecessor_is_old() -> None:
    latest = Latest()
    latest.offer(_base(40, life=1))

    assert latest.offer(_base(1, life=2)) is Verdict.APPLY
    assert latest.offer(_delta(41, life=1)) is Verdict.OLD
    assert latest.offer(_base(99, life=1)) is Verdict.OLD
    assert latest.offer(_delta(2, life=2)) is Verdict.APPLY


def test_delta_of_another_life_is_a_gap_even_where_the_number_fits() -> None:
    latest = Latest()
    latest.offer(_base(1, life=1))

    assert latest.offer(_delta(2, life=2)) is Verdict.GAP


def test_another_cookie_under_the_same_inode_needs_a_base() -> None:
    latest = Latest()
    latest.offer(_base(1, cookie=138))

    assert latest.offer(_delta(2, cookie=4163)) is Verdict.GAP
    assert latest.offer(_base(2, cookie=4163)) is Verdict.APPLY
    assert latest.offer(_delta(3, cookie=4163)) is Verdict.APPLY


def test_unknown_cookie_is_no_change_of_namespace_and_does_not_hide_a_later_one() -> None:
    latest = Latest()
    latest.offer(_base(1, cookie=138))

    assert latest.offer(_delta(2, cookie=None)) is Verdict.APPLY
    assert latest.offer(_delta(3, cookie=4163)) is Verdict.GAP
    assert latest.offer(_delta(3, cookie=138)) is Verdict.APPLY


def test_namespaces_do_not_mix() -> None:
    latest = Latest()
    latest.offer(_base(5))

    assert latest.offer(_base(1, netns=BLUE)) is Verdict.APPLY
    assert latest.offer(_delta(2, netns=BLUE)) is Verdict.APPLY


def test_forgotten_namespace_starts_over() -> None:
    latest = Latest()
    latest.offer(_base(5))
    latest.offer(_base(5, netns=BLUE))

    latest.forget(HOST)

    assert latest.offer(_base(1)) is Verdict.APPLY
    assert latest.offer(_base(5, netns=BLUE)) is Verdict.OLD


_offers = st.builds(
    lambda life, generation, base: snapshot(HOST, generation, base=base, life=life),
    st.integers(1, 3), st.integers(1, 6), st.booleans(),
)  # fmt: skip


@given(st.lists(_offers, max_size=30))
def test_applied_snapshots_only_move_forward_and_deltas_only_by_one(offers: list[Snapshot]) -> None:
    latest = Latest()

    applied = [one for one in offers if latest.offer(one) is Verdict.APPLY]

    orders = [(one.life, one.generation) for one in applied]
    assert orders == sorted(set(orders))
    for before, after in pairwise(applied):
        assert after.base or (after.life, after.generation) == (before.life, before.generation + 1)


@given(st.lists(_offers, max_size=20))
def test_what_was_offered_before_never_applies_again(offers: list[Snapshot]) -> None:
    latest = Latest()
    applied = [one for one in offers if latest.offer(one) is Verdict.APPLY]

    assert [latest.offer(one) for one in applied] == [Verdict.OLD] * len(applied)


@given(st.permutations(range(8)))
def test_any_order_ends_at_the_newest_once_the_segment_was_read(order: list[int]) -> None:
    content = [_base(1), *(_delta(generation) for generation in range(2, 9))]
    latest = Latest()
    for index in order:
        latest.offer(content[index])

    for one in content:
        latest.offer(one)

    assert latest.offer(_delta(8)) is Verdict.OLD
    assert latest.offer(_delta(9)) is Verdict.APPLY
