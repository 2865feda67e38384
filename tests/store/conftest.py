"""A store in memory with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.clock import ManualClock
from pipeline.store import Store


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_s=100.0)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    opened = Store(":memory:", "epoch-1", "testhost", clock, stale_after_s=15.0)
    yield opened
    opened.close()
