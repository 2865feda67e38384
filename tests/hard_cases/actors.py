"""Processes that do one odd thing each, say what they did, and end with their input."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.e2e.host import NamedNetns

# What the scripts share: system calls that Python 3.11 lacks, a listener, and the other end of stdin.
PRELUDE = """
import ctypes, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    assert libc.unshare(flags) == 0, os.strerror(ctypes.get_errno())
def enter(path):
    fd = os.open(path, os.O_RDONLY)
    assert libc.setns(fd, 0x40000000) == 0, os.strerror(ctypes.get_errno())
    os.close(fd)
def listen():
    return socket.create_server(("127.0.0.1", 0))
def say(*words):
    print(*words, flush=True)
def told():
    return sys.stdin.readline().strip()
CLONE_FILES, CLONE_NEWNET = 0x400, 0x40000000
"""


class Actor(NamedTuple):
    """A running script. `said`: the numbers of its first line."""

    process: subprocess.Popen[str]
    said: list[int]

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, word: str) -> list[int]:
        """Has it do the next thing; returns what it says then."""
        self.send(word)
        return self.hear()

    def send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]


@contextlib.contextmanager
def actor(netns: NamedNetns, script: str, *arguments: str) -> Iterator[Actor]:
    """Runs `script` in `netns`."""
    process = subprocess.Popen(
        ["nsenter", f"--net={netns.path}", sys.executable, "-S", "-c", PRELUDE + script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started = Actor(process, [])
        started.said.extend(started.hear())
        yield started
    finally:
        process.communicate(timeout=60)
