"""Reading for the feed that takes long: whole namespaces and all edges, in a thread beside the aggregator's loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from pipeline.errors import SockscopeError
from pipeline.store import Reader

_log = logging.getLogger(__name__)

Job = Callable[[Reader], Any]


class FeedJobs:
    """One thread with its own reader, started with the first order. Of each name at most one job is under way."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        self._make_reader = make_reader
        self._orders: queue.SimpleQueue[tuple[str, Job] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._under_way: set[str] = set()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is to be collected, sooner or later."""
        return bool(self._under_way)

    def is_under_way(self, name: str) -> bool:
        return name in self._under_way

    def order(self, name: str, job: Job) -> None:
        """Has `job` done; its result comes from `collect`. Not while one of the same name is under way."""
        assert name not in self._under_way
        self._under_way.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
            self._thread.start()
        self._orders.put((name, job))

    def collect(self) -> list[tuple[str, Any]]:
        """(name, result) of what is done by now; the result None of a job that failed, which is logged."""
        done = []
        while not self._done.empty():
            name, result = self._done.get()
            self._under_way.discard(name)
            done.append((name, result))
        return done

    def close(self) -> None:
        """Ends the thread after the job that it is at."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()

    def _work(self) -> None:
        reader = self._make_reader()
        while (order := self._orders.get()) is not None:
            name, job = order
            result = None
            try:
                result = job(reader)
            except SockscopeError as error:
                _log.warning("%s could not be made for the feed: %s", name, error)
            except Exception:
                # A fault in one must not end the thread that makes all others.
                _log.exception("%s could not be made for the feed", name)
            self._done.put((name, result))
        reader.close()
