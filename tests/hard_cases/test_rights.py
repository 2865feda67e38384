"""Cases 21 and 22: processes that may not be read, and a pipeline that an ordinary user runs.

The oracle is ss, run by root.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import (
    REPOSITORY,
    NamedNetns,
    Pipeline,
    clean_environment,
    named_netns,
    pipeline,
    quick,
    seconds_until,
    sockscope,
)
from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root, wait_until

pytestmark = needs_root

DEADLINE_S = 60.0
NOBODY = 65534
# Of another user, and readable as any program of that user is (a changed user makes it unreadable to all but root).
OF_NOBODY = f"""
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
PR_SET_DUMPABLE = 4
assert libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
listener = listen()
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""
OF_ROOT = """
listener = listen()
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""
# It may see where processes of others are, but not list their descriptors.
NO_LISTING = ("setpriv", "--bounding-set=-dac_read_search,-dac_override")
# Not even where they are.
NO_PTRACE = ("setpriv", "--bounding-set=-sys_ptrace,-dac_read_search,-dac_override")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def row_of(running: Pipeline, inode: int) -> dict[str, Any] | None:
    rows = running.connections(inode=inode)
    return rows[0] if rows else None


def is_owned(running: Pipeline, inode: int, pid: int) -> bool:
    row = row_of(running, inode)
    return row is not None and [owner["pid"] for owner in row["owners"]] == [pid]


def explanation_of(running: Pipeline, inode: int) -> str:
    with running.client() as client:
        (row,) = client.ask("explain", where={"inode": inode}).rows
    return str(row["explanation"])


def test_a_process_whose_descriptors_may_not_be_listed_is_counted_and_its_sockets_are_shown(
    watched: Watched, tmp_path: Path
) -> None:
    """Case 21, where the namespace of the process is known."""
    with actor(watched.other, OF_NOBODY) as hidden, actor(watched.other, OF_ROOT) as open_to_all:
        config = quick(watched.mounts, watched.other.name)
        with pipeline(tmp_path, config=config, prefix=NO_LISTING) as running:
            seconds_until(running.is_ready, 30.0, "ready")
            wait_until(lambda: is_owned(running, open_to_all.said[1], open_to_all.pid), DEADLINE_S)
            wait_until(lambda: row_of(running, hidden.said[1]) is not None, DEADLINE_S)
            row = row_of(running, hidden.said[1])
            assert row is not None
            assert (row["owner_role"], row["owners"], row["uid"]) == (None, [], NOBODY)
            assert f"pid={hidden.pid}," in watched.other.run("ss", "-Hltnp")

            def is_told() -> bool:
                namespace = running.namespace(watched.other.inode)
                assert namespace is not None
                return (namespace["denied"], namespace["partial"], namespace["stale"]) == (1, True, False)

            wait_until(is_told)
            assert running.status()["namespaces"]["denied"] == 1
            assert explanation_of(running, hidden.said[1]) == (
                "The descriptors of 1 process of its namespace may not be read; it may hold it."
            )
            with running.client() as client:
                answer = client.connections(inode=hidden.said[1])
            assert [(one["denied"], one["partial"]) for one in answer.namespaces] == [(1, True)]
    assert "Traceback" not in running.log


def test_processes_of_which_not_even_the_namespace_may_be_known_are_counted_in_every_answer(
    watched: Watched, tmp_path: Path
) -> None:
    """Case 21, where nothing of the process is known. The host has more such processes, which come and go."""
    config = quick(watched.mounts, watched.other.name)
    with (
        actor(watched.other, OF_NOBODY) as hidden,
        pipeline(tmp_path, config=config, prefix=NO_PTRACE) as running,
    ):
        seconds_until(running.is_ready, 30.0, "ready")
        wait_until(lambda: row_of(running, hidden.said[1]) is not None, DEADLINE_S)
        assert running.status()["losses"]["processes_denied"] > 0
        with running.client() as client:
            answer = client.connections(inode=hidden.said[1])
        assert answer.denied > 0
        assert [(row["owner_role"], row["owners"], row["uid"]) for row in answer] == [(None, [], NOBODY)]
        explanation = explanation_of(running, hidden.said[1])
        assert re.fullmatch(
            r"No process that may be read was found to hold it;"
            r" elsewhere the descriptors of \d+ process(es)? may not be\.",
            explanation,
        ), explanation


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """Those of tmp_path are root's alone."""
    with tempfile.TemporaryDirectory(prefix="sockscope-hard-") as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


@pytest.fixture
def netns(watched: Watched, folder_of_nobody: Path) -> Iterator[NamedNetns]:
    mounts = folder_of_nobody / "netns"
    mounts.mkdir(mode=0o755)
    with named_netns(mounts, "hard-nobody") as made:
        yield made


def test_an_ordinary_user_gets_own_processes_and_one_sentence(
    netns: NamedNetns, folder_of_nobody: Path
) -> None:
    """Case 22."""
    config = quick(netns.path.parent, str(netns.inode))
    with actor(netns, OF_NOBODY) as own, actor(netns, OF_ROOT) as of_root:
        with pipeline(folder_of_nobody, config=config, prefix=AS_NOBODY) as running:
            seconds_until(running.is_ready, 30.0, "ready")
            wait_until(lambda: is_owned(running, own.said[1], own.pid), DEADLINE_S)
            # What the text of the tables tells, and no more: root's socket is listed.
            row = row_of(running, of_root.said[1])
            assert row is not None and (row["owners"], row["uid"]) == ([], 0)
            namespace = running.namespace(netns.inode)
            assert namespace is not None and namespace["source"] == "proc"
            with running.client() as client:
                assert client.connections(inode=of_root.said[1]).denied > 0
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(timeout=60) == 0
        said = [line for line in running.log.splitlines() if "CAP_SYS_PTRACE" in line]
        assert len(said) == 1 and f"only processes of user {NOBODY} can be read in full" in said[0]
        assert "Traceback" not in running.log


def test_an_ordinary_user_s_snapshot_has_own_processes_one_sentence_and_its_exit_codes(
    netns: NamedNetns,
) -> None:
    """Case 22."""

    def snapshot(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*AS_NOBODY, *sockscope("snapshot", "--netns", str(netns.inode), "--json", *options)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, env=clean_environment(), timeout=60
        )

    with actor(netns, OF_NOBODY) as own, actor(netns, OF_ROOT) as of_root:
        found = snapshot()
        assert found.returncode == 0, found.stderr
        owners = {row["inode"]: [one["pid"] for one in row["owners"]] for row in json.loads(found.stdout)}
        assert (owners[own.said[1]], owners[of_root.said[1]]) == ([own.pid], [])
        (sentence,) = found.stderr.splitlines()
        assert "may not be read (missing CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN)" in sentence
        assert snapshot("--exit-code", "--port", "1").returncode == 3
        refused = snapshot("--strict")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert len(refused.stderr.splitlines()) == 1
