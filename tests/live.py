"""A real namespace, a child process, an oracle: what live tests start, and end."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import pytest

T = TypeVar("T")

# No wait ends earlier: other loads of the machine may take it from us for seconds, and a wait that succeeds takes no
# longer for it.
PATIENCE_S = 60.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


class LiveNetns:
    """A fresh network namespace with its loopback up, alive while its one process `pid` is: the `with` block."""

    def __enter__(self) -> LiveNetns:
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"
        self.pid = self._process.pid
        self.path = f"/proc/{self.pid}/ns/net"
        self.inode = os.stat(self.path).st_ino
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # cat ends at the end of its input.
        self._process.communicate(timeout=PATIENCE_S)

    def run(self, *command: str) -> str:
        """What `command` prints when run inside."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *command],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return done.stdout

    def ss(self, *options: str) -> set[tuple[int, int]]:
        """(inode, cookie) of each socket that `ss -Han` with `options` shows; inode 0 where it shows none."""
        pairs = set()
        for line in self.run("ss", "-HanOe", *options).splitlines():
            inode = re.search(r"\bino:(\d+)", line)
            cookie = re.search(r"\bsk:([0-9a-f]+)", line)
            assert cookie is not None, line
            pairs.add((int(inode[1]) if inode else 0, int(cookie[1], 16)))
        return pairs


def connect_pairs(family: socket.AddressFamily, address: str, count: int) -> list[socket.socket]:
    """A listener on `address` and `count` connections to it, both ends: 2 * count + 1 sockets, listener first."""
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(count)
    sockets = [listener]
    for _ in range(count):
        client = socket.socket(family)
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        sockets += [client, server]
    return sockets


def in_child(function: Callable[[], T]) -> T:
    """What `function` returns in a forked child, so that it may change its user, limits or namespaces."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as file:
                pickle.dump(function(), file)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    _, wait_status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(wait_status) == 0
    value: T = pickle.loads(data)
    return value


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Returns as soon as `condition` holds; fails the test when it does not in time, PATIENCE_S at the least."""
    deadline_s = time.monotonic() + max(timeout_s, PATIENCE_S)
    while not condition():
        assert time.monotonic() < deadline_s, "still not so"
        time.sleep(0.01)
