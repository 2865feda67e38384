"""A flow: one entry of a namespace's connection tracking table, which joins the tuples on both sides of a NAT."""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple


class FlowStatus(IntFlag):
    """IPS_*, include/uapi/linux/netfilter/nf_conntrack_common.h: those that matter here."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    DYING = 1 << 9


class Flow(NamedTuple):
    """One entry. Addresses: 4 or 16 bytes in network order, by `family`; ports as numbers.

    `key`: the original tuple and the zone as bytes, the kernel's own identity of an entry. Original: as the first
    packet came in. Reply: as the answer comes in, so its source is the real server and its destination what the server
    sees of the client. `tcp_state`: nf_conntrack's number, None for UDP.
    """

    key: bytes
    proto: int
    family: int
    original_src: bytes
    original_sport: int
    original_dst: bytes
    original_dport: int
    reply_src: bytes
    reply_sport: int
    reply_dst: bytes
    reply_dport: int
    status: int
    tcp_state: int | None
