"""The asker's end of the query socket."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import zmq

from pipeline.codec import MAX_MESSAGE_BYTES
from pipeline.errors import NoAggregator
from pipeline.transport.endpoint import check_server

# A request goes down with the aggregator that has it; its successor gets it again. Not for ever: one that hangs up
# on this very request (larger than it reads) would.
SENDS = 3
_RECONNECT_MS = 20
_RECONNECT_MAX_MS = 200


class Requester:
    """One asker; not shared between threads. Connects at the first request, and again after the aggregator's
    restart. A context manager."""

    def __init__(self, ipc_path: str, timeout_s: float = 3.0) -> None:
        self._path = ipc_path
        self.timeout_s = timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]] | None = None
        self._poller = zmq.Poller()

    def request(self, data: bytes, is_mine: Callable[[bytes], bool], patience_s: float = 0.0) -> bytes:
        """The answer to `data`. `is_mine` tells it from late answers to requests that timed out before. It may take
        `patience_s` longer than others.

        Raises: NoAggregator, at once where nothing was ever bound at the path, else after the timeout; Denied where
        we may not connect; ConfigError for a path that is too long.
        """
        check_server(self._path)
        timeout_s = self.timeout_s + patience_s
        deadline_s = time.monotonic() + timeout_s
        socket, monitor = self._connected()
        for _ in range(SENDS):
            while monitor.poll(0):
                monitor.recv_multipart()  # of a connection lost before this request
            with contextlib.suppress(zmq.Again):
                socket.send(data, zmq.NOBLOCK)
            answer = self._receive(socket, monitor, is_mine, deadline_s)
            if answer is not None:
                return answer
            if time.monotonic() >= deadline_s:
                break
        else:
            raise hung_up(self._path)
        raise no_answer(self._path, timeout_s)

    def close(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = self._sockets = None
            self._poller = zmq.Poller()

    def __enter__(self) -> Requester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(
        self,
        socket: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        is_mine: Callable[[bytes], bool],
        deadline_s: float,
    ) -> bytes | None:
        """The answer; None at the deadline, or when the connection is lost and the request with it."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = dict(self._poller.poll(max(1, round(left_s * 1000))))
            # The answer first: the aggregator may have sent it and died.
            if socket in ready:
                answer = socket.recv_multipart(zmq.NOBLOCK)[-1]
                if is_mine(answer):
                    return answer
            elif monitor in ready:
                monitor.recv_multipart(zmq.NOBLOCK)
                return None
        return None

    def _connected(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """The socket, and another that can be read when the first has lost its connection."""
        if self._sockets is None:
            self._context = zmq.Context(io_threads=1)
            socket = self._context.socket(zmq.DEALER)
            prepare_asker(socket)
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            socket.connect("ipc://" + self._path)
            self._sockets = socket, monitor
            for one in self._sockets:
                self._poller.register(one, zmq.POLLIN)
        return self._sockets


def prepare_asker(socket: zmq.Socket[Any]) -> None:
    """Options of an asker's socket."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)


def hung_up(path: str) -> NoAggregator:
    """The error of an asker whose request was lost with its connection each time."""
    return NoAggregator(
        f"the aggregator at {os.path.dirname(path)} hung up on the request {SENDS} times",
        "see what it logged; it does not read requests of several MiB",
    )


def no_answer(path: str, timeout_s: float) -> NoAggregator:
    """The error of an asker who got no answer in time."""
    return NoAggregator(
        f"no answer from the aggregator at {os.path.dirname(path)} within {timeout_s:g} s",
        "see whether `sockscope run` is alive, and what it logged",
    )
