"""Log lines of all processes, carried to one place by multiprocessing-logging without its queue.

Its `multiprocessing.Queue` has a lock between the writers: a writer killed while holding it stops all the others.
log_queue.py takes its place.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import sys
import time
from typing import Any

import multiprocessing_logging

from pipeline.clock import Clock, SystemClock
from pipeline.errors import ConfigError
from pipeline.model.printable import printable
from pipeline.roles.log_queue import DatagramQueue


class _RelayHandler(multiprocessing_logging.MultiProcessingHandler):  # type: ignore[misc]
    """MultiProcessingHandler on a DatagramQueue."""

    def __init__(self, records: DatagramQueue, sub_handler: logging.Handler) -> None:
        self._records = records
        self._owner_pid = os.getpid()
        super().__init__("log-relay", sub_handler)

    @property
    def queue(self) -> DatagramQueue:
        return self._records

    @queue.setter
    def queue(self, unwanted: Any) -> None:
        # The parent class makes a multiprocessing.Queue and starts its thread in one go: this is the only moment to
        # put ours in its place. Its thread then never sees the other one.
        unwanted.close()

    def close(self) -> None:
        """In the process that made it: writes what has arrived, then ends. In a child: nothing to end. Twice is
        harmless: logging closes every handler again at exit."""
        if os.getpid() == self._owner_pid and not self._is_closed:
            self._records.wake()
            super().close()


class _LineFormatter(logging.Formatter):
    """`2026-01-01T00:00:00.123Z LEVEL role[pid] netns=4026531840 message`: one record, one line."""

    def format(self, record: logging.LogRecord) -> str:
        whole_s, ms = divmod(int(record.created * 1000), 1000)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))
        netns = getattr(record, "netns", None)
        where = f" netns={netns}" if netns is not None else ""
        role = getattr(record, "role", "?")
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        text = record.getMessage() + (f" | {record.exc_text}" if record.exc_text else "")
        return f"{moment}.{ms:03d}Z {record.levelname} {role}[{record.process}]{where} {printable(text)}"


class Relay:
    """The running relay, owned by the supervisor: made before the first fork."""

    def __init__(self, handler: _RelayHandler, records: DatagramQueue) -> None:
        self._handler = handler
        self.records = records

    def stop(self) -> None:
        """Writes what has arrived and stops; later records of children are lost."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


_running: Relay | None = None


def start_relay(level: str, log_file: str | None = None, clock: Clock | None = None) -> Relay:
    """Sends the root logger of this process, and of all forked from it later, to stderr or to `log_file`.

    Raises: ConfigError where the file cannot be opened or the level is none.
    """
    global _running
    assert multiprocessing.get_start_method() == "fork", "only a forked child inherits the relay"
    try:
        # Watched: goes on in a new file after log rotation.
        target: logging.Handler = (
            logging.handlers.WatchedFileHandler(log_file) if log_file else logging.StreamHandler(sys.stderr)
        )
        logging.getLogger().setLevel(level.upper())
    except OSError as error:
        raise ConfigError(f"agent.log_file: cannot open {log_file}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"agent.log_level: {level!r} is none of debug, info, warning, error") from None
    target.setFormatter(_LineFormatter())
    records = DatagramQueue(clock or SystemClock())
    handler = _RelayHandler(records, target)
    logging.getLogger().handlers[:] = [handler]
    _running = Relay(handler, records)
    return _running


def become(role: str, netns: int | None = None) -> None:
    """In a child, right after the fork: how its lines are marked. A record's `extra={"netns": inode}` goes first.

    Without a relay (started before the fork) there is nothing to mark.
    """
    if _running is not None:
        _running.records.become(role, netns)
