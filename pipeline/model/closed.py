"""A connection that has ended, and what is still known of it."""

from __future__ import annotations

from typing import NamedTuple


class ClosedConnection(NamedTuple):
    """One connection that ended. Addresses: 4 or 16 bytes in network order. Identity: netns, cookie.

    `direction`: inbound, outbound or unknown. `pid`, `start_ticks`, `comm`, `container`: who owned it last, None where
    nobody is known. Times: CLOCK_MONOTONIC seconds; `opened_at_s` is None where it began before anybody watched.
    `bytes_sent`, `bytes_received`: None where the source does not tell. `refused`: it never was established.
    """

    cookie: int
    proto: int
    family: int
    local_addr: bytes
    local_port: int
    remote_addr: bytes
    remote_port: int
    uid: int
    direction: str
    pid: int | None
    start_ticks: int | None
    comm: str | None
    container: str | None
    opened_at_s: float | None
    closed_at_s: float
    bytes_sent: int | None
    bytes_received: int | None
    refused: bool
