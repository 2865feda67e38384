"""The thread that serves a query front, and what a front answers on the spot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from pipeline.model.deferred import Later
from pipeline.transport.front_thread import FrontThread
from pipeline.transport.handlers import Handler
from pipeline.transport.query_socket import QueryFront
from pipeline.transport.requester import Requester

DEADLINE_S = 60.0


def refusal(request: bytes, code: str, message: str) -> bytes:
    return code.encode()


def anything(answer: bytes) -> bool:
    return True


def quick(request: bytes) -> bytes | None:
    return b"at once: " + request if request.startswith(b"quick") else None


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "query.ipc")


@contextmanager
def served(path: str, handler: Handler, **options: Any) -> Iterator[FrontThread]:
    thread = FrontThread(QueryFront(path, lambda: handler, refuse=refusal, threads=1, **options))
    try:
        yield thread
    finally:
        thread.close()


@contextmanager
def dealer(path: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        socket.connect("ipc://" + path)
        yield socket


def test_quick_requests_are_answered_while_every_handler_is_at_work(path: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(request: bytes) -> bytes:
        begun.set()
        go_on.wait(DEADLINE_S)
        return b"answer to " + request

    with served(path, slow, quick=quick), dealer(path) as patient, Requester(path, DEADLINE_S) as asker:
        patient.send(b"slow")
        assert begun.wait(DEADLINE_S)
        assert asker.request(b"quick 1", anything) == b"at once: quick 1"
        go_on.set()
        assert patient.recv() == b"answer to slow"
        assert asker.request(b"other", anything) == b"answer to other"


def test_a_quick_answer_does_not_overtake_the_answers_to_what_its_peer_asked_before(path: str) -> None:
    with served(path, lambda request: b"answer to " + request, quick=quick), dealer(path) as socket:
        for number in range(13):
            socket.send(b"slow %d" % number)
            socket.send(b"quick %d" % number)
        answers = [socket.recv() for _ in range(26)]
    numbers = [int(answer.split()[-1]) for answer in answers]
    assert numbers == sorted(numbers)
    assert answers[::2] == [b"answer to slow %d" % number for number in range(13)]


def test_a_long_request_is_for_a_handler_and_an_oversized_one_for_none(path: str) -> None:
    with (
        served(path, lambda request: b"handled", quick=quick, max_request_bytes=4000),
        Requester(path, DEADLINE_S) as asker,
    ):
        assert asker.request(b"quick" + bytes(3000), anything) == b"handled"
        assert asker.request(b"quick" + bytes(5000), anything) == b"too_large"


def test_waking_asks_what_is_parked_again_without_another_request(path: str) -> None:
    state = {"changed": False}

    def wait_for_change(request: bytes) -> bytes | Later:
        return b"changed" if state["changed"] else Later(request, time.monotonic() + 10 * DEADLINE_S)

    with served(path, wait_for_change) as thread, dealer(path) as socket:
        socket.send(b"wait")
        end_s = time.monotonic() + DEADLINE_S
        while not thread.front.parked:
            assert time.monotonic() < end_s, "the request was not parked"
            threading.Event().wait(0.005)
        state["changed"] = True
        thread.wake()
        assert socket.recv() == b"changed"


def test_a_handler_that_cannot_be_made_ends_the_thread_and_says_why(path: str) -> None:
    def make_handler() -> Handler:
        raise LookupError("no store")

    thread = FrontThread(QueryFront(path, make_handler, refuse=refusal, threads=1))
    try:
        end_s = time.monotonic() + DEADLINE_S
        with dealer(path) as socket:
            while thread.failure is None:
                assert time.monotonic() < end_s, "the thread goes on"
                socket.send(b"what makes it pump")
                threading.Event().wait(0.005)
        assert isinstance(thread.failure, LookupError)
    finally:
        thread.close()
