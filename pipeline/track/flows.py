"""The translated flows of one namespace, kept by events and put right by dumps. Pure.

A flow is there from the moment its entry is confirmed, so that the connection is joined with its other end while it
is still being opened, until the entry is gone: sockets stay in TIME_WAIT for a minute, and conntrack keeps the entry
for two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.model.flow import Flow

# TIME_WAIT and CLOSE of enum tcp_conntrack, include/uapi/linux/netfilter/nf_conntrack_tcp.h.
_ENDED_STATES = (7, 8)
# What makes two flows the same for those who join by them: all but `status` and `tcp_state`.
_TUPLES = slice(0, 11)


class FlowChange(NamedTuple):
    """Added or changed flows, and the keys of those that are gone."""

    flows: list[Flow]
    gone: list[bytes]


class FlowTable:
    """All flows there are, and what changed since `take_change`. `over_limit`: how many were left out, so far."""

    def __init__(self, max_flows: int) -> None:
        self._max_flows = max_flows
        self._flows: dict[bytes, Flow] = {}
        self._changed: dict[bytes, Flow] = {}
        self._gone: set[bytes] = set()
        self.over_limit = 0

    def __len__(self) -> int:
        return len(self._flows)

    @property
    def has_changes(self) -> bool:
        return bool(self._changed or self._gone)

    def flows(self) -> list[Flow]:
        return list(self._flows.values())

    def add(self, flow: Flow) -> None:
        """A flow that began, or that was seen again. A key is used again by the next flow of the same tuple."""
        key = flow[0]
        known = self._flows.get(key)
        if known is None:
            if len(self._flows) >= self._max_flows:
                self.over_limit += 1
                return
        elif known[_TUPLES] == flow[_TUPLES]:
            return
        self._flows[key] = self._changed[key] = flow
        self._gone.discard(key)

    def remove(self, key: bytes) -> None:
        """A flow that ended; one that is not known is none of ours."""
        if self._flows.pop(key, None) is not None:
            self._changed.pop(key, None)
            self._gone.add(key)

    def resync(self, flows: Sequence[Flow], whole: bool) -> set[bytes]:
        """Makes the table what a dump found; returns the keys that were not known.

        Events that came while the dump was made are for `add` and `remove` afterwards, all of them and in order.
        `whole`: False for a dump that may lack some, which then ends none. Above the limit those go first that ended.
        """
        if len(flows) > self._max_flows:
            self.over_limit += len(flows) - self._max_flows
            flows = sorted(flows, key=lambda flow: flow[12] in _ENDED_STATES)[: self._max_flows]
        found = {flow[0] for flow in flows}
        unknown = found - self._flows.keys()
        if whole:
            for key in self._flows.keys() - found:
                self.remove(key)
        for flow in flows:
            self.add(flow)
        return unknown

    def take_change(self) -> FlowChange:
        """What changed since the last call."""
        change = FlowChange(list(self._changed.values()), list(self._gone))
        self._changed, self._gone = {}, set()
        return change
