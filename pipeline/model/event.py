"""What happened to one socket, as the event programs of the kernel tell it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EventKind(IntEnum):
    """CONNECT: a process began to connect; the tuple may be incomplete. ESTABLISHED: the full tuple is known, of either
    side. OWNER: a process used the socket for the first time (accepted ones have no owner before). CLOSED: it left
    the tables, with its bytes. Numbers are those of the programs in ebpf/."""

    CONNECT = 1
    ESTABLISHED = 2
    OWNER = 3
    CLOSED = 4


class SocketEvent(NamedTuple):
    """One event. Addresses: 4 or 16 bytes in network order; ports as numbers, 0 where not known yet.

    `time_s`: CLOCK_MONOTONIC. `pid` and `start_ticks` are 0, and `comm` empty, where the event did not run in a
    process's context (an accepted socket before its first use). `cookie`: as sock_diag shows it. `inode`: 0 before a
    process has it. `age_s`: of CLOSED, since the socket began to connect or was established; None where that was
    before the programs ran. `refused`: of CLOSED, it never was established. `bytes_sent`: acknowledged by the peer.
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
