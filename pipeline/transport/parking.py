"""Requests that wait for the state to change, held without a thread: pure bookkeeping, bounded."""

from __future__ import annotations

from typing import Generic, TypeVar

Request = TypeVar("Request")

# However often the state changes, and however many wait.
_WAKE_EVERY_S = 0.1


class Parking(Generic[Request]):
    """Parked requests leave when the state has changed, at most every 100 ms, or when they are due."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._parked: list[tuple[float, Request]] = []
        self._woken = False
        self._woken_s = self._next_wake_s = 0.0

    def __len__(self) -> int:
        return len(self._parked)

    def offer(self, request: Request, due_s: float, asked_s: float) -> bool:
        """Whether the request is parked now, until `due_s` (CLOCK_MONOTONIC) at the latest; False: no room.

        `asked_s`: when it was asked in vain; it leaves at once if the state has changed since."""
        if len(self._parked) >= self._max_requests:
            return False
        self._woken = self._woken or self._woken_s >= asked_s
        self._parked.append((due_s, request))
        return True

    def wake(self, now_s: float) -> None:
        """The state has changed."""
        # In this order: another thread may look in between.
        self._woken_s = now_s
        self._woken = True

    def leave(self, now_s: float) -> list[Request]:
        """The requests to ask again now."""
        if self._woken and now_s >= self._next_wake_s:
            self._woken = False
            self._next_wake_s = now_s + _WAKE_EVERY_S
            leaving, self._parked = self._parked, []
        else:
            leaving = [one for one in self._parked if one[0] <= now_s]
            self._parked = [one for one in self._parked if one[0] > now_s] if leaving else self._parked
        return [request for _, request in leaving]

    def is_near(self, now_s: float, within_s: float) -> bool:
        """Whether any request has to leave within this time."""
        if not self._parked:
            return False
        return self._woken or min(due_s for due_s, _ in self._parked) <= now_s + within_s
