"""One namespace with a server in it and a pipeline that watches only that: what live tests of clients ask."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.e2e.host import (
    NamedNetns,
    Pipeline,
    Server,
    clean_environment,
    named_netns,
    pipeline,
    quick,
    seconds_until,
)

DEADLINE_S = 60.0


class Watched(NamedTuple):
    netns: NamedNetns
    server: Server
    running: Pipeline

    @property
    def runtime_dir(self) -> str:
        return str(self.running.runtime_dir)

    def command(self, verb: str, *arguments: str) -> list[str]:
        """`sockscope VERB ARGUMENTS` for this pipeline."""
        return [sys.executable, "-m", "pipeline.cli", verb, "--runtime-dir", self.runtime_dir, *arguments]

    def sockscope(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(verb, *arguments)
        return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=60)

    def rows(self, verb: str, *arguments: str) -> list[dict[str, Any]]:
        """What the verb prints as JSON lines."""
        completed = self.sockscope(verb, "--format", "jsonl", *arguments)
        assert completed.returncode == 0, completed.stderr
        return [json.loads(line) for line in completed.stdout.splitlines()]

    def kill_aggregator(self) -> None:
        (pid,) = self.running.pids("aggregator")
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def watched(folder: Path, name: str) -> Iterator[Watched]:
    """The namespace is called `name`; all that the server has is known when the block begins."""
    mounts = folder / "netns"
    mounts.mkdir()
    with (
        named_netns(mounts, name) as netns,
        contextlib.closing(Server(netns)) as server,
        pipeline(folder, config=quick(mounts, name)) as running,
    ):
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        seconds_until(lambda: running.knows_all(netns, server), DEADLINE_S, "complete")
        yield Watched(netns, server, running)


class Lines:
    """A program whose output is read line by line as it comes; ended by its pid. A context manager."""

    def __init__(self, command: Sequence[str], cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=clean_environment(),
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def next(self) -> str:
        """Without its line end. Fails the test when none comes in time."""
        line = self._lines.get(timeout=DEADLINE_S)
        assert line is not None, self.process.communicate()[1]
        return line

    def block(self) -> list[str]:
        """The lines up to the next empty one."""
        lines = []
        while line := self.next():
            lines.append(line)
        return lines

    def rest(self) -> list[str]:
        """What came and was not read; after `end`."""
        lines = []
        while (line := self._lines.get(timeout=DEADLINE_S)) is not None:
            lines.append(line)
        return lines

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Its exit code and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self._reader.join(DEADLINE_S)
        if self._reader.is_alive():
            self.process.kill()
            self._reader.join()
        assert self.process.stdout is not None and self.process.stderr is not None
        with self.process.stdout, self.process.stderr:
            said = self.process.stderr.read()
        return self.process.wait(timeout=DEADLINE_S), said

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.end(signal.SIGTERM)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
