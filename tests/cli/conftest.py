"""The command as a user runs it: its own process, an environment without settings of the tester's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Sockscope = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def sockscope(tmp_path: Path) -> Sockscope:
    """Runs `sockscope ARGUMENTS`; its runtime directory, unless one is named, is an empty one."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SOCKSCOPE_")}
        clean["SOCKSCOPE_RUNTIME_DIR"] = str(tmp_path / "run")
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.run(command, capture_output=True, env=clean | (env or {}), timeout=60)

    return run
