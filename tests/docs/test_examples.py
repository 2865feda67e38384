"""The example programs of docs/examples, run against a live pipeline as their first lines say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import CONNECTIONS
from tests.live import needs_root
from tests.watched import Lines, Watched, watched

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SOCKETS = 2 * CONNECTIONS + 1
# They move with each look.
TIMES = ("seen_at", "owner_seen_at")

pytestmark = needs_root


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("docs"), "docs-shop") as found:
        yield found


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node examples with their packages installed, by npm, in a folder of its own."""
    assert shutil.which("npm"), "npm is missing: scripts/test installs it"
    folder = tmp_path_factory.mktemp("node") / "examples"
    shutil.copytree(EXAMPLES / "node", folder)
    command = ["npm", "install", "--fetch-retries=5", "--no-audit", "--no-fund", "--loglevel", "error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (folder / "package-lock.json").exists()
    return folder


@pytest.fixture(params=["python", "node"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def program(language: str, request: pytest.FixtureRequest) -> Any:
    """From the name of an example to what starts it."""
    if language == "python":
        return lambda name: [sys.executable, str(EXAMPLES / "python" / f"{name}.py")]
    folder: Path = request.getfixturevalue("node_folder")
    return lambda name: ["node", str(folder / f"{name}.js")]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({name: value for name, value in row.items() if name not in TIMES} for row in rows),
        key=lambda row: row["cookie"],
    )


def test_a_query_prints_the_same_rows_as_the_command(shop: Watched, program: Any) -> None:
    filters = ["proto=tcp", f"netns={shop.netns.inode}"]
    command = [*program("query"), shop.runtime_dir, *filters]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == SOCKETS
    assert all(isinstance(row["seen_at"], (int, float)) for row in rows)
    expected = shop.rows("connections", "--proto", "tcp", "--netns", str(shop.netns.inode))
    assert without_times(rows) == without_times(expected)


def test_a_filter_that_is_true_or_false_can_be_given(shop: Watched, program: Any) -> None:
    command = [*program("query"), shop.runtime_dir, "listening=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert {json.loads(line)["state"] for line in done.stdout.splitlines()} == {"LISTEN"}


def test_a_refused_query_says_why_and_fails(shop: Watched, program: Any) -> None:
    command = [*program("query"), shop.runtime_dir, "local_prt=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the nearest known one is local_port" in done.stderr


def test_a_query_where_nobody_answers_ends_and_fails(tmp_path: Path, program: Any) -> None:
    command = [*program("query"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr


def test_a_follower_tells_all_that_comes_and_goes_and_survives_the_aggregator(
    shop: Watched, program: Any
) -> None:
    with Lines([*program("follow"), shop.runtime_dir, str(shop.netns.inode)]) as follower:
        rows: dict[str, dict[str, Any]] = {}
        while len(rows) < SOCKETS:
            take(rows, follower.next())
        port = int(shop.server.tell("listen"))
        while not listens(rows, port):
            take(rows, follower.next())

        shop.kill_aggregator()
        other_port = int(shop.server.tell("listen"))
        while not listens(rows, other_port):
            take(rows, follower.next())
    expected = shop.rows(
        "connections", "--netns", str(shop.netns.inode), "--fields", ",".join(next(iter(rows.values())))
    )
    assert sorted(rows.values(), key=by_key) == sorted(expected, key=by_key)
    assert all(row["owners"][0]["pid"] == shop.server.pid for row in rows.values())


def by_key(row: dict[str, Any]) -> str:
    return str(row["key"])


def take(rows: dict[str, dict[str, Any]], line: str) -> None:
    said = json.loads(line)
    if said["what"] == "closed":
        del rows[said["row"]["key"]]
    else:
        assert (said["what"] == "changed") == (said["row"]["key"] in rows)
        rows[said["row"]["key"]] = said["row"]


def listens(rows: dict[str, dict[str, Any]], port: int) -> bool:
    """Whether the listener is there, with its owner."""
    return any(row["local_port"] == port and row["owners"] for row in rows.values())


def test_the_python_examples_need_nothing_but_pyzmq_and_msgpack(tmp_path: Path) -> None:
    for path in (EXAMPLES / "python").glob("*.py"):
        lines = path.read_text().splitlines()
        imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
        assert imported - set(sys.stdlib_module_names) == {"msgpack", "zmq"}
        assert os.access(path, os.X_OK)
