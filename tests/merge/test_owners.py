"""Which of several holders is the primary owner."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.merge.owners import Holder, ordered, primary


def _holder(pid: int, start_ticks: int, fd: int = 3, reporter: int = 1) -> Holder:
    return Holder(pid, start_ticks, fd, reporter, 100.0)


def test_listener_belongs_to_the_oldest_holder_the_one_that_bound_it() -> None:
    master, child, other_child = _holder(50, 500), _holder(60, 600), _holder(61, 610)

    assert ordered([other_child, child, master], listening=True) == [master, child, other_child]


def test_connection_belongs_to_the_youngest_holder_the_child_that_serves_it() -> None:
    inetd, child = _holder(50, 500), _holder(60, 600)

    assert ordered([inetd, child], listening=False) == [child, inetd]


def test_socket_activation_names_the_service_and_not_pid_1() -> None:
    systemd, service = _holder(1, 2), _holder(700, 9000)

    assert primary([systemd, service], listening=True) == service
    assert primary([systemd, service], listening=False) == service


def test_pid_1_owns_what_nobody_else_holds() -> None:
    assert primary([_holder(1, 2, 40), _holder(1, 2, 41)], listening=True) == _holder(1, 2, 40)


def test_equal_start_is_settled_by_pid_and_then_by_descriptor() -> None:
    parent, parents_other, child = _holder(8, 5, 4), _holder(8, 5, 7), _holder(9, 5, 3)

    assert ordered([child, parents_other, parent], listening=False) == [child, parent, parents_other]
    assert ordered([child, parents_other, parent], listening=True) == [parent, parents_other, child]


def test_descriptor_reported_by_two_workers_comes_once() -> None:
    assert ordered([_holder(8, 5, 4, reporter=2), _holder(8, 5, 4, reporter=1)], listening=False) == [
        _holder(8, 5, 4, reporter=1)
    ]


_holders = st.builds(_holder, st.integers(1, 4), st.integers(1, 3), st.integers(3, 4), st.integers(1, 2))


@given(st.lists(_holders, min_size=1), st.booleans(), st.randoms())
def test_order_does_not_depend_on_arrival_and_starts_with_the_primary(
    holders: list[Holder], listening: bool, random: Random
) -> None:
    shuffled = list(holders)
    random.shuffle(shuffled)

    assert ordered(shuffled, listening) == ordered(holders, listening)
    assert primary(shuffled, listening) == ordered(holders, listening)[0]
