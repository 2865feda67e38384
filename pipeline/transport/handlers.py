"""Threads that answer requests, so that the main loop never does."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq

from pipeline.model.deferred import Heavy, Later

# From a request to its answer, or to when or where it is answered.
Handler = Callable[[bytes], bytes | Later | Heavy]
Refuse = Callable[[bytes, str, str], bytes]

_log = logging.getLogger(__name__)


class Request(NamedTuple):
    """`envelope`: the frames before the body, the peer's identity first. `refusal`: code and message where no handler
    is to see it. `parked`: it was put off before, and its peer has been free for others since."""

    envelope: list[bytes]
    body: bytes
    refusal: tuple[str, str] | None = None
    parked: bool = False

    @property
    def peer(self) -> bytes:
        return self.envelope[0]


class Done(NamedTuple):
    """What became of a request."""

    request: Request
    result: bytes | Later | Heavy
    pool: HandlerPool
    began_s: float


class HandlerPool:
    """Some threads, each with its own handler, that put what they have done into `done` and tell by a message to
    `notify_path` in the same context. `idle`: threads that `submit` will find free; `done` gives them back."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        notify_path: str,
        done: queue.SimpleQueue[Done],
        refuse: Refuse,
    ) -> None:
        self.idle = 0
        self.failure: BaseException | None = None
        self._context = context
        self._notify_path = notify_path
        self._done = done
        self._refuse = refuse
        self._jobs: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, make_handler: Callable[[], Handler], threads: int, name: str) -> None:
        """Each thread calls `make_handler` once; what that raises becomes `failure`."""
        for number in range(threads):
            thread = threading.Thread(
                target=self._serve, args=(make_handler,), name=f"{name}-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
            self.idle += 1

    def submit(self, request: Request) -> None:
        """Hands a request to a thread; `idle` must not be 0."""
        self.idle -= 1
        self._jobs.put(request)

    def stop(self) -> None:
        """Ends the threads, after the request each has at work."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, make_handler: Callable[[], Handler]) -> None:
        """A thread: one request after the other until it is told to end."""
        with self._context.socket(zmq.PUSH) as notices:
            notices.setsockopt(zmq.LINGER, 0)
            notices.connect(self._notify_path)
            try:
                handler = make_handler()
            except BaseException as error:
                # Without handlers there are no answers: the main loop raises it.
                self.failure = error
                return
            while (request := self._jobs.get()) is not None:
                began_s = time.monotonic()
                self._done.put(Done(request, self._result(handler, request), self, began_s))
                notices.send(b"")

    def _result(self, handler: Handler, request: Request) -> bytes | Later | Heavy:
        if request.refusal:
            return self._refuse(request.body, *request.refusal)
        try:
            return handler(request.body)
        except Exception:
            # A thread that ended here would leave the rest of the requests to fewer and fewer threads.
            _log.exception("a query handler failed")
            return self._refuse(request.body, "internal", "the aggregator failed to answer, its log says why")
