"""The case `crowd`: what clients that behave notice of clients that do not.

`python -m scripts.benchmarks.crowd KIND QUERY_SOCKET` is one client that does not: endless SQL, garbage, questions
whose answers it never reads, or the whole table again and again. It ends when its input does.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import zmq

from pipeline.client import Client
from pipeline.codec import encode
from pipeline.errors import SockscopeError
from scripts.benchmarks.load import helper, ready_message
from scripts.benchmarks.measure import Effort, Row, percentile

_CLIENTS = 47
_PERIOD_S = 0.1
_GOAL_RATIO = 2.0
_MISBEHAVING = ("sql", "garbage", "silent")
_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
_WITHOUT_END: dict[str, tuple[list[bytes], float]] = {
    # What it sends, and how many seconds it waits before it sends that again.
    "sql": ([encode({"id": 1, "op": "sql", "sql": _ENDLESS})], 0.5),
    "garbage": ([os.urandom(200), b"", b"\xc1" * 50], 0.005),
    "silent": ([encode({"id": 1, "op": "connections", "limit": 100})], 0.05),
    "greedy": ([encode({"id": 1, "op": "connections"})], 0.05),
}


def crowd(effort: Effort) -> list[Row]:
    """47 clients asking at once: alone, beside three that misbehave, beside one that wants the whole table."""
    namespaces, each = (4, 250) if effort.quick else (20, 1000)
    command = [sys.executable, "-m", "scripts.benchmarks.synthetic", str(namespaces), str(each)]
    alone: list[float] = []
    beside: list[float] = []
    greedy: list[float] = []
    with helper(command) as process:
        made = ready_message(process)
        for _ in range(effort.runs):
            alone += _times_ms(made, effort)
            with _others(made, _MISBEHAVING):
                beside += _times_ms(made, effort)
            with _others(made, ("greedy",)):
                greedy += _times_ms(made, effort)
    what = f"{_CLIENTS} clients, {1 / _PERIOD_S:.0f} lookups a second each, {namespaces * each:,} connections"
    late_alone, late_beside = percentile(alone, 99), percentile(beside, 99)
    note = f"{len(alone)} and {len(beside)} lookups, all answered"
    return [
        Row("crowd", f"{what}: p99 alone", "ms", late_alone, note=note),
        Row("crowd", f"{what}: p99 beside three that misbehave", "ms", late_beside, note=note),
        Row("crowd", f"{what}: the second by the first", "times", late_beside / late_alone, goal=_GOAL_RATIO),
        Row("crowd", f"{what}: p99 beside one that wants all, again and again", "ms", percentile(greedy, 99)),
    ]


@contextlib.contextmanager
def _others(made: dict[str, object], kinds: Sequence[str]) -> Iterator[None]:
    """One client of each kind beside those that are measured."""
    with contextlib.ExitStack() as others:
        for kind in kinds:
            command = [
                sys.executable,
                "-m",
                "scripts.benchmarks.crowd",
                kind,
                f"{made['runtime_dir']}/query.ipc",
            ]
            ready_message(others.enter_context(helper(command)))
        yield


def _times_ms(made: dict[str, object], effort: Effort) -> list[float]:
    """How long each lookup took. Raises: LookupError where one did not find its row."""
    times_ms: list[float] = []
    failures: list[str] = []
    end_s = time.monotonic() + effort.measure_s / 2

    def ask(number: int) -> None:
        chosen = random.Random(number)
        keys = made["keys"]
        assert isinstance(keys, list)
        with Client(str(made["runtime_dir"])) as client:
            # Spread over the period, as independent clients are.
            time.sleep(_PERIOD_S * number / _CLIENTS)
            while (began_s := time.monotonic()) < end_s:
                try:
                    found = len(client.connections(cookie=chosen.choice(keys)).rows)
                except SockscopeError as error:
                    failures.append(str(error))
                    return
                times_ms.append((time.monotonic() - began_s) * 1000)
                if found != 1:
                    failures.append(f"{found} rows")
                time.sleep(max(0.0, began_s + _PERIOD_S - time.monotonic()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or not times_ms:
        raise LookupError(f"a lookup failed: {failures[:1]}")
    return times_ms


def _misbehave(kind: str, query_socket: str) -> None:
    messages, pause_s = _WITHOUT_END[kind]
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 1)  # or libzmq would read a thousand answers for one that never does
    socket.connect(f"ipc://{query_socket}")
    print("READY {}", flush=True)
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        for message in messages:
            with contextlib.suppress(zmq.Again):
                socket.send(message, zmq.NOBLOCK)
    socket.close()
    context.term()


if __name__ == "__main__":
    _misbehave(*sys.argv[1:])
