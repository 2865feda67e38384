"""The thread that serves a query front: askers do not wait for what the main loop is at."""

from __future__ import annotations

import os
import threading

import zmq

from pipeline.transport.query_socket import QueryFront

# How soon a front that has more to do is asked again, and one that has not: parked requests come due.
_AGAIN_MS = 50
_IDLE_MS = 1000


class FrontThread:
    """Pumps `front`, which no other thread may touch but for its counters, until `close`."""

    def __init__(self, front: QueryFront) -> None:
        self.front = front
        # What ended the thread before its time; the main loop raises it.
        self.failure: BaseException | None = None
        self._stopping = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="query-front", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """The state has changed: parked requests are asked again."""
        if self.front.parked:
            self.front.wake()
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Ends the thread, and the front with it."""
        self._stopping = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self.front.close()
        os.close(self._bell)

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            for source in (*self.front.poll_sockets, self._bell):
                poller.register(source, zmq.POLLIN)
            again = False
            while not self._stopping:
                ready = dict(poller.poll(_AGAIN_MS if again else _IDLE_MS))
                if self._bell in ready:
                    os.eventfd_read(self._bell)
                again = self.front.pump()
        except BaseException as error:
            self.failure = error
