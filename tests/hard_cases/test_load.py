"""Cases 18 and 24: one busy namespace beside many idle ones, and processes that live for a moment, by the hundred.

The oracle is ss, and what the processes themselves say.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.host import (
    REPOSITORY,
    NamedNetns,
    Pipeline,
    clean_environment,
    named_netns,
    pipeline,
    quick,
    seconds_until,
)
from tests.hard_cases.actors import actor
from tests.live import needs_root, wait_until

pytestmark = needs_root

IDLE, PAIRS, OTHERS = 61, 1009, 499


@contextlib.contextmanager
def idle_namespaces(tag: str) -> Iterator[dict[str, Any]]:
    """IDLE namespaces called TAG-0, TAG-1, ... with one process and three sockets each."""
    command = [
        sys.executable,
        "scripts/loadgen",
        "--named",
        "--until-eof",
        f"--tag={tag}",
        f"--namespaces={IDLE}",
    ]
    process = subprocess.Popen(
        [*command, "--sockets=3", "--duration=300"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=REPOSITORY, env=clean_environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY ")
        yield json.loads(line.removeprefix("READY "))
    finally:
        process.communicate(timeout=60)


# A namespace full of sockets. On a word, one listener more.
BUSY = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
server = socket.create_server(("127.0.0.1", 0), backlog=64)
held = []
for _ in range({PAIRS}):
    held.append(socket.create_connection(server.getsockname()))
    held.append(server.accept()[0])
for _ in range({OTHERS}):
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].bind(("127.0.0.1", 0))
say(len(held) + 1)
while told():
    held.append(listen())
    say(os.fstat(held[-1].fileno()).st_ino)
"""


def test_neither_the_busy_namespace_nor_the_idle_ones_starve(tmp_path: Path) -> None:
    """Case 18 on a small scale: 500 namespaces and 50,000 sockets are for `scripts/bench`, as they take minutes. Here
    61 idle ones are beside one with 2,518 sockets, at the default budget and pace, and a dozen workers share them.
    """
    mounts = tmp_path / "netns"
    mounts.mkdir()
    tag = f"starve{os.getpid()}"
    config = f"""
[discovery]
mount_dirs = {json.dumps([str(mounts), "/run/netns"])}
include = ["{tag}-*"]
[workers]
max = 12
"""
    with (
        idle_namespaces(tag) as made,
        named_netns(mounts, f"{tag}-busy") as busy,
        actor(busy, BUSY) as process,
        pipeline(tmp_path / "running", config=config) as running,
    ):
        (sockets,) = process.said
        assert busy.run("ss", "-Htuan").count("\n") == sockets == 2 * PAIRS + OTHERS + 1
        seconds_until(running.is_ready, 60.0, "ready")
        wait_until(lambda: _owned(running, busy.inode) == {process.pid: sockets}, 60.0)
        for inode, (pid, *_) in zip(made["inodes"], made["pids"], strict=True):
            wait_until(lambda: _owned(running, inode) == {pid: 3}, 60.0)  # noqa: B023
        # Both still are looked at: a change in either is seen, and nothing is called stale.
        for _ in range(3):
            (new,) = process.tell("listen")
            wait_until(lambda: _holds(running, busy, new, process.pid), 60.0)  # noqa: B023
        wait_until(lambda: not any(row["stale"] for row in _namespaces(running)), 60.0)
        assert len(_namespaces(running)) == IDLE + 1
        assert {row["partial"] for row in _namespaces(running)} == {False}


def _owned(running: Pipeline, netns: int) -> dict[int, int]:
    """pid -> how many connections of a namespace are its own."""
    found: dict[int, int] = {}
    for row in running.connections(netns=netns):
        for owner in row["owners"]:
            found[owner["pid"]] = found.get(owner["pid"], 0) + 1
    return found


def _holds(running: Pipeline, netns: NamedNetns, inode: int, pid: int) -> bool:
    rows = running.connections(netns=netns.inode, inode=inode)
    return [[owner["pid"] for owner in row["owners"]] for row in rows] == [[pid]]


def _namespaces(running: Pipeline) -> list[dict[str, Any]]:
    with running.client() as client:
        return client.namespaces().rows


# Processes that each open a socket and end, one after the other, and a listener that stays.
CHURN = """
listener = listen()
say(os.fstat(listener.fileno()).st_ino)
ended = 0
while told():
    for _ in range(100):
        child = os.fork()
        if child == 0:
            one = listen()
            os._exit(0)
        os.waitpid(child, 0)
    ended += 100
    say(ended)
"""


def test_processes_that_live_for_a_moment_leave_no_trace_and_fill_no_log(tmp_path: Path) -> None:
    """Case 24."""
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with (
        named_netns(mounts, "churn-here") as netns,
        actor(netns, CHURN) as process,
        pipeline(tmp_path / "running", config=quick(mounts, "churn-*")) as running,
    ):
        (inode,) = process.said
        seconds_until(running.is_ready, 30.0, "ready")
        wait_until(lambda: _holds(running, netns, inode, process.pid), 20.0)
        looks, passes = _health(running)
        ended = 0
        # Until some looks and passes have met them.
        while ended < 500 or not _has_met_them(running, looks + 5, passes + 2):
            (ended,) = process.tell("again")
            assert ended < 1_000_000
        wait_until(lambda: _processes(running) == {process.pid}, 20.0)
        wait_until(lambda: set(_owned(running, netns.inode)) == {process.pid}, 20.0)
        assert _holds(running, netns, inode, process.pid)
        running.stop()
        lines = running.log.splitlines()
        assert "Traceback" not in running.log
        assert len(lines) < 20, running.log


def _has_met_them(running: Pipeline, looks: int, passes: int) -> bool:
    now_looks, now_passes = _health(running)
    return now_looks >= looks and now_passes >= passes


def _health(running: Pipeline) -> tuple[int, int]:
    losses = running.status()["losses"]
    return losses["looks"], losses["passes"]


def _processes(running: Pipeline) -> set[int]:
    with running.client() as client:
        return {row["pid"] for row in client.processes()}
