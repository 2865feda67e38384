"""Opening the store's file: settings, the clock as an SQL function, permissions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from pipeline.clock import Clock
from pipeline.store.closed import CLOSED_TABLES, CLOSED_VIEW
from pipeline.store.containers import CONTAINER_TABLES, CONTAINER_VIEW
from pipeline.store.edges import EDGES_VIEW
from pipeline.store.schema import STATISTICS, TABLES, VIEWS
from pipeline.store.traffic import TRAFFIC_TABLES

MEMORY = ":memory:"
# What SQLite says to a value or a row that no column takes.
VALUE_ERRORS = (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.IntegrityError)
_WAL_LIMIT_BYTES = 16 * 1024 * 1024


def create(path: str, clock: Clock) -> sqlite3.Connection:
    """A new, empty store at `path`, 0600, in place of what a predecessor left there; `:memory:` for no file."""
    if path != MEMORY:
        # The store is rebuilt from the segments: an old file is of no use, and a log without its file is harmful.
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)
        # SQLite gives the log and its index the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = _connect(path, clock)
    # Readers go on while a commit is written, and see the state before it. Nothing needs to survive a power cut.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    tables = TABLES + TRAFFIC_TABLES + CLOSED_TABLES + CONTAINER_TABLES
    connection.executescript(tables + VIEWS + EDGES_VIEW + CLOSED_VIEW + CONTAINER_VIEW + STATISTICS)
    return connection


def open_read_only(path: str, clock: Clock) -> sqlite3.Connection:
    """A connection that cannot write; for one thread. Raises: sqlite3.OperationalError where there is no store."""
    # mode=rw: with mode=ro SQLite may not create the -shm index that reading a WAL file takes.
    connection = _connect(f"{Path(path).absolute().as_uri()}?mode=rw", clock)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: str, clock: Clock) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, uri=path.startswith("file:"))
    connection.create_function("monotonic_s", 0, clock.monotonic_s)
    return connection
