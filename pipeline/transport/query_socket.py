"""Questions and answers: the aggregator's front with its handler threads. The asker's end: requester.py."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import zmq

from pipeline.transport.backlog import Backlog
from pipeline.transport.endpoint import bind_ipc, unlink_ipc

Handler = Callable[[bytes], bytes]

_log = logging.getLogger(__name__)

_MAX_WAITING = 256
_MAX_WAITING_PER_PEER = 32
# Answers that libzmq keeps for a peer that does not read: each may be several MB.
_ANSWERS_KEPT_PER_PEER = 4
_RECEIVES_PER_PUMP = 256
# Requests up to this many times the limit are read and get an error answer; libzmq hangs up on larger ones.
_OVERSIZE_FACTOR = 4
# Finding the id in a refused request costs the main loop time: only where it is cheap.
_MAX_REFUSED_BYTES_READ = 64 * 1024


class _Sent(Enum):
    YES = 1
    LATER = 2
    NEVER = 3


class _Request(NamedTuple):
    envelope: list[bytes]
    body: bytes
    refusal: tuple[str, str] | None


class QueryFront:
    """Binds a ROUTER and hands requests to handler threads; each thread calls `make_handler()` once for its own.

    `refuse(request, code, message)` makes the error answer to a request that no handler sees: code `busy` (the
    backlog is full), `too_large` or `internal` (the handler raised). It gets b"" for a request too large to look at
    here. Requests come as [body] or [empty, body] frames, from DEALER and REQ; answers go back the same way.
    Counters: `garbage` (frames of another shape), `refused`, `answers_lost` (the asker had gone).
    """

    def __init__(
        self,
        ipc_path: str,
        make_handler: Callable[[], Handler],
        *,
        refuse: Callable[[bytes, str, str], bytes],
        threads: int = 4,
        max_request_bytes: int = 1 << 20,
        mode: int = 0o660,
        gid: int | None = None,
    ) -> None:
        """Raises: ConfigError, Denied, as `bind_ipc`."""
        self.garbage = self.refused = self.answers_lost = 0
        self._refuse = refuse
        self._max_request_bytes = max_request_bytes
        self._backlog: Backlog[_Request] = Backlog(_MAX_WAITING, _MAX_WAITING_PER_PEER)
        self._unsent: deque[list[bytes]] = deque()
        self._jobs: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._context = zmq.Context(io_threads=1)
        self._router = _make_router(self._context, max_request_bytes)
        self._answers = self._context.socket(zmq.PULL)
        self._answers_path = f"inproc://answers-{id(self)}"
        self._path = ipc_path
        self._bound: os.stat_result | None = None
        self._threads: list[threading.Thread] = []
        self._idle_threads = threads
        try:
            self._answers.bind(self._answers_path)
            self._bound = bind_ipc(self._router, ipc_path, mode, gid)
        except BaseException:
            self.close()
            raise
        for number in range(threads):
            thread = threading.Thread(
                target=self._serve, args=(make_handler,), name=f"query-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    @property
    def poll_sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to wait on: `pump` when any of them can be read."""
        return (self._router, self._answers)

    def pump(self) -> bool:
        """Moves what is there, in both directions, without blocking.

        Returns True when it should be called again soon (50 ms) although nothing will become readable: an asker is
        slow to read, or there was more than one call's worth. Raises: what `make_handler` raised in its thread.
        """
        if self._failure is not None:
            raise self._failure
        self._send_answers()
        more = self._receive()
        self._dispatch()
        return more or bool(self._unsent)

    def close(self) -> None:
        """Ends the threads, after the request each has at work, and removes the socket."""
        unlink_ipc(self._path, self._bound)
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._answers.close()
        self._router.close()
        self._context.term()

    def _receive(self) -> bool:
        """Takes requests in; True when it stopped before the last."""
        for _ in range(_RECEIVES_PER_PUMP):
            try:
                peer, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            # REQ puts an empty frame in front; a DEALER may.
            if not (len(frames) == 1 or (len(frames) == 2 and not frames[0])):
                self.garbage += 1
                continue
            body = frames[-1]
            refusal = None
            if len(body) > self._max_request_bytes:
                # A handler thread makes this answer: reading a large request would hold up the main loop.
                refusal = ("too_large", f"{len(body)} bytes, at most {self._max_request_bytes} are allowed")
            request = _Request([peer, *frames[:-1]], body, refusal)
            if not self._backlog.offer(peer, request):
                self._refuse_now(request)
        return True

    def _refuse_now(self, request: _Request) -> None:
        body = request.body if len(request.body) <= _MAX_REFUSED_BYTES_READ else b""
        self.refused += 1
        answer = self._refuse(body, "busy", "too many requests are waiting, ask again later")
        if self._send([*request.envelope, answer]) is not _Sent.YES:
            self.answers_lost += 1

    def _dispatch(self) -> None:
        while self._idle_threads and (taken := self._backlog.take()) is not None:
            if taken[1].refusal:
                self.refused += 1
            self._idle_threads -= 1
            self._jobs.put(taken[1])

    def _send_answers(self) -> None:
        """Sends what is ready. An answer that its asker has no room for yet waits, and keeps this asker's next
        request waiting: whoever never reads holds a few answers and no thread."""
        for _ in range(len(self._unsent)):
            self._finish(self._unsent.popleft())
        with contextlib.suppress(zmq.Again):
            while True:
                answer = self._answers.recv_multipart(zmq.NOBLOCK)
                self._idle_threads += 1
                self._finish(answer)

    def _finish(self, answer: list[bytes]) -> None:
        sent = self._send(answer)
        if sent is _Sent.LATER:
            self._unsent.append(answer)
            return
        if sent is _Sent.NEVER:
            # Nobody waits for the rest of its requests either.
            self.answers_lost += 1 + self._backlog.forget(answer[0])
        self._backlog.finish(answer[0])

    def _send(self, answer: list[bytes]) -> _Sent:
        # Reading EVENTS makes libzmq look at what its I/O thread has sent since; a send alone looks rarely, and
        # would take a peer for slow that is not.
        self._router.getsockopt(zmq.EVENTS)
        try:
            self._router.send_multipart(answer, zmq.NOBLOCK)
        except zmq.Again:
            return _Sent.LATER
        except zmq.ZMQError:
            return _Sent.NEVER  # EHOSTUNREACH: the asker has gone
        return _Sent.YES

    def _serve(self, make_handler: Callable[[], Handler]) -> None:
        """A handler thread: one request after the other until it is told to end."""
        with self._context.socket(zmq.PUSH) as answers:
            answers.setsockopt(zmq.LINGER, 0)
            answers.connect(self._answers_path)
            try:
                handler = make_handler()
            except BaseException as error:
                # Without handlers there are no answers: `pump` passes it on, in the main thread.
                self._failure = error
                return
            while (request := self._jobs.get()) is not None:
                answers.send_multipart([*request.envelope, self._answer(handler, request)])

    def _answer(self, handler: Handler, request: _Request) -> bytes:
        if request.refusal:
            return self._refuse(request.body, *request.refusal)
        try:
            return handler(request.body)
        except Exception:
            # A thread that ended here would leave the rest of the requests to fewer and fewer threads.
            _log.exception("a query handler failed")
            return self._refuse(request.body, "internal", "the aggregator failed to answer, its log says why")


def _make_router(context: zmq.Context[zmq.Socket[bytes]], max_request_bytes: int) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, max_request_bytes * _OVERSIZE_FACTOR)
    router.setsockopt(zmq.SNDHWM, _ANSWERS_KEPT_PER_PEER)
    router.setsockopt(zmq.RCVHWM, _MAX_WAITING_PER_PEER)
    # Without it a ROUTER drops what it cannot deliver and says nothing: a slow reader would miss answers.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return router
