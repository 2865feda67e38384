"""The whole pipeline by its command, on this host: starting, answering, stopping; and the one walk without it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Sockscope
from tests.live import connect_pairs, needs_root, wait_until

# A prime number of connections: no round number of anything else comes to the same sum.
CONNECTIONS = 23
# What an ordinary user lacks, taken from root: the interpreter may lie where other users cannot read it.
ORDINARY = ["setpriv", "--bounding-set=-sys_ptrace,-sys_admin,-dac_read_search"]


@contextlib.contextmanager
def pipeline(
    runtime_dir: Path, *options: str, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`sockscope run` in `runtime_dir`, its log in `log` beside it; ended by its pid if the test did not."""
    command = [
        *prefix,
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        "--runtime-dir",
        str(runtime_dir),
        *options,
    ]
    with open(log_of(runtime_dir), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def log_of(runtime_dir: Path) -> Path:
    return runtime_dir.with_name("log")


@contextlib.contextmanager
def own_connections() -> Iterator[int]:
    """CONNECTIONS connections of this very process to itself. Yields the listener's port."""
    with contextlib.ExitStack() as opened:
        sockets = connect_pairs(socket.AF_INET, "127.0.0.1", CONNECTIONS)
        for one in sockets:
            opened.enter_context(one)
        yield sockets[0].getsockname()[1]


def own_netns() -> str:
    return str(os.stat("/proc/self/ns/net").st_ino)


def test_run_answers_with_this_process_as_owner_and_leaves_nothing(
    sockscope: Sockscope, tmp_path: Path
) -> None:
    runtime_dir = tmp_path / "run"
    with own_connections() as port, pipeline(runtime_dir, "--netns", own_netns()) as process:
        wait_until(lambda: sockscope("status").returncode == 0, timeout_s=30)
        assert (runtime_dir.stat().st_mode & 0o777, (runtime_dir / "query.ipc").stat().st_mode & 0o777) == (
            0o750,
            0o660,
        )
        mine = ("--port", str(port), "--established", "--pid", str(os.getpid()))
        wait_until(lambda: sockscope("connections", "--count", *mine).stdout == b"46\n", timeout_s=30)
        rows = json.loads(sockscope("connections", "--json", *mine).stdout)
        assert {row["owners"][0]["pid"] for row in rows} == {os.getpid()}
        segments = Path(os.readlink(runtime_dir / "segments"))
        assert segments.parent == Path("/dev/shm")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert {path.name for path in runtime_dir.iterdir()} <= {"lock"}
    assert not segments.exists()
    merged = [line for line in log_of(runtime_dir).read_text().splitlines() if "merged" in line]
    assert len(merged) == 1, merged


def test_a_second_run_in_the_same_directory_exits_1_and_names_the_first(
    sockscope: Sockscope, tmp_path: Path
) -> None:
    with pipeline(tmp_path / "run", "--netns", own_netns()) as first:
        wait_until(lambda: sockscope("status").returncode == 0, timeout_s=30)
        second = sockscope("run", "--duration", "1")
        assert second.returncode == 1
        assert f"pid {first.pid}" in second.stderr.decode()
        assert len(second.stderr.splitlines()) == 1
        assert sockscope("status").returncode == 0


def test_run_ends_by_itself_after_its_duration(tmp_path: Path) -> None:
    with pipeline(tmp_path / "run", "--netns", own_netns(), "--duration", "1") as process:
        assert process.wait(timeout=60) == 0


def test_run_that_is_stopped_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    runtime_dir = tmp_path / "run"
    with pipeline(runtime_dir, "--netns", own_netns()) as process:
        wait_until((runtime_dir / "lock").exists, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert [path.name for path in runtime_dir.iterdir()] == ["lock"]
    assert "Traceback" not in log_of(runtime_dir).read_text()


def test_a_runtime_dir_that_cannot_be_made_exits_1_with_one_sentence(
    sockscope: Sockscope, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    completed = sockscope("run", "--runtime-dir", str(tmp_path / "file" / "run"), "--duration", "1")
    assert completed.returncode == 1
    assert str(tmp_path / "file" / "run") in completed.stderr.decode()
    assert len(completed.stderr.splitlines()) == 1


@needs_root
def test_an_ordinary_user_gets_own_processes_a_sentence_and_exit_0(
    sockscope: Sockscope, tmp_path: Path
) -> None:
    runtime_dir = tmp_path / "run"
    with pipeline(runtime_dir, "--netns", own_netns(), prefix=tuple(ORDINARY)) as process:
        wait_until(lambda: sockscope("status").returncode == 0, timeout_s=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert log_of(runtime_dir).read_text().count("CAP_SYS_PTRACE") == 1


@needs_root
@pytest.mark.parametrize("verb", [["run", "--duration", "1"], ["snapshot"]])
def test_strict_makes_missing_rights_exit_4(tmp_path: Path, verb: list[str]) -> None:
    command = [*ORDINARY, sys.executable, "-m", "pipeline.cli", *verb, "--strict", "--netns", own_netns()]
    env = {"SOCKSCOPE_RUNTIME_DIR": str(tmp_path / "run"), "PATH": os.environ["PATH"]}
    completed = subprocess.run(command, capture_output=True, env=env, timeout=60)
    assert completed.returncode == 4
    assert "CAP_SYS_PTRACE" in completed.stderr.decode()
    assert len(completed.stderr.splitlines()) == 1


def test_snapshot_finds_this_process_s_connections_without_a_pipeline(sockscope: Sockscope) -> None:
    with own_connections() as port:
        options = ("--netns", own_netns(), "--port", str(port), "--pid", str(os.getpid()))
        rows = json.loads(sockscope("snapshot", "--json", *options).stdout)
        table = sockscope("snapshot", "--listening", *options).stdout.decode().splitlines()
        count = sockscope("snapshot", "--established", "--count", *options).stdout
    assert [row["state"] for row in rows].count("ESTABLISHED") == 2 * CONNECTIONS
    assert table[0].split() == ["NETNS", "PROTO", "STATE", "LOCAL", "REMOTE", "DIRECTION", "OWNERS"]
    assert len(table) == 2
    assert table[1].split()[2:4] == ["LISTEN", f"127.0.0.1:{port}"]
    assert count == b"46\n"


def test_snapshot_refuses_an_unknown_field_and_exits_3_without_match_if_asked(sockscope: Sockscope) -> None:
    assert sockscope("snapshot", "--fields", "colour").returncode == 2
    assert sockscope("snapshot", "--exit-code", "--port", "1", "--cookie", "1").returncode == 3


@pytest.mark.parametrize("verb", [["run", "--duration", "1"], ["snapshot"]])
def test_a_proc_root_without_processes_exits_2(sockscope: Sockscope, tmp_path: Path, verb: list[str]) -> None:
    completed = sockscope(*verb, "--proc-root", str(tmp_path))
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert f"agent.proc_root = '{tmp_path}' shows no process" in completed.stderr.decode()


@needs_root
def test_snapshot_reads_the_proc_root_that_it_is_told(tmp_path: Path) -> None:
    """As in a container: a pid namespace and a /proc of its own, and the host's proc file system elsewhere."""
    with own_connections() as port:
        script = f"""
            mkdir {tmp_path}/proc
            mount --rbind /proc {tmp_path}/proc
            exec unshare --pid --fork --mount-proc \\
                {sys.executable} -m pipeline.cli snapshot --proc-root {tmp_path}/proc --listening --count \
                --netns {own_netns()} --port {port} --pid {os.getpid()}
        """
        command = ["unshare", "--mount", "sh", "-euc", script]
        completed = subprocess.run(command, capture_output=True, timeout=60)
    assert (completed.returncode, completed.stdout) == (0, b"1\n"), completed.stderr
