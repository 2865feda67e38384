"""What the pipeline used over the last minute."""

from __future__ import annotations

from pipeline.model.netns import BudgetRow, UsageRow
from pipeline.roles.spending import Spending


def used(pid: int, percent: float) -> UsageRow:
    return UsageRow(pid, percent, 1, None)


def test_all_processes_count_and_of_our_own_only_what_is_no_query_work() -> None:
    spending = Spending(5.0, 100.0)
    assert spending.add([used(1, 2.0), used(2, 1.0), used(9, 50.0)], 9, 0.05, 110.0) == BudgetRow(5.0, 3.5)
    assert spending.add([used(1, 2.0), used(9, 50.0)], 9, 0.05, 120.0) == BudgetRow(5.0, 2.75)


def test_only_the_last_minute_counts() -> None:
    spending = Spending(5.0, 0.0)
    spending.add([used(1, 90.0)], 9, 0.0, 10.0)
    for end_s in (20.0, 30.0, 40.0, 50.0, 60.0):
        spending.add([used(1, 3.0)], 9, 0.0, end_s)
    assert spending.add([used(1, 3.0)], 9, 0.0, 70.0) == BudgetRow(5.0, 3.0)


def test_two_measurements_at_one_moment_are_no_division_by_zero() -> None:
    assert Spending(5.0, 7.0).add([], 9, 0.0, 7.0) == BudgetRow(5.0, 0.0)
