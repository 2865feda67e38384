"""The feed's ends: the aggregator's, which publishes to whoever subscribes, and a subscriber's."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import zmq

from pipeline.codec import MAX_MESSAGE_BYTES
from pipeline.errors import NoAggregator
from pipeline.transport.endpoint import bind_ipc, check_server, unlink_ipc
from pipeline.transport.poller import Poller

_log = logging.getLogger(__name__)

# What subscribers hold of us at most: bytes of messages on their way, and bytes of different subscriptions. libzmq
# keeps those in a tree with a node per byte, some 64 bytes each.
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_SUBSCRIBED_BYTES = 512 * 1024
_SUBSCRIPTION_OVERHEAD_BYTES = 16
# Subscriptions are a few bytes; libzmq hangs up on a peer that sends more, before it has the memory for it.
_MAX_SUBSCRIPTION_BYTES = 1024
# Small, so that a peer who subscribes without end is read in small parts and not in one that has no end.
_SUBSCRIPTIONS_QUEUED = 16
# From here on it is worth knowing when a message has left: what is smaller is bounded by the high-water mark.
_TRACKED_FROM_BYTES = 4096
_RECONNECT_MS = 20
_RECONNECT_MAX_MS = 500


class _Waiting(NamedTuple):
    tracker: zmq.MessageTracker
    size: int


class FeedSocket:
    """Binds an XPUB. `send` never blocks: who reads too slowly misses messages and finds out by their `prev`.

    Memory is bounded whatever subscribers do: `high_water_mark` messages for each of them, and in all 64 MiB of
    messages that have not left yet. Over that, or when somebody floods it with subscriptions, everybody is
    disconnected, counted in `resets`; subscribers connect again and notice what they missed.
    """

    def __init__(
        self,
        ipc_path: str,
        poller: Poller,
        *,
        high_water_mark: int,
        mode: int = 0o660,
        gid: int | None = None,
        receives_per_pump: int = 256,
        max_unfinished_pumps: int = 64,
    ) -> None:
        """Watches its socket in `poller`, so that the wait ends when there is something to `pump`.

        More than `max_unfinished_pumps` in a row that each read `receives_per_pump` subscriptions and did not come to
        the end are a flood: somebody subscribes faster than we read.
        Raises: ConfigError, Denied, as `bind_ipc`.
        """
        self.resets = 0
        self._path = ipc_path
        self._poller = poller
        self._high_water_mark = high_water_mark
        self._mode = mode
        self._gid = gid
        self._receives_per_pump = receives_per_pump
        self._max_unfinished_pumps = max_unfinished_pumps
        self._bound: os.stat_result | None = None
        self._subscriptions: set[bytes] = set()
        self._subscribed_bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._unfinished = 0
        self._open()

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody subscribes to anything."""
        return bool(self._subscriptions)

    def wants(self, topic: str) -> bool:
        """Whether anybody subscribes to `topic` or to what it begins with."""
        wanted = topic.encode()
        return any(wanted[:length] in self._subscriptions for length in range(len(wanted) + 1))

    def send(self, topic: str, body: bytes) -> None:
        """Publishes one message; dropped for subscribers who have no room for it."""
        # Both frames or none: libzmq decides at the first.
        self._socket.send(topic.encode(), zmq.SNDMORE | zmq.NOBLOCK)
        if len(body) < _TRACKED_FROM_BYTES:
            self._socket.send(body, zmq.NOBLOCK)
            return
        tracker = self._socket.send(body, zmq.NOBLOCK, copy=False, track=True)
        self._waiting.append(_Waiting(tracker, len(body)))
        self._waiting_bytes += len(body)
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self._recount()
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                self._reset(f"subscribers left {self._waiting_bytes >> 20} MiB unread")

    def pump(self) -> list[str]:
        """The subscriptions that came in since the last call, also those that somebody else has already."""
        self._forget_sent()
        came: list[str] = []
        for _ in range(self._receives_per_pump):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._unfinished = 0
                return came
            # XSUB peers may send messages of their own: not subscriptions, hence not ours.
            if len(frames) != 1 or frames[0][:1] not in (b"\0", b"\1"):
                continue
            if frames[0][0] == 0:
                self._unsubscribe(frames[0][1:])
                continue
            self._subscribe(frames[0][1:])
            came.append(frames[0][1:].decode("ascii", "replace"))
            if self._subscribed_bytes > _MAX_SUBSCRIBED_BYTES:
                self._reset(f"{len(self._subscriptions)} different subscriptions")
                return []
        self._unfinished += 1
        if self._unfinished > self._max_unfinished_pumps:
            self._reset("a flood of subscriptions")
        return came

    def close(self) -> None:
        """Drops what is still on its way and removes the socket."""
        self._poller.unregister(self._socket)
        unlink_ipc(self._path, self._bound)
        self._socket.close()
        self._context.term()

    def _open(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, self._high_water_mark)
        self._socket.setsockopt(zmq.RCVHWM, _SUBSCRIPTIONS_QUEUED)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
        # Else only the first of identical subscriptions is told of, and who joins later would wait for a heartbeat.
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.copy_threshold = _TRACKED_FROM_BYTES
        try:
            self._bound = bind_ipc(self._socket, self._path, self._mode, self._gid)
        except BaseException:
            self._socket.close()
            self._context.term()
            raise
        self._poller.register(self._socket)

    def _subscribe(self, topic: bytes) -> None:
        if topic not in self._subscriptions:
            self._subscriptions.add(topic)
            self._subscribed_bytes += len(topic) + _SUBSCRIPTION_OVERHEAD_BYTES

    def _unsubscribe(self, topic: bytes) -> None:
        if topic in self._subscriptions:
            self._subscriptions.remove(topic)
            self._subscribed_bytes -= len(topic) + _SUBSCRIPTION_OVERHEAD_BYTES

    def _reset(self, why: str) -> None:
        """Disconnects everybody. libzmq has no way to disconnect the one who is to blame."""
        _log.warning("%s: all subscribers of the feed are disconnected and have to come back", why)
        self.resets += 1
        self.close()
        self._subscriptions.clear()
        self._waiting.clear()
        self._waiting_bytes = self._subscribed_bytes = self._unfinished = 0
        self._open()

    def _forget_sent(self) -> None:
        """Stops counting what has left, from the oldest on: one that a slow subscriber holds hides newer ones."""
        while self._waiting and self._waiting[0].tracker.done:
            self._waiting_bytes -= self._waiting.popleft().size

    def _recount(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.tracker.done)
        self._waiting_bytes = sum(one.size for one in self._waiting)


class Subscriber:
    """A subscriber's end; not shared between threads. Connects again by itself after the aggregator's restart."""

    def __init__(self, ipc_path: str, topics: Iterable[str], high_water_mark: int = 1000) -> None:
        """Subscribes in the order of `topics`: when a message of the last comes, the others are in force.

        Raises: NoAggregator, Denied, ConfigError, as `check_server`.
        """
        check_server(ipc_path)
        self._path = ipc_path
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, high_water_mark)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect("ipc://" + ipc_path)

    def receive(self, timeout_s: float) -> tuple[str, bytes] | None:
        """The next message as (topic, body), None when none comes in time. What is not of that shape is skipped."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not self._socket.poll(round(left_s * 1000)):
                return None
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            if len(frames) == 2:
                return frames[0].decode("ascii", "replace"), frames[1]

    def wait(self, topic: str, timeout_s: float) -> tuple[str, bytes]:
        """The first message of `topic`; those before it are dropped. Raises: NoAggregator when it does not come."""
        deadline_s = time.monotonic() + timeout_s
        while (received := self.receive(deadline_s - time.monotonic())) is not None:
            if received[0] == topic:
                return received
        raise NoAggregator(
            f"no {topic} from the feed at {os.path.dirname(self._path)} within {timeout_s:g} s",
            "see whether `sockscope run` is alive, and what it logged",
        )

    def close(self) -> None:
        self._context.destroy(linger=0)
