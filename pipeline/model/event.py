"""What happened to one socket, as the event programs of the kernel tell it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EventKind(IntEnum):
    """CONNECT: a process began to connect; the local port may be 0 yet. ESTABLISHED: the full tuple is known, of either
    side. OWNER: a process used the socket for the first time (accepted ones have no owner before; UDP sockets begin
    so). CLOSED: it is no connection any more, with its bytes; what is left may stay in the tables as TIME_WAIT. Of
    UDP only where EventRing.tells_udp_ends. LISTEN: a process listens. Numbers are those of the programs in ebpf/."""

    CONNECT = 1
    ESTABLISHED = 2
    OWNER = 3
    CLOSED = 4
    LISTEN = 5


class SocketEvent(NamedTuple):
    """One event. Addresses: 4 or 16 bytes in network order; ports as numbers, 0 where not known yet.

    `time_s`: CLOCK_MONOTONIC. `state`: the one it came into; of CLOSED the one it left (LISTEN: a listener ended;
    FIN_WAIT2, CLOSING: TIME_WAIT follows). `pid`, `start_ticks`, `comm`: whoever connected, listened or first used it,
    0 and empty where no process has yet (an accepted socket before its first use, one from before the programs).
    `cookie`: as sock_diag shows it; a socket that connects again keeps it. `inode`: 0 where pid is. `inbound`: it was
    accepted, False where that was before the programs ran. `age_s`: since it began to connect, was accepted by the
    kernel, listened, or (UDP) was first used; None where that was before the programs ran. `refused`: of CLOSED, it
    never was established: refused, timed out, given up. `bytes_sent`, `bytes_received`: of CLOSED, payload, what was
    sent twice counted once.
    """

    kind: int
    time_s: float
    cookie: int
    netns: int
    proto: int
    family: int
    state: int
    local_addr: bytes
    local_port: int
    remote_addr: bytes
    remote_port: int
    inode: int
    uid: int
    pid: int
    start_ticks: int
    comm: str
    inbound: bool
    refused: bool
    age_s: float | None
    bytes_sent: int
    bytes_received: int
