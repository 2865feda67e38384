"""Requests that wait for a change: asked again when there is one, not too often, and when they are due."""

from __future__ import annotations

from pipeline.transport.parking import Parking

ASKED_S = 0.5


def parked(*due_s: float) -> Parking[str]:
    parking: Parking[str] = Parking(256)
    for number, due in enumerate(due_s):
        assert parking.offer(f"request {number}", due, ASKED_S)
    return parking


def test_nobody_leaves_without_a_change() -> None:
    assert parked(10.0, 20.0).leave(9.9) == []


def test_whoever_is_due_leaves() -> None:
    parking = parked(10.0, 20.0)

    assert parking.leave(10.0) == ["request 0"]
    assert len(parking) == 1


def test_everybody_leaves_after_a_change_once() -> None:
    parking = parked(10.0, 20.0)
    parking.wake(0.6)

    assert parking.leave(1.0) == ["request 0", "request 1"]
    assert parking.leave(1.0) == []


def test_changes_that_follow_each_other_closely_are_one() -> None:
    parking = parked(10.0)
    parking.wake(0.6)
    parking.leave(1.0)
    parking.offer("next", 10.0, 1.0)
    parking.wake(1.0)

    assert parking.leave(1.05) == []
    assert parking.leave(1.1) == ["next"]


def test_there_is_room_for_so_many_and_no_more() -> None:
    parking: Parking[int] = Parking(2)

    assert [parking.offer(number, 10.0, ASKED_S) for number in range(3)] == [True, True, False]


def test_end_of_a_wait_is_near_shortly_before_it_and_after_a_change() -> None:
    parking = parked(10.0)

    assert not parking.is_near(8.0, 1.0)
    assert parking.is_near(9.0, 1.0)
    parking.wake(0.6)
    assert parking.is_near(8.0, 1.0)


def test_a_request_asked_in_vain_before_the_last_change_leaves_although_it_was_parked_after_it() -> None:
    parking = parked()
    parking.wake(1.0)
    assert parking.leave(1.0) == []
    parking.offer("asked before", 100.0, 0.9)
    assert parking.leave(1.2) == ["asked before"]
    parking.offer("asked after", 100.0, 1.3)
    assert parking.leave(1.4) == []


def test_empty_parking_is_never_near() -> None:
    parking: Parking[int] = Parking(2)
    parking.wake(0.6)

    assert not parking.is_near(0.0, 1.0)
