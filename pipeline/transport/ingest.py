"""Snapshots on their way from the workers to the aggregator. A lost one costs nothing: the segment is the truth."""

from __future__ import annotations

import os

import zmq
from zmq import backend

from pipeline.codec import MAX_MESSAGE_BYTES
from pipeline.transport.endpoint import bind_ipc, check_path, unlink_ipc

# Messages, on each side of each worker's pipe. A worker ahead of the aggregator by more than that loses the newest,
# and the aggregator reads its segment instead: cheaper than memory for a long queue of old news.
_HIGH_WATER_MARK = 16
# Workers that look every 100 ms for an absent aggregator cost 7.7 % of a core for 200 of them.
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 5_000
_INGEST_MODE = 0o600

_PUSH, _NOBLOCK = int(zmq.PUSH), int(zmq.NOBLOCK)
_SNDHWM, _LINGER, _EVENTS = int(zmq.SNDHWM), int(zmq.LINGER), int(zmq.EVENTS)
_RECONNECT_IVL, _RECONNECT_IVL_MAX = int(zmq.RECONNECT_IVL), int(zmq.RECONNECT_IVL_MAX)


class Pusher:
    """A worker's end. Never blocks, and works the same while there is no aggregator."""

    def __init__(self, ipc_path: str) -> None:
        """Raises: ConfigError for a path that is too long."""
        check_path(ipc_path)
        # The classes below zmq.Context and zmq.Socket, with the options' numbers: what the others run through is
        # copied into every forked worker, 0.25 MB of the three that one may have.
        self._context = backend.Context(io_threads=1)
        self._socket = backend.Socket(self._context, _PUSH)
        self._socket.set(_SNDHWM, _HIGH_WATER_MARK)
        self._socket.set(_LINGER, 0)
        self._socket.set(_RECONNECT_IVL, _RECONNECT_MS)
        self._socket.set(_RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        self._socket.connect("ipc://" + ipc_path)

    def send(self, payload: bytes) -> bool:
        """Whether the message was taken; False: dropped, count it."""
        # Reading EVENTS makes libzmq look at what its I/O thread has sent since; a send alone looks only now and
        # then, and a worker with several namespaces would lose messages that there is room for.
        self._socket.get(_EVENTS)
        try:
            self._socket.send(payload, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Drops what is still on its way."""
        self._socket.close()
        self._context.term()


class Puller:
    """The aggregator's end: one for all workers. `garbage`: messages that were not one frame."""

    def __init__(self, ipc_path: str) -> None:
        """Raises: ConfigError, Denied, as `bind_ipc`."""
        self.garbage = 0
        self._context = zmq.Context(io_threads=1)
        self.socket = self._context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._path = ipc_path
        self._bound: os.stat_result | None = None
        try:
            self._bound = bind_ipc(self.socket, ipc_path, _INGEST_MODE)
        except BaseException:
            self.close()
            raise

    def drain(self, max_messages: int) -> list[bytes]:
        """What has arrived, oldest first for each worker, at most `max_messages`; empty where nothing has."""
        messages: list[bytes] = []
        try:
            while len(messages) < max_messages:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                if len(frames) == 1:
                    messages.append(frames[0])
                else:
                    self.garbage += 1
        except zmq.Again:
            pass
        return messages

    def close(self) -> None:
        """Removes the path as well, unless a successor has it."""
        unlink_ipc(self._path, self._bound)
        self.socket.close()
        self._context.term()
