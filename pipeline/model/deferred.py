"""What a handler of requests returns instead of an answer."""

from __future__ import annotations

from typing import NamedTuple


class Later(NamedTuple):
    """Not yet: ask `request` instead, after the state has changed, and at `due_s` (CLOCK_MONOTONIC) at the latest."""

    request: bytes
    due_s: float


class Heavy(NamedTuple):
    """This may take long: ask `request` of those handlers that do nothing else."""

    request: bytes
