"""One pipeline that the tests of this folder share, on three namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.host import (
    REPOSITORY,
    NamedNetns,
    Pipeline,
    Server,
    clean_environment,
    named_netns,
    pipeline,
    quick,
    seconds_until,
    sockscope,
)


@dataclass
class Host:
    """`alpha` and `beta` have a server each, `gamma` has no process. Each test leaves them as it found them."""

    running: Pipeline
    mounts: Path
    alpha: NamedNetns
    beta: NamedNetns
    gamma: NamedNetns
    server: Server
    other_server: Server

    def is_complete(self) -> bool:
        return self.running.knows_all(self.alpha, self.server) and self.running.knows_all(
            self.beta, self.other_server
        )


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("e2e")
    mounts = folder / "netns"
    mounts.mkdir()
    with contextlib.ExitStack() as opened:
        alpha, beta, gamma = (
            opened.enter_context(named_netns(mounts, f"e2e-{name}")) for name in ("alpha", "beta", "gamma")
        )
        servers = [Server(netns) for netns in (alpha, beta)]
        for server in servers:
            opened.callback(server.close)
        running = opened.enter_context(pipeline(folder, config=quick(mounts, "e2e-*")))
        found = Host(running, mounts, alpha, beta, gamma, servers[0], servers[1])
        seconds_until(running.is_ready, 30.0, "ready")
        seconds_until(found.is_complete, 30.0, "complete")
        yield found


@pytest.fixture(autouse=True)
def the_shared_pipeline_is_whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that used it."""
    yield
    if "host" in request.fixturenames:
        found: Host = request.getfixturevalue("host")
        seconds_until(found.is_complete, 30.0, "whole again")


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A short-lived folder that an ordinary user can reach; those of tmp_path are root's alone."""
    with tempfile.TemporaryDirectory(prefix="sockscope-e2e-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def private_shm(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs `sockscope ARGUMENTS` where /dev/shm is a file system of its own that has no room. (exit code, stderr)"""

    def run(*arguments: str) -> tuple[int, str]:
        inside = (
            'mount -t tmpfs -o size=4k,nr_inodes=1 tmpfs /dev/shm && exec "$@" --runtime-dir '
            + f"{tmp_path}/run"
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inside, "sh", *sockscope(*arguments)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=clean_environment(),
            timeout=60,
        )
        return done.returncode, done.stderr

    return run
