"""Flows of connection tracking to try the merge with."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.model.connection import Proto
from pipeline.model.flow import Flow, FlowStatus
from pipeline.model.flow_snapshot import FLOW_ROLE, FlowHealth, FlowSnapshot
from tests.sample_state import HOST

End = tuple[bytes, int]


def flow(key: bytes, original: tuple[End, End], translated: tuple[End, End], proto: int = Proto.TCP) -> Flow:
    """`original`, `translated`: (source, destination) of what the client sends, before and after."""
    (source, target), (seen_source, real_target) = original, translated
    status = (FlowStatus.SRC_NAT if source != seen_source else 0) | (
        FlowStatus.DST_NAT if target != real_target else 0
    )
    return Flow(
        key,
        proto,
        2 if len(source[0]) == 4 else 10,
        *source,
        *target,
        *real_target,
        *seen_source,
        status,
        None,
    )


def flows(
    netns: int = HOST,
    generation: int = 1,
    *entries: Flow,
    base: bool = True,
    cookie: int | None = 7,
    life: int = 1,
    taken_at_s: float = 100.0,
    gone: Sequence[bytes] = (),
) -> FlowSnapshot:
    return FlowSnapshot(
        FLOW_ROLE, netns, cookie, life, generation, base, taken_at_s, FlowHealth(), entries, gone
    )
