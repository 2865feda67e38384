"""Starting what is measured: a load of scripts/loadgen, a pipeline, a peer; each ends with its `with` block."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.client import Client
from pipeline.errors import SockscopeError
from scripts.benchmarks.measure import ROOT, SOCKSCOPE, clean_environment

_READY_S = 300.0
_END_S = 30.0
# Whatever becomes of the benchmark, what it started ends.
_LIFE_S = 3600
_POLL_S = 0.05


@dataclass(frozen=True)
class Load:
    """What a generator keeps open. `pattern` matches the names of all its namespaces and nobody else's."""

    pattern: str
    names: list[str]
    inodes: list[int]
    pids: list[list[int]]

    @property
    def paths(self) -> list[str]:
        """A way into each of its namespaces, in the order of `inodes`."""
        return [f"/run/netns/{name}" for name in self.names]


@contextlib.contextmanager
def load(
    namespaces: int, processes: int, sockets: int, other_fds: int = 0, churn: float = 0.0, shared_fds: int = 0
) -> Iterator[Load]:
    """Named namespaces with that many processes each, and descriptors in each process."""
    tag = f"bench{secrets.token_hex(4)}"
    command = [
        sys.executable, str(ROOT / "scripts" / "loadgen"), "--named", "--until-eof", f"--tag={tag}",
        f"--namespaces={namespaces}", f"--processes={processes}", f"--sockets={sockets}",
        f"--other-fds={other_fds}", f"--churn={churn}", f"--shared-fds={shared_fds}", f"--duration={_LIFE_S}",
    ]  # fmt: skip
    with helper(command) as process:
        made = ready_message(process)
        yield Load(f"{tag}-*", made["names"], made["inodes"], made["pids"])


@contextlib.contextmanager
def helper(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that ends when its input does. A session of its own: Ctrl-C reaches the benchmark alone."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        env=clean_environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def ready_message(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a helper says in its line `READY {json}`. Raises: ChildProcessError when it ends without one."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("READY "):
        raise ChildProcessError(f"`{' '.join(process.args)}` did not start")  # type: ignore[arg-type]
    message: dict[str, Any] = json.loads(line.removeprefix("READY "))
    return message


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that has merged its first state."""

    pid: int
    runtime_dir: str


@contextlib.contextmanager
def pipeline(
    pattern: str | Sequence[str], namespaces: int, config: Path | None = None, ebpf: str = "off"
) -> Iterator[Pipeline]:
    """One that watches the namespaces whose name matches (one of them). Raises: ChildProcessError, TimeoutError."""
    patterns = [pattern] if isinstance(pattern, str) else pattern
    with tempfile.TemporaryDirectory(prefix="sockscope-bench-") as runtime_dir:
        options = ["--config", str(config)] if config is not None else []
        command = [
            *SOCKSCOPE, "run", "--runtime-dir", runtime_dir, *(f"--netns={one}" for one in patterns), "--ebpf", ebpf,
            "--duration", str(_LIFE_S), "--log-level", "warning", *options,
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=clean_environment())
        try:
            _wait_until_merged(process, runtime_dir, namespaces)
            yield Pipeline(process.pid, runtime_dir)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_merged(process: subprocess.Popen[bytes], runtime_dir: str, namespaces: int) -> None:
    deadline_s = time.monotonic() + _READY_S
    with Client(runtime_dir, timeout_s=1.0) as client:
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise ChildProcessError(f"the pipeline ended with {process.returncode}")
            with contextlib.suppress(SockscopeError):
                status = client.status()
                if status["ready"] and status["namespaces"]["total"] >= namespaces:
                    return
            time.sleep(_POLL_S)
    raise TimeoutError(f"the pipeline did not merge {namespaces} namespaces within {_READY_S:.0f} s")
