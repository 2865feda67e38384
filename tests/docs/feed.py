"""What the feed says on the documented host: a commit in `web` and one in `db`, as a subscriber sees them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.codec import decode_map
from pipeline.model.connection import Proto, State
from pipeline.model.process import Holding
from pipeline.model.snapshot import Health, Snapshot
from pipeline.roles.publisher import Publisher
from tests.docs.world import DB, WEB, row, whole, world

_DEADLINE_S = 60.0


class _Subscriber:
    """One who has just come, and keeps the newest message of each topic."""

    def __init__(self) -> None:
        self.newest: dict[str, dict[str, Any]] = {}
        self._came = [""]

    def wants(self, topic: str) -> bool:
        return topic != f"snapshot.{WEB}"

    def send(self, topic: str, body: bytes) -> None:
        self.newest[topic] = decode_map(body)

    def pump(self) -> list[str]:
        came, self._came = self._came, []
        return came


def messages() -> dict[str, dict[str, Any]]:
    """topic -> the message after a commit in which `web` got a connection, lost one and tried another again."""
    outlet = _Subscriber()
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as (store, clock):
        publisher = Publisher(store, outlet, "node-1", clock, heartbeat_s=1.0)
        try:
            # A first message of the edges is all of them: not what is to be shown.
            _pump_until(publisher, outlet, "delta.edges")
            clock.advance(1.0)
            change = _change(clock.now_s)
            del outlet.newest["delta.edges"]
            publisher.publish(store.apply([change]), [change])
            clock.advance(1.0)
            walked = replace(whole(DB, clock.now_s), generation=2)
            publisher.publish(store.apply([walked]), [walked])
            for topic in ("delta.edges", f"snapshot.{DB}"):
                _pump_until(publisher, outlet, topic)
            clock.advance(1.0)
            publisher.pump()
        finally:
            publisher.close()
    return outlet.newest


def _change(now_s: float) -> Snapshot:
    come = row(40, Proto.TCP, State.ESTABLISHED, "10.1.0.2:51010", "198.51.100.40:443")
    tried = row(38, Proto.TCP, State.CLOSE, "10.1.0.2:51100", "192.0.2.99:6379")
    return Snapshot(
        role="netns", netns=WEB, cookie=462, life=1, generation=2, base=False, taken_at_s=now_s,
        walked_at_s=now_s - 1.25, source="sock_diag", denied=0, health=Health(), connections=[come, tried],
        gone_connections=[39], holdings=[Holding(2050, 9702, 21, come.inode)],
    )  # fmt: skip


def _pump_until(publisher: Publisher, outlet: _Subscriber, topic: str) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while topic not in outlet.newest:
        assert time.monotonic() < deadline_s, f"no {topic}"
        publisher.pump()
        time.sleep(0.005)
