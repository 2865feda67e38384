"""One wait over ZeroMQ sockets and plain file descriptors."""

from __future__ import annotations

from typing import Any

import zmq


class Poller:
    """Waits until something can be read. Keys are whatever was registered: the socket or the fd itself."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def register(self, source: Any) -> None:
        """Watches `source`, a ZeroMQ socket or an fd, from now on; twice is harmless."""
        self._poller.register(source, zmq.POLLIN)

    def unregister(self, source: Any) -> None:
        """Raises: KeyError where `source` is not watched."""
        self._poller.unregister(source)

    def wait(self, timeout_s: float) -> set[Any]:
        """The sources that can be read, or have ended; empty after `timeout_s`."""
        return {source for source, _ in self._poller.poll(max(0, round(timeout_s * 1000)))}
