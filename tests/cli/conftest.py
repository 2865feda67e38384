"""The command as a user runs it: its own process, an environment without settings of the tester's.

`served` and `filled` are a real store behind a real query socket, with what two workers would publish.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.clock import SystemClock
from pipeline.model.connection import Connection, Family, Proto, State
from pipeline.model.netns import RosterRow, WorkerRow
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Health, Snapshot
from pipeline.query import answer_bytes
from pipeline.store.writer import Store
from pipeline.transport.query_socket import QueryFront

WEB, BOX = 4026531840, 4026532200

Sockscope = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def sockscope(tmp_path: Path) -> Sockscope:
    """Runs `sockscope ARGUMENTS`; its runtime directory, unless one is named, is an empty one."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SOCKSCOPE_")}
        clean["SOCKSCOPE_RUNTIME_DIR"] = str(tmp_path / "run")
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        completed = subprocess.run(command, capture_output=True, env=clean | (env or {}), timeout=60)
        # pytest shows it where the test fails.
        print(arguments, completed.returncode, completed.stderr.decode())
        return completed

    return run


def tcp(key: int, local: str, local_port: int, remote: str, remote_port: int, state: State) -> Connection:
    ends = [bytes(int(part) for part in address.split(".")) for address in (local, remote)]
    return Connection(
        key, Proto.TCP, Family.INET, state, ends[0], local_port, ends[1], remote_port, None, 100 + key, key, 0
    )


def snapshot(netns: int, connections: list[Connection], process: Process, denied: int = 0) -> Snapshot:
    """A first whole generation in which `process` holds every one of `connections`."""
    now_s = time.monotonic()
    holdings = [
        Holding(process.pid, process.start_ticks, 3 + n, row.inode) for n, row in enumerate(connections)
    ]
    return Snapshot(
        role="netns", netns=netns, cookie=netns - 4026531000, life=1, generation=1, base=True, taken_at_s=now_s,
        walked_at_s=now_s, source="sock_diag", denied=denied, health=Health(), connections=connections,
        processes=[process], holdings=holdings,
    )  # fmt: skip


def fill(store: Store) -> None:
    """nginx listens on port 80 of namespace `web` and has two clients; a process of a rude name has one connection
    in `box`, where two processes could not be read."""
    web = [
        tcp(1, "0.0.0.0", 80, "0.0.0.0", 0, State.LISTEN),
        tcp(2, "10.0.0.1", 80, "10.0.0.9", 40001, State.ESTABLISHED),
        tcp(3, "10.0.0.1", 80, "10.1.0.9", 40002, State.CLOSE_WAIT),
    ]
    box = [tcp(4, "10.0.0.9", 40001, "10.0.0.1", 80, State.ESTABLISHED)]
    roster = [
        RosterRow(netns, [name], 500, 1, "walking", name, time.monotonic())
        for netns, name in ((WEB, "web"), (BOX, "box"))
    ]
    store.apply(
        [
            snapshot(WEB, web, Process(701, 11, "nginx", 33, WEB, None)),
            snapshot(BOX, box, Process(702, 12, "\x1b[31mrude", 0, BOX, None), denied=2),
        ],
        roster,
    )
    store.set_workers([WorkerRow("netns", 500, [WEB, BOX], "walking", 0, 0.5)])


def no_refusals(request: bytes, code: str, message: str) -> bytes:
    raise AssertionError(f"refused {request!r}: {code} {message}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Store]:
    """The store, empty as yet, answering at the runtime directory that the `sockscope` fixture names."""
    directory = tmp_path / "run"
    directory.mkdir()
    store = Store(str(directory / "state.db"), "epoch", "host", SystemClock(), stale_after_s=3600)

    def make_handler() -> Callable[[bytes], bytes]:
        reader = store.reader()
        return lambda request: answer_bytes(reader, request)

    front = QueryFront(str(directory / "query.ipc"), make_handler, refuse=no_refusals, threads=1)
    stopped = threading.Event()

    def pump() -> None:
        while not stopped.is_set():
            front.poll_sockets[0].poll(20)
            front.pump()

    thread = threading.Thread(target=pump)
    thread.start()
    yield store
    stopped.set()
    thread.join()
    front.close()
    store.close()


@pytest.fixture
def filled(served: Store) -> Store:
    fill(served)
    return served
