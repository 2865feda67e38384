"""Questions and answers: the aggregator's front with its handler threads. The asker's end: requester.py."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import zmq

from pipeline.model.deferred import Heavy, Later
from pipeline.transport.backlog import Backlog
from pipeline.transport.endpoint import bind_ipc, unlink_ipc
from pipeline.transport.handlers import Done, Handler, HandlerPool, Refuse, Request
from pipeline.transport.parking import Parking

__all__ = ["Handler", "QueryFront"]

_MAX_WAITING = 256
_MAX_WAITING_PER_PEER = 32
_MAX_PARKED = 256
_MAX_HEAVY_WAITING = 32
# Who parks a request for less than this is answered in time by a caller that comes every 50 ms.
_NEAR_S = 1.0
# Answers that libzmq keeps for a peer that does not read: each may be several MB.
_ANSWERS_KEPT_PER_PEER = 4
_RECEIVES_PER_PUMP = 256
# A request that is answered on the spot names a row or two.
_MAX_QUICK_BYTES = 2048
# Requests up to this many times the limit are read and get an error answer; libzmq hangs up on larger ones.
_OVERSIZE_FACTOR = 4
# Finding the id in a refused request costs the main loop time: only where it is cheap.
_MAX_REFUSED_BYTES_READ = 64 * 1024


class _Sent(Enum):
    YES = 1
    LATER = 2
    NEVER = 3


class _Answer(NamedTuple):
    """`parked`: the asker's next request does not wait for this one."""

    frames: list[bytes]
    parked: bool


class QueryFront:
    """Binds a ROUTER and hands requests to handler threads; each thread calls `make_handler()` once for its own.

    `refuse(request, code, message)` makes the error answer to a request that no handler sees: code `busy` (the
    backlog is full), `too_large` or `internal` (the handler raised). It gets b"" for a request too large to look at
    here. A handler may put off its answer: `Later` parks the request without a thread, until `wake` or its end, and
    leaves its peer free to ask; `Heavy` hands it to `heavy_threads` threads of their own, whose handlers
    `make_heavy_handler()` makes.

    `quick`: asked first, by `pump` itself; None sends the request to a handler. The way to a thread and back takes
    longer than a lookup.

    Requests come as [body] or [empty, body] frames, from DEALER and REQ; answers go back the same way.
    Counters: `garbage` (frames of another shape), `refused`, `answers_lost` (the asker had gone).
    """

    def __init__(
        self,
        ipc_path: str,
        make_handler: Callable[[], Handler],
        *,
        refuse: Refuse,
        threads: int = 4,
        quick: Callable[[bytes], bytes | None] | None = None,
        make_heavy_handler: Callable[[], Handler] | None = None,
        heavy_threads: int = 2,
        max_request_bytes: int = 1 << 20,
        mode: int = 0o660,
        gid: int | None = None,
    ) -> None:
        """Raises: ConfigError, Denied, as `bind_ipc`."""
        self.garbage = self.refused = self.answers_lost = 0
        self._refuse = refuse
        self._quick = quick
        self._max_request_bytes = max_request_bytes
        self._backlog: Backlog[Request] = Backlog(_MAX_WAITING, _MAX_WAITING_PER_PEER)
        self._parking: Parking[Request] = Parking(_MAX_PARKED)
        self._again: deque[Request] = deque()
        self._new_is_next = False
        self._heavy_waiting: deque[Request] = deque()
        self._unsent: deque[_Answer] = deque()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._context = zmq.Context(io_threads=1)
        self._router = _make_router(self._context, max_request_bytes)
        self._notices = self._context.socket(zmq.PULL)
        notices_path = f"inproc://done-{id(self)}"
        self._pool = HandlerPool(self._context, notices_path, self._done, refuse)
        self._heavy_pool = HandlerPool(self._context, notices_path, self._done, refuse)
        self._path = ipc_path
        self._bound: os.stat_result | None = None
        try:
            self._notices.bind(notices_path)
            self._bound = bind_ipc(self._router, ipc_path, mode, gid)
        except BaseException:
            self.close()
            raise
        self._pool.start(make_handler, threads, "query")
        if make_heavy_handler is not None:
            self._heavy_pool.start(make_heavy_handler, heavy_threads, "heavy-query")

    @property
    def poll_sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to wait on: `pump` when any of them can be read."""
        return (self._router, self._notices)

    @property
    def parked(self) -> int:
        """Requests that wait for the state to change."""
        return len(self._parking) + len(self._again)

    def wake(self) -> None:
        """The state has changed: parked requests are asked again by one of the next pumps."""
        self._parking.wake(time.monotonic())

    def pump(self) -> bool:
        """Moves what is there, in both directions, without blocking.

        Returns True when it should be called again soon (50 ms) although nothing will become readable: an asker is
        slow to read, or there was more than one call's worth. Raises: what `make_handler` raised in its thread.
        """
        for pool in (self._pool, self._heavy_pool):
            if pool.failure is not None:
                raise pool.failure
        self._send_answers()
        more = self._receive()
        now_s = time.monotonic()
        self._again.extend(self._parking.leave(now_s))
        self._dispatch()
        return more or bool(self._unsent) or self._parking.is_near(now_s, _NEAR_S)

    def close(self) -> None:
        """Ends the threads, after the request each has at work, and removes the socket."""
        unlink_ipc(self._path, self._bound)
        self._pool.stop()
        self._heavy_pool.stop()
        self._notices.close()
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
            request = Request([peer, *frames[:-1]], body, refusal)
            if self._answer_now(request):
                continue
            if not self._backlog.offer(peer, request):
                self._refuse_now(request)
        return True

    def _answer_now(self, request: Request) -> bool:
        """Whether the request was one to answer on the spot, and its asker had room for the answer: one that has not
        waits like others. Not before the answers to what the peer asked earlier."""
        if self._quick is None or len(request.body) > _MAX_QUICK_BYTES or self._backlog.has(request.peer):
            return False
        answer = self._quick(request.body)
        if answer is None:
            return False
        sent = self._send([*request.envelope, answer])
        if sent is _Sent.NEVER:
            self.answers_lost += 1
        return sent is not _Sent.LATER

    def _refuse_now(self, request: Request) -> None:
        if self._send([*request.envelope, self._busy(request.body)]) is not _Sent.YES:
            self.answers_lost += 1

    def _busy(self, body: bytes) -> bytes:
        self.refused += 1
        body = body if len(body) <= _MAX_REFUSED_BYTES_READ else b""
        return self._refuse(body, "busy", "too many requests are waiting, ask again later")

    def _dispatch(self) -> None:
        while self._pool.idle and (request := self._next()) is not None:
            if request.refusal:
                self.refused += 1
            self._pool.submit(request)
        while self._heavy_pool.idle and self._heavy_waiting:
            self._heavy_pool.submit(self._heavy_waiting.popleft())

    def _next(self) -> Request | None:
        """New requests and those that were parked in turn, so that neither holds up the other."""
        self._new_is_next = not self._new_is_next
        taken = self._backlog.take() if self._new_is_next or not self._again else None
        if taken is not None:
            return taken[1]
        return self._again.popleft() if self._again else None

    def _send_answers(self) -> None:
        """Sends what is ready. An answer that its asker has no room for yet waits, and keeps this asker's next
        request waiting: whoever never reads holds a few answers and no thread."""
        for _ in range(len(self._unsent)):
            self._finish(self._unsent.popleft())
        with contextlib.suppress(zmq.Again):
            while True:
                self._notices.recv(zmq.NOBLOCK)
                self._settle(self._done.get())

    def _settle(self, done: Done) -> None:
        done.pool.idle += 1
        request, result, _, began_s = done
        if isinstance(result, Later):
            again = request._replace(body=result.request, parked=True)
            if self._parking.offer(again, result.due_s, began_s):
                if not request.parked:
                    self._backlog.finish(request.peer)
                return
            result = self._busy(request.body)
        elif isinstance(result, Heavy):
            if len(self._heavy_waiting) < _MAX_HEAVY_WAITING:
                self._heavy_waiting.append(request._replace(body=result.request))
                return
            result = self._busy(request.body)
        self._finish(_Answer([*request.envelope, result], request.parked))

    def _finish(self, answer: _Answer) -> None:
        sent = self._send(answer.frames)
        peer = answer.frames[0]
        if sent is _Sent.LATER:
            self._unsent.append(answer)
            return
        if sent is _Sent.NEVER:
            # Nobody waits for the rest of its requests either.
            self.answers_lost += 1 + self._backlog.forget(peer)
        if not answer.parked:
            self._backlog.finish(peer)

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


def _make_router(context: zmq.Context[zmq.Socket[bytes]], max_request_bytes: int) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, max_request_bytes * _OVERSIZE_FACTOR)
    router.setsockopt(zmq.SNDHWM, _ANSWERS_KEPT_PER_PEER)
    router.setsockopt(zmq.RCVHWM, _MAX_WAITING_PER_PEER)
    # Without it a ROUTER drops what it cannot deliver and says nothing: a slow reader would miss answers.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return router
