"""A query socket that answers, for tests of those who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import zmq

from pipeline.client import QUERY_SOCKET
from pipeline.query import refuse_bytes
from pipeline.transport.query_socket import QueryFront


class Server:
    """A query front pumped by a thread, with the handlers given."""

    def __init__(self, runtime_dir: Path, handler: Callable[[], Callable[[bytes], bytes]]) -> None:
        self._front = QueryFront(
            str(runtime_dir / QUERY_SOCKET), handler, refuse=refuse_bytes, threads=2, max_request_bytes=4096
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for one in self._front.poll_sockets:
            poller.register(one, zmq.POLLIN)
        while not self._ending.is_set():
            poller.poll(20)
            self._front.pump()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._front.close()
