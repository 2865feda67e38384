"""Asking the store: read-only, one consistent state at a time, never longer than the time limit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.clock import Clock, SystemClock
from pipeline.errors import NoAggregator, Refused
from pipeline.store import database
from pipeline.store.sql import Result, select_sql

# Virtual-machine instructions between two looks at the clock, some 3 ms of work: for each look the thread needs the
# interpreter, which the others want.
_CLOCK_EVERY = 250_000


class Reader:
    """One connection for one thread. What is read within `moment()` is one state.

    Every moment is limited in time: a read transaction that is held lets the log grow without bound. With `max_steps`
    a statement is refused, with code `failed`, that takes more instructions of SQLite's machine: some 10 ns each.
    """

    def __init__(
        self, path: str, clock: Clock | None = None, time_limit_s: float = 5.0,
        shared: sqlite3.Connection | None = None, max_steps: int = 0,
    ) -> None:  # fmt: skip
        self._clock = clock or SystemClock()
        self._time_limit_s = time_limit_s
        self._deadline_s = 0.0
        self._max_steps = max_steps
        self._shared = shared is not None
        # What the answers of one commit repeat, see select.py: (epoch and seq, value).
        self.repeated: tuple[Any, Any] = (None, None)
        try:
            self._database = shared or database.open_read_only(path, self._clock)
        except sqlite3.OperationalError as error:
            raise NoAggregator(f"no store at {path}: {error}") from None

    @contextmanager
    def moment(self) -> Iterator[None]:
        """The state as of the first `rows()` inside. Raises: Refused with code `timeout` when over the limit."""
        self._deadline_s = self._clock.monotonic_s() + self._time_limit_s
        if self._shared:
            self._database.execute("PRAGMA query_only = ON")
        if self._max_steps:
            self._database.set_progress_handler(lambda: True, self._max_steps)
        else:
            self._database.set_progress_handler(self._is_late, _CLOCK_EVERY)
        try:
            self._database.execute("BEGIN")
            yield
        except sqlite3.OperationalError as error:
            if self._is_late():
                took = f"the query took longer than {self._time_limit_s:g} s"
                raise Refused(took, "timeout", "narrow it with filters or a limit") from None
            raise Refused(f"the store cannot answer: {error}", "failed") from None
        finally:
            self._database.set_progress_handler(None, 0)
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if self._shared:
                self._database.execute("PRAGMA query_only = OFF")

    def rows(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, within `moment()`."""
        return self._database.execute(sql, params).fetchall()

    def statement(self, sql: str, limit: int | None) -> Result:
        """A stranger's SELECT, within `moment()`. Raises: Refused."""
        return select_sql(self._database, sql, limit)

    def now_s(self) -> float:
        """CLOCK_MONOTONIC as the store's ages count it."""
        return self._clock.monotonic_s()

    def close(self) -> None:
        """Closes the connection unless it is the store's own."""
        if not self._shared:
            self._database.close()

    def _is_late(self) -> bool:
        return self._clock.monotonic_s() > self._deadline_s
