"""The CPU budget: what a worker may spend over time, and how the whole is shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.walk.budget import BURST_S, CpuBudget, share_out

SHARES = st.floats(0.001, 1.0)
NEEDS = st.lists(st.floats(0, 2), min_size=1, max_size=70)


@given(SHARES, st.lists(st.floats(0, 0.5), max_size=60))
def test_never_more_is_spent_than_saved_and_earned_but_for_the_last_piece_of_work(
    share: float, prices_cpu_s: list[float]
) -> None:
    budget, now_s, spent_cpu_s = CpuBudget(share, 50.0), 50.0, 0.0
    for price_cpu_s in prices_cpu_s:
        now_s = budget.ready_s(now_s)
        assert spent_cpu_s <= share * (BURST_S + now_s - 50.0) + 1e-6
        budget.charge(price_cpu_s, now_s)
        spent_cpu_s += price_cpu_s


def test_a_debt_delays_by_its_cpu_seconds_over_the_share() -> None:
    budget = CpuBudget(0.05, 0.0)
    budget.charge(0.5 + 2.0, 0.0)
    assert budget.debt_cpu_s(0.0) == pytest.approx(2.0)
    assert budget.ready_s(0.0) == pytest.approx(40.0)
    assert budget.ready_s(30.0) == pytest.approx(40.0)
    assert budget.ready_s(40.1) == 40.1


def test_a_change_of_share_keeps_the_debt_in_cpu_seconds() -> None:
    budget = CpuBudget(0.1, 0.0)
    budget.charge(1.0 + 2.0, 0.0)
    budget.set_share(0.5, 5.0)
    assert budget.debt_cpu_s(5.0) == pytest.approx(1.5)
    assert budget.ready_s(5.0) == pytest.approx(8.0)


def test_what_is_saved_up_is_bounded() -> None:
    budget = CpuBudget(0.1, 0.0)
    budget.charge(1.0 + 0.5, 3600.0)
    assert budget.debt_cpu_s(3600.0) == pytest.approx(0.5)


def test_a_clock_that_stands_still_earns_nothing_and_work_in_budget_waits_for_nothing() -> None:
    budget = CpuBudget(0.1, 7.0)
    budget.charge(0.9, 7.0)
    assert budget.ready_s(7.0) == 7.0
    assert budget.debt_cpu_s(7.0) == 0.0


@given(SHARES, NEEDS)
def test_shares_add_up_to_the_total_and_nobody_gets_less_than_the_equal_tenth(
    total: float, needs: list[float]
) -> None:
    shares = share_out(total, needs)
    assert sum(shares) == pytest.approx(total)
    assert min(shares) >= total * 0.1 / len(needs) - 1e-12


@given(SHARES, NEEDS)
def test_who_gets_less_than_needed_gets_as_much_as_anyone(total: float, needs: list[float]) -> None:
    shares = share_out(total, needs)
    for need, share in zip(needs, shares, strict=True):
        assert share >= need - 1e-9 or share >= max(shares) - 1e-9


@given(SHARES, NEEDS)
def test_shares_do_not_depend_on_the_order(total: float, needs: list[float]) -> None:
    backwards = share_out(total, needs[::-1])[::-1]
    assert share_out(total, needs) == pytest.approx(backwards)


def test_small_needs_are_met_and_the_greatest_divide_the_rest() -> None:
    assert share_out(1.0, [0.1, 5.0, 0.3, 5.0]) == pytest.approx([0.1, 0.3, 0.3, 0.3])


def test_what_nobody_needs_is_spread_equally() -> None:
    assert share_out(0.05, [0.0, 0.0, 0.0, 0.0, 0.0]) == pytest.approx([0.01] * 5)
    assert share_out(0.05, []) == []
