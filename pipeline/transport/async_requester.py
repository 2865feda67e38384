"""The asker's end of the query socket for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from pipeline.transport.endpoint import check_server
from pipeline.transport.requester import SENDS, hung_up, no_answer, prepare_asker


class AsyncRequester:
    """Any number of askers in one event loop: each request under way has a connection of its own, and leaves it to
    the next. An async context manager."""

    def __init__(self, ipc_path: str, timeout_s: float = 3.0) -> None:
        self._path = ipc_path
        self.timeout_s = timeout_s
        self._context: zmq.asyncio.Context | None = None
        self._idle: list[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]] = []

    async def request(self, data: bytes, is_mine: Callable[[bytes], bool], patience_s: float = 0.0) -> bytes:
        """As `Requester.request`; cancelling it takes the request's connection down with it."""
        check_server(self._path)
        socket, monitor = self._idle.pop() if self._idle else self._connect()
        timeout_s = self.timeout_s + patience_s
        answer = None
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._exchange(socket, monitor, data, is_mine)
        except TimeoutError:
            raise no_answer(self._path, timeout_s) from None
        finally:
            # Otherwise an answer may still come here, and it would be another request's.
            if answer is None:
                socket.disable_monitor()
                socket.close(0)
                monitor.close(0)
            else:
                self._idle.append((socket, monitor))
        return answer

    def close(self) -> None:
        """The next request connects again. Those under way fail."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
            self._idle.clear()

    async def _exchange(
        self,
        socket: zmq.asyncio.Socket,
        monitor: zmq.asyncio.Socket,
        data: bytes,
        is_mine: Callable[[bytes], bool],
    ) -> bytes:
        poller = zmq.asyncio.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        for _ in range(SENDS):
            while await monitor.poll(0):
                await monitor.recv_multipart()  # of a connection lost before this request
            await socket.send(data)
            lost = False
            while not lost:
                ready: dict[Any, int] = dict(await poller.poll())
                # The answer first: the aggregator may have sent it and died.
                if socket in ready:
                    answer: bytes = (await socket.recv_multipart())[-1]
                    if is_mine(answer):
                        return answer
                else:
                    await monitor.recv_multipart()
                    lost = True
        raise hung_up(self._path)

    def _connect(self) -> tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]:
        if self._context is None:
            self._context = zmq.asyncio.Context(io_threads=1)
        socket = self._context.socket(zmq.DEALER)
        prepare_asker(socket)
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect("ipc://" + self._path)
        return socket, monitor
