"""The pace of the walk: procspy's vectors, and ticks that neither drift nor burst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.walk.pacer import Pacer, Pacing, Ticks, plan_next_pass

PERIODS = st.floats(0.050, 0.500)


@pytest.mark.parametrize(
    ("period_s", "took_s", "next_period_s", "rest_s", "late"),
    [
        (0.050, 10.0, 0.050, 0.0, False),
        (0.050, 5.0, 0.100, 5.0, False),
        (0.050, 1.0, 0.500, 9.0, False),
        (0.050, 0.1, 0.500, 9.9, False),
        (0.500, 20.0, 0.250, -10.0, True),
        (0.050, 20.0, 0.050, -10.0, True),
        (0.050, 15.0, 0.050, -5.0, False),
        (0.050, 15.01, 0.050, -5.01, True),
        (0.050, 3.86867419, 0.129243243, 6.13132581, False),
        (0.050, 0.0, 0.500, 10.0, False),
    ],
)
def test_a_pass_sets_the_next_period_and_rest(
    period_s: float, took_s: float, next_period_s: float, rest_s: float, late: bool
) -> None:
    plan = plan_next_pass(Pacing(), period_s, took_s)
    assert plan.period_s == pytest.approx(next_period_s, abs=1e-9)
    assert plan.rest_s == pytest.approx(rest_s, abs=1e-9)
    assert plan.late is late


def test_the_defaults_are_those_of_procspy() -> None:
    assert Pacing() == Pacing(300, 0.050, 0.050, 0.500, 10.0, 1.5)


@given(PERIODS, st.floats(0, 1e6))
def test_the_period_stays_in_its_range(period_s: float, took_s: float) -> None:
    assert 0.050 <= plan_next_pass(Pacing(), period_s, took_s).period_s <= 0.500


@given(st.floats(0, 1e6), PERIODS, st.lists(st.floats(0, 3), max_size=100))
def test_ticks_stay_on_the_grid_of_their_start_and_are_never_closer_than_a_period(
    start_s: float, period_s: float, works_s: list[float]
) -> None:
    ticks = Ticks(start_s, period_s)
    for work_s in works_s:
        before_s = ticks.deadline_s
        # Work begins at the tick, never before it, and takes some time.
        now_s = before_s + work_s
        after_s = ticks.advance(now_s)
        steps = (after_s - start_s) / period_s
        assert steps == pytest.approx(round(steps), abs=1e-5)
        assert after_s - before_s >= period_s - 1e-6
        assert -1e-6 <= after_s - now_s <= period_s + 1e-6


def test_two_hundred_ticks_with_work_between_them_do_not_drift() -> None:
    ticks = Ticks(1000.0, 0.050)
    for _ in range(200):
        ticks.advance(ticks.deadline_s + 0.0015)
    assert ticks.deadline_s == pytest.approx(1010.0, abs=1e-6)


def test_missed_ticks_are_skipped_not_caught_up_with() -> None:
    ticks = Ticks(0.0, 0.050)
    assert ticks.advance(1.02) == pytest.approx(1.050)
    assert ticks.advance(1.05) == pytest.approx(1.100)


def test_a_pass_is_paced_by_blocks_rests_and_then_begins_anew() -> None:
    pacer = Pacer(Pacing(), 100.0)
    assert pacer.due_s == 100.0
    for _ in range(20):
        pacer.block_done(pacer.due_s)
    assert pacer.due_s == pytest.approx(101.0)
    plan = pacer.pass_done(pacer.due_s)
    assert not plan.late
    assert plan.rest_s == pytest.approx(9.0)
    assert pacer.due_s == pytest.approx(110.0)
    assert pacer.period_s == pytest.approx(0.500)


def test_a_pass_that_took_longer_than_its_target_is_followed_at_once() -> None:
    pacer = Pacer(Pacing(), 100.0)
    assert pacer.pass_done(116.0).late
    assert pacer.due_s == 116.0
