"""The backlog: bounded, in order for each peer, and fair between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.backlog import Backlog


def test_peers_take_turns_and_keep_their_order() -> None:
    backlog: Backlog[int] = Backlog(10, 10)
    for request in (1, 2, 3):
        assert backlog.offer(b"greedy", request)
    assert backlog.offer(b"modest", 4)
    assert backlog.take() == (b"greedy", 1)
    assert backlog.take() == (b"modest", 4)
    assert backlog.take() is None  # greedy's next waits for its first
    assert len(backlog) == 2
    backlog.finish(b"greedy")
    assert backlog.take() == (b"greedy", 2)


def test_limits_hold_for_each_peer_and_for_all() -> None:
    backlog: Backlog[int] = Backlog(3, 2)
    assert [backlog.offer(b"a", number) for number in range(3)] == [True, True, False]
    assert [backlog.offer(b"b", number) for number in range(2)] == [True, False]
    assert len(backlog) == 3


def test_forgotten_peer_leaves_no_request_and_no_turn() -> None:
    backlog: Backlog[int] = Backlog(10, 10)
    for peer, request in ((b"a", 1), (b"a", 2), (b"b", 3)):
        backlog.offer(peer, request)
    assert backlog.take() == (b"a", 1)
    assert backlog.forget(b"a") == 1
    assert backlog.forget(b"unknown") == 0
    backlog.finish(b"a")
    assert backlog.take() == (b"b", 3)
    assert backlog.take() is None
    assert len(backlog) == 0


@given(steps=st.lists(st.tuples(st.sampled_from(["offer", "take", "finish", "forget"]), st.integers(0, 3))))
def test_nothing_is_lost_doubled_or_out_of_order(steps: list[tuple[str, int]]) -> None:
    backlog: Backlog[int] = Backlog(6, 3)
    waiting: dict[bytes, list[int]] = {}
    at_work: set[bytes] = set()
    for number, (step, peer_number) in enumerate(steps):
        peer = bytes([peer_number])
        if step == "offer":
            queue = waiting.setdefault(peer, [])
            fits = len(queue) < 3 and sum(map(len, waiting.values())) < 6
            assert backlog.offer(peer, number) == fits
            if fits:
                queue.append(number)
        elif step == "take":
            taken = backlog.take()
            if taken is None:
                assert all(not queue or owner in at_work for owner, queue in waiting.items())
            else:
                assert taken[0] not in at_work
                assert waiting[taken[0]].pop(0) == taken[1]
                at_work.add(taken[0])
        elif step == "finish" and peer in at_work:
            backlog.finish(peer)
            at_work.remove(peer)
        elif step == "forget":
            assert backlog.forget(peer) == len(waiting.pop(peer, []))
        assert len(backlog) == sum(map(len, waiting.values()))
