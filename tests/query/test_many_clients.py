"""Fifty askers at once on the real socket and store: what one of them does costs the others no answer."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import zmq

from pipeline.client import Client
from pipeline.clock import SystemClock
from pipeline.codec import decode_map, encode
from pipeline.errors import Refused
from pipeline.query import Lookups, handle, refuse_bytes
from pipeline.store import Reader, Store
from pipeline.transport.front_thread import FrontThread
from pipeline.transport.query_socket import QueryFront
from tests.sample_state import HOST, connection, snapshot

DEADLINE_S = 60.0
ROWS, QUESTIONS, CLIENTS = 997, 40, 47
ENDLESS = "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"


class Served:
    """A store with its query socket, pumped as the aggregator would, and fed by the test."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        clock = SystemClock()
        self.store = Store(f"{folder}/state.db", "epoch-1", "testhost", clock, stale_after_s=15.0)
        self.store.apply([snapshot(connections=[connection(key) for key in range(1, ROWS + 1)])])
        self._generation = 1

        def make(may_defer: bool) -> Callable[[bytes], object]:
            return partial(handle, Reader(self.store.path, clock, time_limit_s=1.0), may_defer=may_defer)

        self.front = QueryFront(
            f"{folder}/query.ipc",
            lambda: make(True),  # type: ignore[arg-type, return-value]
            refuse=refuse_bytes,
            quick=Lookups(lambda: Reader(self.store.path, clock, max_steps=50_000)),
            make_heavy_handler=lambda: make(False),  # type: ignore[arg-type, return-value]
        )
        self._thread = FrontThread(self.front)

    def change(self, key: int) -> None:
        """One more connection, as a worker would tell of it."""
        self._generation += 1
        commit = self.store.apply(
            [snapshot(generation=self._generation, base=False, connections=[connection(key)])]
        )
        if commit.touched:
            self._thread.wake()

    def stop(self) -> None:
        self._thread.close()
        self.store.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="sockscope-test-") as folder:
        made = Served(folder)
        yield made
        made.stop()


@contextlib.contextmanager
def dealer(served: Served) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        socket.connect(f"ipc://{served.folder}/query.ipc")
        yield socket


def test_everybody_else_is_answered_beside_endless_sql_garbage_and_a_peer_who_never_reads(
    served: Served,
) -> None:
    over = threading.Event()
    counts = {"timeout": 0, "answered": 0, "garbage": 0}
    lock = threading.Lock()

    def endless() -> None:
        with Client(served.folder, timeout_s=DEADLINE_S) as client:
            while not over.is_set():
                with pytest.raises(Refused) as refused:
                    client.ask("sql", sql=ENDLESS)
                assert refused.value.code == "timeout"
                counts["timeout"] += 1

    def garbage() -> None:
        with dealer(served) as socket:
            while not over.is_set():
                socket.send(os.urandom(64))
                assert decode_map(socket.recv())["ok"] is False
                counts["garbage"] += 1

    def ask() -> None:
        answered = 0
        with Client(served.folder, timeout_s=DEADLINE_S) as client:
            for number in range(QUESTIONS):
                answered += len(client.connections(cookie=1 + number * 13 % ROWS).rows)
        with lock:
            counts["answered"] += answered

    askers = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    others = [threading.Thread(target=endless), threading.Thread(target=garbage)]
    with dealer(served) as never_reads:
        for _ in range(20):
            never_reads.send(encode({"op": "connections"}))
        for thread in (*others, *askers):
            thread.start()
        for thread in askers:
            thread.join(DEADLINE_S)
        over.set()
        for thread in others:
            thread.join(DEADLINE_S)

    assert counts["answered"] == CLIENTS * QUESTIONS
    assert counts["timeout"] >= 1 and counts["garbage"] >= 1


def test_wait_returns_on_the_change_it_waits_for_and_not_on_another(served: Served) -> None:
    with dealer(served) as other, dealer(served) as mine:
        other.send(encode({"id": 1, "op": "wait", "where": {"cookie": 5000}, "seq": 1, "timeout_s": 300}))
        mine.send(encode({"id": 2, "op": "wait", "where": {"cookie": 4000}, "timeout_s": 300}))
        deadline_s = time.monotonic() + DEADLINE_S
        while served.front.parked < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)

        served.change(4000)

        answered = decode_map(mine.recv())
        assert (answered["id"], answered["seq"], answered["rows"]) == (2, 2, [[True]])
        assert other.poll(200) == 0
        assert served.front.parked == 1


def test_wait_without_a_change_ends_at_its_time(served: Served) -> None:
    with dealer(served) as socket:
        socket.send(encode({"id": 1, "op": "wait", "where": {"netns": HOST}, "seq": 1, "timeout_s": 0.3}))

        assert decode_map(socket.recv())["rows"] == [[False]]


@pytest.mark.parametrize("keys", [{"timeout_s": 301}, {"seq": -1}, {"where": {"nothing": 1}}, {"limit": 3}])
def test_wait_that_makes_no_sense_is_refused_at_once(served: Served, keys: dict[str, object]) -> None:
    with dealer(served) as socket:
        socket.send(encode({"id": 1, "op": "wait", "timeout_s": 300, **keys}))

        assert decode_map(socket.recv())["ok"] is False


def test_wait_for_another_run_returns_at_once(served: Served) -> None:
    with dealer(served) as socket:
        socket.send(encode({"id": 1, "op": "wait", "epoch": "epoch-0", "seq": 1, "timeout_s": 300}))

        assert decode_map(socket.recv())["rows"] == [[True]]
