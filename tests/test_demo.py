"""scripts/demo: what it shows, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.live import needs_root, wait_until

DEMO = Path(__file__).parent.parent / "scripts" / "demo"
pytestmark = needs_root


def namespaces_of(pid: int) -> list[str]:
    directory = Path("/run/netns")
    return sorted(path.name for path in directory.glob(f"demo-*-{pid}")) if directory.is_dir() else []


def start(runtime_parent: Path) -> subprocess.Popen[str]:
    """The demo, with its temporary directory below `runtime_parent`."""
    env = os.environ | {"TMPDIR": str(runtime_parent)}
    return subprocess.Popen(
        [sys.executable, str(DEMO)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def processes_of(temporary: Path) -> list[str]:
    """Names of the processes that a demo with that temporary directory left: all have it in their environment."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(temporary):
                found.append(process.info["name"])
    return found


@pytest.fixture
def short_dir() -> Iterator[Path]:
    # Unix socket paths are short: pytest's own temporary directories may be too deep.
    with tempfile.TemporaryDirectory(prefix="d") as path:
        yield Path(path)


def test_demo_shows_both_ends_with_their_owners_and_leaves_nothing(short_dir: Path) -> None:
    demo = start(short_dir)
    shown, log = demo.communicate(timeout=110)
    assert demo.returncode == 0, log
    lines = [line.split() for line in shown.splitlines()]
    client = [line for line in lines if line and line[0] == f"demo-client-{demo.pid}"]
    assert [(line[1], line[2], line[4]) for line in sorted(client, key=lambda line: line[4])] == [
        ("tcp", "ESTABLISHED", "10.213.1.2:8080"),
        ("tcp", "ESTABLISHED", "[fd00:213::2]:8080"),
    ]
    assert all(line[6].endswith("/demo-client") for line in client)
    assert "Every connection has its right owner at both ends." in shown
    assert (namespaces_of(demo.pid), list(short_dir.iterdir()), processes_of(short_dir)) == ([], [], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_interrupted_removes_what_it_made(short_dir: Path, number: signal.Signals) -> None:
    demo = start(short_dir)
    wait_until(
        lambda: len(namespaces_of(demo.pid)) == 3 and len(list(short_dir.iterdir())) == 1, timeout_s=30
    )
    demo.send_signal(number)
    _, log = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in log
    assert (namespaces_of(demo.pid), list(short_dir.iterdir()), processes_of(short_dir)) == ([], [], [])
