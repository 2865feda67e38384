"""What a TCP connection has carried so far."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pipeline.model.connection import SocketKey


class Figures(NamedTuple):
    """Counters since the connection began. `bytes_sent`: those that the other end acknowledged. `rtt_us`: the smoothed
    round trip time. `retransmits`: segments sent again."""

    bytes_sent: int
    bytes_received: int
    rtt_us: int
    retransmits: int


class Traffic(NamedTuple):
    """The figures of the connection `key` of a namespace, as of the snapshot that has them."""

    key: SocketKey
    bytes_sent: int
    bytes_received: int
    rtt_us: int
    retransmits: int


NO_FIGURES: Mapping[int, Figures] = MappingProxyType({})
