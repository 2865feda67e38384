"""Snapshots from the workers: taken, dropped and counted, never a reason to block."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest
import zmq

from pipeline.errors import ConfigError, Denied
from pipeline.transport.ingest import Puller, Pusher
from pipeline.transport.poller import Poller


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ingest.ipc")


def drain_until(puller: Puller, count: int, deadline_s: float = 60.0) -> list[bytes]:
    """`count` messages, or what came before the deadline."""
    end_s = time.monotonic() + deadline_s
    poller = Poller()
    poller.register(puller.socket)
    messages: list[bytes] = []
    while len(messages) < count and (left_s := end_s - time.monotonic()) > 0:
        if poller.wait(left_s):
            messages += puller.drain(count - len(messages))
    return messages


def test_messages_arrive_whole_and_in_order(path: str) -> None:
    puller, pusher = Puller(path), Pusher(path)
    sent = [bytes([number]) * (10 ** (number % 7)) for number in range(10)]
    assert [pusher.send(message) for message in sent] == [True] * 10
    assert drain_until(puller, 10) == sent
    assert puller.drain(5) == []
    pusher.close()
    puller.close()


def test_message_sent_before_anybody_binds_arrives(path: str) -> None:
    pusher = Pusher(path)
    assert pusher.send(b"early")
    puller = Puller(path)
    assert drain_until(puller, 1) == [b"early"]
    pusher.close()
    puller.close()


def test_sender_without_receiver_drops_instead_of_blocking(path: str) -> None:
    pusher = Pusher(path)
    results = [pusher.send(b"x") for _ in range(100)]
    assert results == [True] * 16 + [False] * 84
    pusher.close()


def test_sender_with_a_prompt_receiver_drops_nothing(path: str) -> None:
    puller, pusher = Puller(path), Pusher(path)
    for number in range(1000):
        assert pusher.send(b"%d" % number)
        assert drain_until(puller, 1) == [b"%d" % number]
    pusher.close()
    puller.close()


def test_drain_takes_no_more_than_asked(path: str) -> None:
    puller, pusher = Puller(path), Pusher(path)
    for number in range(5):
        pusher.send(bytes([number]))
    assert drain_until(puller, 1) == [b"\0"]
    assert drain_until(puller, 4) == [b"\1", b"\2", b"\3", b"\4"]
    pusher.close()
    puller.close()


def test_only_the_owner_may_connect(path: str) -> None:
    umask = os.umask(0)
    try:
        puller = Puller(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    puller.close()


def test_next_receiver_takes_the_path_of_one_that_was_killed(path: str) -> None:
    ready, ready_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _puller = Puller(path)
            os.write(ready_fd, b"1")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(ready_fd)
    pusher = Pusher(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    puller = Puller(path)
    assert pusher.send(b"for the next")
    assert b"for the next" in drain_until(puller, 1)
    pusher.close()
    puller.close()


def test_messages_of_several_frames_are_counted_as_garbage(path: str) -> None:
    puller, pusher = Puller(path), Pusher(path)
    context = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    stranger.connect("ipc://" + path)
    stranger.send_multipart([b"two", b"frames"])
    stranger.send(b"one frame")
    assert drain_until(puller, 1) == [b"one frame"]
    assert puller.garbage == 1
    stranger.close(0)
    context.term()
    pusher.close()
    puller.close()


def test_path_that_is_too_long_is_a_config_error(tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 120))
    for make in (Puller, Pusher):
        with pytest.raises(ConfigError, match="the kernel allows 107"):
            make(path)


def test_directory_that_does_not_exist_or_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ingest\.ipc"):
        Puller(str(tmp_path / "missing" / "ingest.ipc"))
    with pytest.raises(Denied, match="cannot make the socket"):
        Puller("/sys/ingest.ipc")


def test_poller_tells_sockets_and_descriptors_apart(path: str) -> None:
    puller, pusher = Puller(path), Pusher(path)
    reading, writing = os.pipe()
    poller = Poller()
    poller.register(puller.socket)
    poller.register(reading)
    assert poller.wait(0) == set()
    os.write(writing, b"1")
    assert poller.wait(10) == {reading}
    assert os.read(reading, 1) == b"1"
    pusher.send(b"news")
    assert poller.wait(10) == {puller.socket}
    poller.unregister(puller.socket)
    assert poller.wait(0) == set()
    os.close(writing)
    assert poller.wait(10) == {reading}
    os.close(reading)
    pusher.close()
    puller.close()
