"""scripts/launch before anything is installed: what it says when it cannot go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What scripts/launch reads, in a folder without .venv."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def launch(clone: Path, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | ({"PYTHON": python} if python else {})
    command = [str(clone / "scripts" / "launch"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def test_help_shows_both_ways_to_call_it(clone: Path) -> None:
    completed = launch(clone, "--help")
    assert completed.returncode == 0
    assert [line.split()[:2] for line in completed.stdout.splitlines()] == [
        ["scripts/launch", "[--config"],
        ["scripts/launch", "--demo"],
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--duration", "3"],
            "launch: unknown option --duration. Try: options of `sockscope run` go after --",
        ),
        (["--config"], "launch: --config needs a value"),
    ],
)
def test_a_wrong_option_exits_2(clone: Path, arguments: list[str], says: str) -> None:
    completed = launch(clone, *arguments)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.splitlines()[0] == says


def test_without_a_new_enough_python_it_says_what_to_install(clone: Path) -> None:
    completed = launch(clone, python="false")
    assert completed.returncode == 1
    assert completed.stderr.startswith(
        "launch: needs Python 3.11 or newer and found none. Try: apt install python3"
    )
    assert not (clone / ".venv").exists()


def test_without_the_venv_module_it_says_what_to_install(clone: Path) -> None:
    # Debian's python3 without python3-venv: no ensurepip.
    python = clone / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    completed = launch(clone, python=str(python))
    assert completed.returncode == 1
    assert completed.stderr == (
        f"launch: {python} cannot make a virtual environment. Try: apt install python3-venv\n"
    )
    assert not (clone / ".venv").exists()
