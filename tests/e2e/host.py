"""A small host for end-to-end tests: named namespaces with servers in them, and the pipeline as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.client import Client
from pipeline.errors import NoAggregator
from tests.live import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
CONNECTIONS = 23
ANSWER_S = 20.0

# Of each word on stdin it says "done" when it did it. Its connections are to itself, both ends.
SERVER = f"""
import socket, sys
held = [socket.create_server(("127.0.0.1", 0), backlog=64)]
for _ in range({CONNECTIONS}):
    client = socket.create_connection(held[0].getsockname())
    held += [client, held[0].accept()[0]]
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "listen":
        held.append(socket.create_server(("127.0.0.1", 0)))
        print(held[-1].getsockname()[1], flush=True)
    elif word == "close all":
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\x01\\0\\0\\0\\0\\0\\0\\0")
            one.close()
        held.clear()
        print("done", flush=True)
"""


class NamedNetns:
    """A namespace bound as `name` in `mounts`, its loopback up; lives until `remove`, with or without processes."""

    def __init__(self, mounts: Path, name: str) -> None:
        self.name = name
        self.path = mounts / name
        self.path.touch()
        subprocess.run(["unshare", f"--net={self.path}", "ip", "link", "set", "lo", "up"], check=True)
        self.inode = os.stat(self.path).st_ino

    def remove(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        self.path.unlink()

    def run(self, *command: str) -> str:
        """What `command` prints when run inside."""
        whole = ["nsenter", f"--net={self.path}", *command]
        return subprocess.run(whole, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


@contextlib.contextmanager
def named_netns(mounts: Path, name: str) -> Iterator[NamedNetns]:
    netns = NamedNetns(mounts, name)
    try:
        yield netns
    finally:
        if netns.path.exists():
            netns.remove()


class Server:
    """A process in a namespace: one listener, CONNECTIONS connections to itself; does what it is told."""

    def __init__(self, netns: NamedNetns) -> None:
        self._process = subprocess.Popen(
            ["nsenter", f"--net={netns.path}", sys.executable, "-S", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._read() == "ready"

    def tell(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Twice is harmless."""
        if self._process.poll() is None:
            self._process.communicate(timeout=PATIENCE_S)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Pipeline:
    """`sockscope run` in a folder of its own: `run` is the runtime directory, `log` all that it said."""

    def __init__(self, folder: Path, *options: str, config: str = "", prefix: tuple[str, ...] = ()) -> None:
        self.runtime_dir = folder / "run"
        self.log_path = folder / "log"
        config_path = folder / "config.toml"
        config_path.write_text(config)
        command = [*prefix, *sockscope("run", "--config", str(config_path))]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--runtime-dir", str(self.runtime_dir), *options],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=clean_environment(),
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def segments(self) -> Path:
        return Path(os.readlink(self.runtime_dir / "segments"))

    def client(self) -> Client:
        """Patient: an aggregator that dies meanwhile has a successor, which is asked again."""
        return Client(str(self.runtime_dir), timeout_s=ANSWER_S)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return bool(self.status()["ready"])
        except NoAggregator:
            return False

    def connections(self, **filters: Any) -> list[dict[str, Any]]:
        """Rows, or none while there is no aggregator."""
        try:
            with self.client() as client:
                return client.connections(**filters).rows
        except NoAggregator:
            return []

    def namespace(self, netns: int | str) -> dict[str, Any] | None:
        with self.client() as client:
            rows = client.namespaces(netns=netns).rows
        return rows[0] if rows else None

    def names(self) -> set[str]:
        with self.client() as client:
            return {row["name"] for row in client.namespaces()}

    def pids(self, role: str) -> dict[int, list[int]]:
        """pid -> namespaces of the living processes of a role."""
        workers = self.status()["workers"]
        return {one["pid"]: one["netns"] for one in workers if one["role"] == role and one["pid"]}

    def worker_of(self, inode: int) -> int:
        """The living one: of a namespace that had this inode before, the dead one may still be in the status."""
        found: list[int] = []

        def is_served() -> bool:
            found.extend(
                pid for pid, served in self.pids("netns").items() if inode in served and is_alive(pid)
            )
            return bool(found)

        seconds_until(is_served, 30.0, "served")
        return found[0]

    def knows_all(self, netns: NamedNetns, server: Server) -> bool:
        """Whether the server's connections are all there, fresh, with it as their one holder."""
        rows = self.connections(netns=netns.inode, established=True)
        return len(rows) == 2 * CONNECTIONS and all(
            [one["pid"] for one in row["owners"]] == [server.pid] and not row["stale"] for row in rows
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def pipeline(
    folder: Path, *options: str, config: str = "", prefix: tuple[str, ...] = ()
) -> Iterator[Pipeline]:
    folder.mkdir(exist_ok=True)
    running = Pipeline(folder, *options, config=config, prefix=prefix)
    try:
        yield running
    finally:
        running.stop()


def sockscope(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SOCKSCOPE_")}


def quick(mounts: Path, *include: str) -> str:
    """A configuration that sees only the namespaces named like `include` in `mounts`, and looks often."""
    return f"""
[discovery]
interval_s = 0.5
mount_dirs = {json.dumps([str(mounts)])}
include = {json.dumps(include)}
[walk]
target_s = 2
[tables]
interval_s = 0.5
idle_interval_s = 1
full_interval_s = 1
[budget]
cpu_percent = 50
[workers]
restart_backoff_s = 0.1
stale_after_s = 3
"""


def seconds_until(condition: Callable[[], bool], deadline_s: float, what: str) -> float:
    """How long it took until `condition` held. Prints it, for the record.

    `deadline_s` is meant for a machine with nothing else to do: the test fails after PATIENCE_S at the earliest.
    """
    began_s = time.monotonic()
    fails_after_s = max(deadline_s, PATIENCE_S)
    while not condition():
        assert time.monotonic() - began_s < fails_after_s, f"{what}: not within {fails_after_s} s"
        time.sleep(0.02)
    took_s = time.monotonic() - began_s
    print(f"{what}: {took_s:.2f} s")
    return took_s


def is_alive(pid: int) -> bool:
    """Zombies do not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
