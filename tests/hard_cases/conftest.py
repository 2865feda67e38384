"""One pipeline that watches two namespaces, for the cases that need no more: one that walks, then one with eBPF."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import NamedNetns, Pipeline, named_netns, pipeline, quick, seconds_until


@dataclass
class Watched:
    """`one` and `other` have no process of their own; `mounts` is where their names are."""

    running: Pipeline
    mounts: Path
    one: NamedNetns
    other: NamedNetns

    def owner(self, netns: NamedNetns, inode: int) -> dict[str, Any]:
        """The one owner of the one row of a socket, in the namespace it was opened in, as soon as there is one."""
        seconds_until(lambda: bool(self._owners(netns, inode)), 10.0, "attributed")
        (owner,) = self._owners(netns, inode)
        return owner

    def _owners(self, netns: NamedNetns, inode: int) -> list[dict[str, Any]]:
        rows = self.running.connections(netns=netns.inode, inode=inode)
        return [owner for row in rows for owner in row["owners"]]


# For what is not so with eBPF: a worker for each namespace, which dumps at every look; and sockets that are in no table
# of TCP or UDP counted with their process (eBPF does not show them).
only_walking = pytest.mark.parametrize("watched", ["off"], indirect=True, ids=["walking"])


@pytest.fixture(scope="session", params=["off", "require"], ids=["walking", "ebpf"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("hard-cases")
    mounts = folder / "netns"
    mounts.mkdir()
    with contextlib.ExitStack() as opened:
        one, other = (opened.enter_context(named_netns(mounts, f"hard-{name}")) for name in ("one", "other"))
        config = quick(mounts, "hard-*")
        running = opened.enter_context(pipeline(folder, "--ebpf", request.param, config=config))
        seconds_until(running.is_ready, 30.0, "ready")
        yield Watched(running, mounts, one, other)
