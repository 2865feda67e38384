from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ebpf import EventRing, SocketIterator
from tests.e2e.host import NamedNetns, named_netns


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[NamedNetns]:
    with named_netns(tmp_path, "ebpf-one") as one:
        yield one


@pytest.fixture
def other_netns(tmp_path: Path) -> Iterator[NamedNetns]:
    with named_netns(tmp_path, "ebpf-other") as other:
        yield other


@pytest.fixture
def iterator() -> Iterator[SocketIterator]:
    with SocketIterator.open() as opened:
        yield opened


@pytest.fixture
def ring() -> Iterator[EventRing]:
    """Roomy: events of the whole host go into it."""
    with EventRing.open(1 << 24) as opened:
        yield opened
