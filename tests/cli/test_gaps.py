"""What `sockscope feed` says of messages that did not come."""

from __future__ import annotations

from pipeline.cli.feed import Gaps, Message


def message(topic: str, seq: int, prev: int, epoch: str = "a") -> Message:
    return Message(topic, {"epoch": epoch, "seq": seq, "prev": prev})


def test_a_message_that_follows_another_than_the_last_is_noted_once_and_by_topic() -> None:
    gaps = Gaps()
    assert gaps.note(message("delta.1", 7, 3)) == ""
    assert gaps.note(message("delta.2", 8, 5)) == ""
    assert gaps.note(message("delta.1", 9, 7)) == ""
    assert gaps.note(message("delta.1", 12, 11)) == "messages of delta.1 after seq 9 are lost"
    assert gaps.note(message("delta.1", 13, 12)) == ""


def test_a_new_aggregator_begins_anew() -> None:
    gaps = Gaps()
    assert gaps.note(message("delta.1", 700, 3)) == ""
    assert (
        gaps.note(message("delta.1", 2, 0, "b")) == "another aggregator: what changed in between is not told"
    )
    assert gaps.note(message("delta.1", 3, 2, "b")) == ""
