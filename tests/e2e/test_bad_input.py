"""Garbage on the sockets, a directory that is taken, missing rights: one sentence, and the pipeline goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from pipeline.codec import encode
from tests.e2e.conftest import Host
from tests.e2e.host import REPOSITORY, clean_environment, quick, seconds_until, sockscope
from tests.live import needs_root

pytestmark = needs_root

# Not ZMTP at all; its greeting and then nonsense; its greeting cut short; a frame that claims to be 2^63 bytes long.
GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(16) + bytes(32)
RAW = {
    "text": b"GET / HTTP/1.1\r\nHost: sockscope\r\n\r\n",
    "zeros": bytes(100_000),
    "noise": bytes(range(256)) * 100,
    "a greeting cut short": GREETING[:20],
    "a greeting and noise": GREETING + bytes(range(256)) * 10,
    "a huge frame": GREETING + b"\2\x80\0\0\0\0\0\0\0" + b"x" * 100,
    "nothing": b"",
}
# What is valid ZMTP and no message of ours.
FRAMES: dict[str, list[bytes]] = {
    "no msgpack": [b"\xc1\xff garbage"],
    "a number": [encode(7)],
    "an empty map": [encode({})],
    "an empty frame": [b""],
    "several frames": [b"", b"one", b"two", encode({"op": "status"})],
    "another version": [encode({"v": 999})],
    "a snapshot of wrong types": [encode({"v": 1, "role": 3, "netns": "x"})],
    "deep nesting": [b"\x91" * 100_000 + b"\xc0"],
}


def run(*arguments: str, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and stderr of one command."""
    done = subprocess.run(
        [*prefix, *sockscope(*arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=clean_environment() | (env or {}),
        timeout=60,
    )
    return done.returncode, done.stderr


def processes(host: Host) -> set[int]:
    return {one["pid"] for one in host.running.status()["workers"]}


@pytest.mark.parametrize("name", ["query.ipc", "ingest.ipc"])
@pytest.mark.parametrize("kind", RAW)
def test_raw_bytes_on_a_socket_harm_nobody(host: Host, name: str, kind: str) -> None:
    before = processes(host)
    path = str(host.running.runtime_dir / name)
    for _ in range(7):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.setblocking(False)
            # It may hang up on us, or take no more.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
                raw.send(RAW[kind])
    seconds_until(host.is_complete, 30.0, "complete")
    assert processes(host) == before


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_that_no_worker_sends_are_counted_and_dropped(host: Host, kind: str) -> None:
    before = processes(host)
    counted = _losses(host, "messages_malformed") + _losses(host, "ingest_garbage")
    context = zmq.Context()
    try:
        with context.socket(zmq.PUSH) as pusher:
            pusher.connect(f"ipc://{host.running.runtime_dir / 'ingest.ipc'}")
            pusher.send_multipart(FRAMES[kind])
            seconds_until(
                lambda: _losses(host, "messages_malformed") + _losses(host, "ingest_garbage") > counted,
                5.0,
                "counted",
            )
    finally:
        context.destroy(linger=0)
    seconds_until(host.is_complete, 30.0, "complete")
    assert processes(host) == before


def _losses(host: Host, name: str) -> int:
    count: int = host.running.status()["losses"][name]
    return count


@pytest.mark.parametrize("kind", [*FRAMES, "over the limit"])
def test_requests_that_are_none_are_refused_or_dropped_and_others_answered(host: Host, kind: str) -> None:
    before = processes(host)
    frames = FRAMES.get(kind, [b"x" * (1024 * 1024 + 1)])
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(f"ipc://{host.running.runtime_dir / 'query.ipc'}")
            for _ in range(7):
                dealer.send_multipart(frames)
            seconds_until(host.is_complete, 30.0, "complete")
    finally:
        context.destroy(linger=0)
    assert processes(host) == before


def test_garbage_on_the_query_socket_is_counted(host: Host) -> None:
    def counted() -> int:
        return _losses(host, "queries_garbage") + _losses(host, "queries_refused")

    before = counted()
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(f"ipc://{host.running.runtime_dir / 'query.ipc'}")
            dealer.send_multipart([b"one", b"two", b"three", b"four"])
            dealer.send_multipart([b"", b"x" * (1024 * 1024 + 1)])
            seconds_until(lambda: counted() > before, 5.0, "counted")
    finally:
        context.destroy(linger=0)


def test_a_second_instance_in_the_same_directory_exits_1_and_names_the_first(host: Host) -> None:
    code, said = run("run", "--runtime-dir", str(host.running.runtime_dir))
    assert (code, said.count("\n")) == (1, 1)
    assert f"pid {host.running.process.pid}" in said
    seconds_until(host.is_complete, 30.0, "complete")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[walk]\nfd_blok = 3\n", "walk.fd_block"),
        ("[wlak]\nfd_block = 3\n", "walk"),
        ("[walk]\nfd_block = 0\n", "walk.fd_block"),
        ("[walk\n", "TOML"),
    ],
)
def test_a_configuration_that_cannot_be_used_exits_2_and_names_what_is_meant(
    tmp_path: Path, content: str, named: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(content)
    code, said = run("run", "--config", str(config), "--runtime-dir", str(tmp_path / "run"))
    assert (code, "Traceback" in said) == (2, False)
    assert named in said
    assert str(config) in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def nobody(public_dir: Path) -> tuple[str, ...]:
    """The command that runs another as an ordinary user who owns `public_dir`. Where the interpreter lies in a
    folder that only root may enter, it is root by name and without capabilities instead."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    os.chown(public_dir, 65534, 65534)
    if subprocess.run([*user, *sockscope("--version")], cwd=REPOSITORY, capture_output=True).returncode == 0:
        return user
    os.chown(public_dir, 0, 0)
    return ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_a_directory_that_is_not_writable_exits_4_with_one_sentence(nobody: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="sockscope-e2e-") as name:
        os.chmod(name, 0o555)
        for runtime_dir in (name, f"{name}/run"):
            code, said = run("run", "--runtime-dir", runtime_dir, prefix=nobody)
            assert (code, said.count("\n")) == (4, 1), said
            assert runtime_dir in said
        assert os.listdir(name) == []


def test_an_ordinary_user_runs_it_on_own_processes_and_is_told_what_is_missing(
    nobody: tuple[str, ...], public_dir: Path
) -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    config = public_dir / "config.toml"
    config.write_text(quick(Path("/nowhere"), str(own)))
    with open(public_dir / "log", "wb") as log:
        process = subprocess.Popen(
            [*nobody, *sockscope("run", "--config", str(config), "--runtime-dir", str(public_dir / "run"))],
            stderr=log,
            stdout=log,
            cwd=REPOSITORY,
            env=clean_environment(),
        )
    mine = subprocess.Popen([*nobody, "cat"], stdin=subprocess.PIPE)
    try:
        seconds_until(lambda: "ready" in (public_dir / "log").read_text(), 30.0, "ready")
        assert _owners(nobody, public_dir / "run", own) is not None
    finally:
        mine.communicate(timeout=60)
        process.terminate()
        assert process.wait(timeout=60) == 0
    log_text = (public_dir / "log").read_text()
    assert "Traceback" not in log_text
    assert log_text.count("CAP_SYS_PTRACE") == 1
    assert list((public_dir / "run").iterdir()) == [public_dir / "run/lock"]


def _owners(prefix: tuple[str, ...], runtime_dir: Path, netns: int) -> str | None:
    done = subprocess.run(
        [
            *prefix,
            *sockscope("connections", "--runtime-dir", str(runtime_dir), "--netns", str(netns), "--json"),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=clean_environment(),
        timeout=60,
    )
    return done.stdout if done.returncode == 0 else None


def test_an_ordinary_user_s_snapshot_says_what_is_missing_and_exits_0(nobody: tuple[str, ...]) -> None:
    code, said = run("snapshot", "--json", "--limit", "1", prefix=nobody)
    assert (code, "Traceback" in said) == (0, False)
    assert "CAP_SYS_PTRACE" in said


def test_a_full_dev_shm_at_the_start_is_one_sentence(private_shm: Callable[..., tuple[int, str]]) -> None:
    code, said = private_shm("run", "--netns", "no-such-namespace")
    assert (code, "Traceback" in said) == (1, False), said
    assert "/dev/shm" in said
