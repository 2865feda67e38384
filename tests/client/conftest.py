"""A store with a little of everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(
        str(tmp_path / "store.db"), "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0
    )
    store.apply(
        [
            snapshot(HOST, connections=[listener(1, 80, inode=5), connection(2)], processes=[process(8, "nginx")],
                     holdings=[holding(8, 3, 5)]),
            snapshot(BLUE, connections=[connection(3)]),
        ],
        [roster_row(HOST), roster_row(BLUE, ["blue"])],
    )  # fmt: skip
    yield store
    store.close()
