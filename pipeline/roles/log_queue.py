"""The queue under the log relay: each record one datagram on a socket pair made before the fork.

Sending takes no lock and never blocks: a writer killed at any moment leaves nothing that another waits for. A record
that finds the socket full is dropped and counted, and each process may only send so many.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import queue
import select
import socket
from dataclasses import dataclass, field

from pipeline.clock import Clock
from pipeline.codec import decode, encode
from pipeline.errors import Malformed

# Of each process: a worker in trouble must not push the others' lines out, nor fill the disk.
_RECORDS_PER_S = 20.0
_BURST_RECORDS = 100.0
# With the few short fields far below what one datagram may carry by default (208 kB).
_MAX_MESSAGE_BYTES = 8 * 1024
_MAX_TRACE_BYTES = 16 * 1024
_BUFFER_BYTES = 1 << 20
# Full, out of kernel memory, or nobody reads any more: nobody can be told, only the count.
_LOST = frozenset(
    {
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.EPIPE,
    }
)


@dataclass(slots=True)
class RateLimit:
    """A token bucket: `burst` at once, `per_s` in the long run."""

    clock: Clock
    per_s: float = _RECORDS_PER_S
    burst: float = _BURST_RECORDS
    _tokens: float = field(init=False)
    _filled_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._tokens = self.burst
        self._filled_at_s = self.clock.monotonic_s()

    def refill(self) -> None:
        """Allows a whole burst again."""
        self._tokens = self.burst

    def allows(self) -> bool:
        """Takes one token; False where there is none."""
        now_s = self.clock.monotonic_s()
        self._tokens = min(self.burst, self._tokens + (now_s - self._filled_at_s) * self.per_s)
        self._filled_at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class DatagramQueue:
    """What stands in for the queue of MultiProcessingHandler: the same methods, on a datagram socket pair.

    One process reads, it and its forked children write. `suppressed` (over the rate) and `dropped` (socket full)
    count this process's losses since its last record that went through; they travel with the next one.
    """

    def __init__(self, clock: Clock) -> None:
        self.role = "supervisor"
        self.netns: int | None = None
        self.suppressed = self.dropped = 0
        self._clock = clock
        self._limit = RateLimit(clock)
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # What waits to be read is charged to the writer's buffer; the kernel caps it at net.core.wmem_max.
        self._writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._received: collections.deque[logging.LogRecord] = collections.deque()
        self._closing = False

    def become(self, role: str, netns: int | None) -> None:
        """In a forked child: its own name, rate and counts."""
        self.role, self.netns = role, netns
        self.suppressed = self.dropped = 0
        self._limit.refill()

    @property
    def reader_fd(self) -> int:
        """The end that only the process that made it reads."""
        return self._reader.fileno()

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Sends the record, or counts it as lost. Never blocks, never raises for want of room."""
        if not self._limit.allows():
            self.suppressed += 1
            return
        try:
            self._writer.send(self._pack(record), socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in _LOST:
                raise
            self.dropped += 1
        else:
            self.suppressed = self.dropped = 0

    def get(self, timeout: float) -> logging.LogRecord:
        """The next record. Raises: queue.Empty; only after `wake` because of the timeout: until then it sleeps on,
        since five wake-ups a second are not free."""
        if not self._received:
            self._wait(timeout if self._closing else None)
            with contextlib.suppress(BlockingIOError):
                self._received.extend(_unpack(self._reader.recv(_BUFFER_BYTES)))
        if not self._received:
            raise queue.Empty
        return self._received.popleft()

    def wake(self) -> None:
        """The reader is about to end: `get` stops sleeping without limit."""
        self._closing = True
        # Full is fine as well: then it is awake.
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"", socket.MSG_DONTWAIT)

    def qsize(self) -> int:
        """0 where nothing is waiting; else at least 1."""
        return len(self._received) or int(self._wait(0))

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def join_thread(self) -> None:
        """There is no feeder thread to wait for."""

    def _wait(self, timeout_s: float | None) -> bool:
        # Not select.select: it cannot watch an fd above 1023.
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))

    def _pack(self, record: logging.LogRecord) -> bytes:
        netns = getattr(record, "netns", self.netns)
        message = _cut(record.getMessage(), _MAX_MESSAGE_BYTES)
        trace = _cut(record.exc_text or "", _MAX_TRACE_BYTES)
        losses = (self.suppressed, self.dropped)
        return encode((record.levelno, record.created, self.role, os.getpid(), netns, message, trace, losses))


def _cut(text: str, max_bytes: int) -> str:
    """`text` with unpaired surrogates escaped, which msgpack refuses, and at most `max_bytes` of it."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    return f"{data[:max_bytes].decode(errors='ignore')}… ({len(data)} bytes)"


def _unpack(data: bytes) -> list[logging.LogRecord]:
    """The record in a datagram, after a line about the losses before it; nothing where it is no record of ours."""
    if not data:
        return []
    try:
        level, created, role, pid, netns, message, trace, (suppressed, dropped) = decode(data)
        level, created, suppressed, dropped = int(level), float(created), int(suppressed), int(dropped)
    except (Malformed, TypeError, ValueError):
        return []  # only a child of ours can write here: one that has gone mad, and it is not the reader's to die of
    lines = [(level, message, trace)]
    if suppressed or dropped:
        text = f"{suppressed + dropped} log lines lost: {suppressed} over the rate limit, {dropped} for want of room"
        lines.insert(0, (logging.WARNING, text, ""))
    return [
        logging.makeLogRecord(
            {
                "levelno": line_level,
                "levelname": logging.getLevelName(line_level),
                "created": created,
                "process": pid,
                "role": role,
                "netns": netns,
                "msg": text,
                "exc_text": line_trace,
            }
        )
        for line_level, text, line_trace in lines
    ]
