"""Connections that live 0.02 to 2 s, over loopback, by IPv4 and IPv6 in turn.

Run as `python -m scripts.benchmarks.short_lived`. `serve` prints `READY {"ports": [v4, v6]}` and answers each byte
until its input ends. `connect HOW RATE COUNT V4 V6` opens COUNT connections, RATE a second, HOW: `processes`, each by a
process of its own, or `one`, all by itself; it prints {"took_s": …, "ends": [[family, local port, pid], …]}: how long
opening them took, and the client ends. Lives are the same in each run.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator

_LIFE_S = (0.02, 2.0)
_ADDRESSES = ((4, socket.AF_INET, "127.0.0.1"), (6, socket.AF_INET6, "::1"))
_BACKLOG = 4096
# Closing with a reset leaves no TIME_WAIT behind: at 5,000 a second the ports would be used up.
_RESET = b"\1\0\0\0\0\0\0\0"
_POLL_S = 0.001


def serve() -> None:
    """Answers a byte with a byte, until the client closes."""
    listeners = [
        socket.create_server((address, 0), family=family, backlog=_BACKLOG)
        for _, family, address in _ADDRESSES
    ]
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("READY", json.dumps({"ports": [one.getsockname()[1] for one in listeners]}), flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj in listeners:
                    _accept_all(key.fileobj, selector)
                else:
                    _answer(key.fileobj, selector)


def _accept_all(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            selector.register(accepted, selectors.EVENT_READ)


def _answer(one: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        asked = one.recv(1)
    except ConnectionResetError:
        asked = b""
    if asked:
        one.send(asked)
    else:
        selector.unregister(one)
        one.close()


def connect(number: int, ports: list[int]) -> tuple[list[int], socket.socket]:
    """One connection over which a byte went both ways: [family, local port, pid], and it."""
    version, family, address = _ADDRESSES[number % 2]
    one = socket.socket(family)
    one.connect((address, ports[number % 2]))
    one.send(b"x")
    return [version, one.getsockname()[1], os.getpid()], one


def close(one: socket.socket) -> None:
    """After the answer, with a reset."""
    one.recv(1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()


def by_one(rate: float, lives_s: list[float], ports: list[int]) -> tuple[float, list[list[int]]]:
    """All connections by this process: (seconds that opening them took, the client ends)."""
    began_s = time.monotonic()
    ends: list[list[int]] = []
    due: list[tuple[float, int, socket.socket]] = []
    for number in _paced(rate, len(lives_s)):
        while due and due[0][0] <= time.monotonic():
            close(heapq.heappop(due)[2])
        end, one = connect(number, ports)
        ends.append(end)
        heapq.heappush(due, (time.monotonic() + lives_s[number], number, one))
    took_s = time.monotonic() - began_s
    while due:
        time.sleep(max(0.0, due[0][0] - time.monotonic()))
        close(heapq.heappop(due)[2])
    return took_s, ends


def by_processes(rate: float, lives_s: list[float], ports: list[int]) -> tuple[float, list[list[int]]]:
    """Each connection by a process of its own: (seconds that opening them took, the client ends)."""
    began_s = time.monotonic()
    reading, writing = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they leave no zombies
    for number in _paced(rate, len(lives_s)):
        if os.fork() == 0:
            end, one = connect(number, ports)
            time.sleep(lives_s[number])
            close(one)
            os.write(writing, (json.dumps(end) + "\n").encode())
            os._exit(0)
    took_s = time.monotonic() - began_s
    os.close(writing)
    with os.fdopen(reading) as told:
        return took_s, [json.loads(line) for line in told]


def _paced(rate: float, count: int) -> Iterator[int]:
    """The numbers from 0 on, each when it is due."""
    began_s = time.monotonic()
    for number in range(count):
        while (wait_s := began_s + number / rate - time.monotonic()) > 0:
            time.sleep(min(wait_s, _POLL_S))
        yield number


def main(arguments: list[str]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments[0] == "serve":
        serve()
        return
    how, rate, count, *ports = arguments[1:]
    drawn = random.Random(20)
    lives_s = [drawn.uniform(*_LIFE_S) for _ in range(int(count))]
    connect_all = by_processes if how == "processes" else by_one
    took_s, ends = connect_all(float(rate), lives_s, [int(port) for port in ports])
    print(json.dumps({"took_s": took_s, "ends": ends}))


if __name__ == "__main__":
    main(sys.argv[1:])
