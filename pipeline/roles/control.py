"""The line between the supervisor and one child: small msgpack maps over a SOCK_SEQPACKET pair, never blocking."""

from __future__ import annotations

import math
import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.codec import decode_map, encode
from pipeline.model.process import Task

_BUFFER_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 17
# Tasks in one message: some 60 kB, well below what one packet may carry.
_TASKS_PER_MESSAGE = 4000
# Namespaces in one message, with some paths each.
_HELD_PER_MESSAGE = 200


class Control:
    """One end. What the peer does not take at once waits here, in order; `backlog_since_s` tells for how long."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket = end
        self._unsent: deque[bytes] = deque()
        self.backlog_since_s: float | None = None

    @classmethod
    def pair(cls) -> tuple[Control, Control]:
        """(supervisor's end, child's end)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @property
    def socket(self) -> socket.socket:
        """The end itself, to be passed to another process."""
        return self._socket

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any], now_s: float) -> None:
        """Sends or queues one message. A peer that has gone gets nothing; its end is noticed elsewhere."""
        self._unsent.append(encode(dict(message)))
        self.flush(now_s)

    def flush(self, now_s: float) -> None:
        """Sends what waits, as far as the peer takes it."""
        while self._unsent:
            try:
                self._socket.send(self._unsent[0])
            except BlockingIOError:
                if self.backlog_since_s is None:
                    self.backlog_since_s = now_s
                return
            except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                self._unsent.clear()
                break
            self._unsent.popleft()
        self.backlog_since_s = None

    def wait(self, timeout_s: float | None) -> bool:
        """Whether something can be received, or the peer has gone, within `timeout_s`."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else math.ceil(max(0.0, timeout_s) * 1000)))

    def receive(self) -> list[dict[str, Any]] | None:
        """All messages that have arrived; None when the peer has gone. Raises: Malformed."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return messages
            except ConnectionResetError:
                data = b""
            if not data:
                return messages or None
            messages.append(decode_map(data))

    def close(self) -> None:
        self._socket.close()


def assignment(
    netns: int, life: int, segment: str, paths: Sequence[str], tasks: list[Task], order: int, delay_s: float
) -> list[dict[str, Any]]:
    """The orders that give a namespace to a worker: which life of its walk this is, where its segment and the ways
    in are, who is in it, and when its first paced pass begins.

    `order` numbers its first look, see Slot.answered.
    """
    first: dict[str, Any] = {
        "op": "assign",
        "netns": netns,
        "life": life,
        "segment": segment,
        "paths": paths,
        "tasks": tasks[:_TASKS_PER_MESSAGE],
        "delay_s": delay_s,
    }
    rest = tasks[_TASKS_PER_MESSAGE:]
    more = member_messages(netns, rest, []) if rest else []
    return [first, *more, {"op": "look", "netns": [netns], "still": [], "order": order}]


def held_messages(netns: int, held: Sequence[tuple[int, list[str]]]) -> list[dict[str, Any]]:
    """What a worker says of the namespaces that the processes of `netns` hold (inode, paths of descriptors), in
    messages small enough for one packet. `more`: it goes on from the message before."""
    return [
        {"op": "held", "netns": netns, "held": held[begin : begin + _HELD_PER_MESSAGE], "more": begin > 0}
        for begin in range(0, max(len(held), 1), _HELD_PER_MESSAGE)
    ]


def member_messages(netns: int, added: list[Task], removed: list[Task]) -> list[dict[str, Any]]:
    """`members` messages for one namespace, each small enough for one packet."""
    messages = []
    for begin in range(0, max(len(added), len(removed), 1), _TASKS_PER_MESSAGE):
        part = slice(begin, begin + _TASKS_PER_MESSAGE)
        messages.append({"op": "members", "netns": netns, "added": added[part], "removed": removed[part]})
    return messages
