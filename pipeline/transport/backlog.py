"""Who is served next: pure bookkeeping of waiting requests, fair between peers and bounded."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Request = TypeVar("Request")


class Backlog(Generic[Request]):
    """Requests by peer. One request of a peer is at work at a time, and the peers take turns: one that asks for
    everything at once waits for itself only, and gets its answers in the order of its questions."""

    def __init__(self, max_requests: int, max_per_peer: int) -> None:
        self._max_requests = max_requests
        self._max_per_peer = max_per_peer
        self._waiting: dict[bytes, deque[Request]] = {}
        self._turns: deque[bytes] = deque()
        self._at_work: set[bytes] = set()
        self._size = 0

    def __len__(self) -> int:
        """Requests that wait, without those at work."""
        return self._size

    def offer(self, peer: bytes, request: Request) -> bool:
        """Whether the request now waits for its turn; False: no room, neither for all nor for this peer."""
        queue = self._waiting.get(peer)
        if self._size >= self._max_requests or (queue is not None and len(queue) >= self._max_per_peer):
            return False
        if queue is None:
            queue = self._waiting[peer] = deque()
            if peer not in self._at_work:
                self._turns.append(peer)
        queue.append(request)
        self._size += 1
        return True

    def has(self, peer: bytes) -> bool:
        """Whether the peer has a request that waits or is at work."""
        return peer in self._at_work or peer in self._waiting

    def take(self) -> tuple[bytes, Request] | None:
        """The next request to work on; its peer gets no other before `finish`. None: nothing to do."""
        if not self._turns:
            return None
        peer = self._turns.popleft()
        queue = self._waiting[peer]
        request = queue.popleft()
        if not queue:
            del self._waiting[peer]
        self._size -= 1
        self._at_work.add(peer)
        return peer, request

    def finish(self, peer: bytes) -> None:
        """The peer's request is answered: the peer goes to the end of the line with what it still has waiting."""
        self._at_work.remove(peer)
        if peer in self._waiting:
            self._turns.append(peer)

    def forget(self, peer: bytes) -> int:
        """Throws away what a peer that has gone still has waiting; how many."""
        queue = self._waiting.pop(peer, None)
        if queue is None:
            return 0
        if peer not in self._at_work:
            self._turns.remove(peer)
        self._size -= len(queue)
        return len(queue)
