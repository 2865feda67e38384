"""Whether the events may still be believed: one failure is forgiven, two within a minute are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.track.trust import Trust, Verdict


def running() -> Trust:
    trust = Trust()
    trust.began()
    trust.settled()
    return trust


def test_the_first_failure_is_followed_by_one_restart() -> None:
    trust = running()
    assert trust.failed(100.0) is Verdict.RESTART
    assert not trust.is_lost


def test_a_second_failure_within_a_minute_is_the_last() -> None:
    trust = running()
    trust.failed(100.0)
    trust.began()
    trust.settled()
    assert trust.failed(160.0) is Verdict.FALL_BACK
    assert trust.is_lost


def test_a_failure_after_more_than_a_minute_is_a_first_one_again() -> None:
    trust = running()
    trust.failed(100.0)
    trust.began()
    trust.settled()
    assert trust.failed(160.1) is Verdict.RESTART


def test_a_restart_that_never_has_a_state_is_the_last() -> None:
    trust = running()
    trust.failed(100.0)
    trust.began()
    assert trust.failed(900.0) is Verdict.FALL_BACK


def test_a_first_start_that_fails_is_not_tried_again() -> None:
    trust = Trust()
    trust.began()
    assert trust.failed(5.0) is Verdict.FALL_BACK


@given(
    st.lists(st.tuples(st.sampled_from(["began", "settled", "failed"]), st.floats(0.0, 100.0)), max_size=30)
)
def test_any_history_restarts_only_after_a_settled_minute_and_never_after_the_end(
    history: list[tuple[str, float]],
) -> None:
    trust, now_s, failed_s, settled, lost, begun = Trust(), 0.0, -1000.0, False, False, False
    for what, later_s in history:
        now_s += later_s
        if what == "began":
            trust.began()
            settled, begun = False, True
        elif what == "settled":
            trust.settled()
            settled = begun
        else:
            lost = lost or not settled or now_s - failed_s <= 60.0
            assert trust.failed(now_s) is (Verdict.FALL_BACK if lost else Verdict.RESTART)
            failed_s, settled = now_s, False
        assert trust.is_lost == lost
