"""What the conntrack worker publishes: one generation of one namespace's translated flows, whole or as changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import Malformed
from pipeline.model.flow import Flow
from pipeline.model.wire import check_counts, check_keys, check_rows, read_scalars

FLOW_SNAPSHOT_VERSION = 1
FLOW_ROLE = "conntrack"
# The counts of FlowHealth that say that something may be missing.
LOSSES = (
    "dumps_interrupted", "dumps_denied", "dumps_vanished", "rows_malformed", "events_lost", "flows_missed",
    "flows_over_limit", "messages_dropped", "segment_full",
)  # fmt: skip


@dataclass(slots=True)
class FlowHealth:
    """Counts since the namespace was assigned; they travel in every snapshot.

    `events_lost`: times the kernel dropped events, since it does not say how many. `flows_missed`: flows that a dump
    found and that events should have told of. `flows_over_limit`: flows left out since there were too many.
    """

    dumps: int = 0
    dumps_interrupted: int = 0
    dumps_denied: int = 0
    dumps_vanished: int = 0
    rows_malformed: int = 0
    events: int = 0
    events_lost: int = 0
    flows_missed: int = 0
    flows_over_limit: int = 0
    messages_dropped: int = 0
    segment_full: int = 0

    def copy(self) -> FlowHealth:
        return FlowHealth(*[getattr(self, name) for name in _HEALTH_NAMES])

    def losses(self) -> tuple[int, ...]:
        """The counts that LOSSES names."""
        return tuple(getattr(self, name) for name in LOSSES)


@dataclass(frozen=True, slots=True)
class FlowSnapshot:
    """Generation `generation` of the flows of one namespace by the worker life `life`; orders as Snapshot does.

    `base`: `flows` are all there are. Otherwise those added or changed since `generation - 1`, and `gone_flows` the
    keys of those that ended. Only flows that translate. A flow stays for as long as conntrack keeps its entry, so
    also while its sockets are in TIME_WAIT. `status` and `tcp_state` of a flow are those of when it was first seen.
    `taken_at_s`: CLOCK_MONOTONIC seconds.
    """

    role: str
    netns: int
    cookie: int | None
    life: int
    generation: int
    base: bool
    taken_at_s: float
    health: FlowHealth
    flows: Sequence[Flow] = ()
    gone_flows: Sequence[bytes] = ()

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values for the codec."""
        wire = {name: getattr(self, name) for name in _FIELD_NAMES}
        wire["health"] = [getattr(self.health, name) for name in _HEALTH_NAMES]
        wire["v"] = FLOW_SNAPSHOT_VERSION
        return wire


_FIELD_NAMES = tuple(f.name for f in fields(FlowSnapshot))
_HEALTH_NAMES = tuple(f.name for f in fields(FlowHealth))
_SCALAR_TYPES: dict[str, tuple[type, ...]] = {
    "role": (str,), "netns": (int,), "cookie": (int, type(None)), "life": (int,), "generation": (int,),
    "base": (bool,), "taken_at_s": (float, int),
}  # fmt: skip


def flows_from_wire(wire: dict[str, Any]) -> FlowSnapshot:
    """The flow snapshot in a decoded map; rows become plain tuples of a Flow's width. Raises: Malformed."""
    if wire.get("v") != FLOW_SNAPSHOT_VERSION or wire.get("role") != FLOW_ROLE:
        raise Malformed(
            f"flow snapshot version {wire.get('v')!r} of role {wire.get('role')!r}, this program reads "
            f"{FLOW_SNAPSHOT_VERSION} of {FLOW_ROLE}"
        )
    try:
        values = read_scalars(wire, _SCALAR_TYPES)
        values["flows"] = [tuple(row) for row in wire["flows"]]
        check_rows("flows", Flow, values["flows"])
        values["gone_flows"] = list(wire["gone_flows"])
        check_keys("gone_flows", values["gone_flows"], (bytes,))
        check_counts(wire["health"])
        values["health"] = FlowHealth(*wire["health"])
    except (KeyError, TypeError) as error:
        raise Malformed(f"flow snapshot field missing or of a wrong type: {error}") from None
    return FlowSnapshot(**values)
