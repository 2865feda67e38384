"""How the generations of one namespace go out: each is committed to its segment, then sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.codec import encode
from pipeline.model.flow_snapshot import FlowHealth, FlowSnapshot
from pipeline.model.snapshot import Health, Snapshot
from pipeline.segment import SegmentFull, SegmentWriter

_log = logging.getLogger(__name__)

# After a full /dev/shm, how long until a whole base is packed and tried again.
_SEGMENT_RETRY_S = 5.0

Published = Snapshot | FlowSnapshot


@dataclass(slots=True)
class Publication:
    """`send` answers False where the message was dropped. Losses are counted in `health`."""

    segment: SegmentWriter
    send: Callable[[bytes], bool]
    health: Health | FlowHealth
    _retry_s: float = 0.0

    def publish(self, snapshot: Published, whole: Callable[[], Published], now_s: float) -> bool:
        """Sends `snapshot` out. `whole`: gives its generation as a base. False: a reader may miss it, so the next
        generation must be a base."""
        payload = encode(snapshot.to_wire())
        tries = now_s >= self._retry_s
        committed = tries and self._commit(snapshot, payload, whole, now_s)
        if self.send(payload):
            # After a full segment an aggregator that starts now has nothing to read: the next must be whole.
            return committed or not tries
        self.health.messages_dropped += 1
        return committed

    def _commit(
        self, snapshot: Published, payload: bytes, whole: Callable[[], Published], now_s: float
    ) -> bool:
        try:
            if snapshot.base:
                self.segment.write_base(snapshot.life, snapshot.generation, payload)
            elif self.segment.wants_base:
                base = encode(whole().to_wire())
                self.segment.write_base(snapshot.life, snapshot.generation, base)
            else:
                self.segment.append(snapshot.life, snapshot.generation, payload)
        except SegmentFull as error:
            if self.health.segment_full == 0:
                _log.warning("%s: %s", error, error.hint, extra={"netns": snapshot.netns})
            self.health.segment_full += 1
            self._retry_s = now_s + _SEGMENT_RETRY_S
            return False
        return True
