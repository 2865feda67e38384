"""One row of a namespace's socket tables."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, NewType

SocketInode = NewType("SocketInode", int)

# A socket's identity within its namespace: its cookie (> 0) where the kernel told it, else minus its inode
# (< 0), else, for rows with neither, bytes made of protocol, addresses, ports and bound device.
SocketKey = int | bytes


class Proto(IntEnum):
    """IPPROTO_*, include/uapi/linux/in.h."""

    TCP = 6
    UDP = 17


class Family(IntEnum):
    """AF_*, include/linux/socket.h."""

    INET = 2
    INET6 = 10


class State(IntEnum):
    """TCP states, include/net/tcp_states.h; UDP sockets use ESTABLISHED and CLOSE (shown as UNCONN)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


PROTO_NAMES: dict[int, str] = {Proto.TCP: "tcp", Proto.UDP: "udp"}
FAMILY_NAMES: dict[int, str] = {Family.INET: "inet", Family.INET6: "inet6"}
_TCP_STATE_NAMES: dict[int, str] = {state.value: state.name for state in State}
_TCP_STATE_NAMES[State.NEW_SYN_RECV] = "SYN_RECV"


def state_name(proto: int, state: int) -> str:
    """The contract's word for a state: the kernel's name for TCP; ESTABLISHED or UNCONN for UDP."""
    if proto == Proto.UDP:
        return "ESTABLISHED" if state == State.ESTABLISHED else "UNCONN"
    return _TCP_STATE_NAMES.get(state) or f"UNKNOWN_{state}"


class Connection(NamedTuple):
    """One row of a socket table as a worker publishes it. Addresses: 4 or 16 bytes in network order.

    `inode` is 0 where the kernel has none any more (TIME_WAIT, SYN_RECV, orphans): never a join key.
    `cookie` is 0 where unknown. `device` is the bound interface's name, or None.
    """

    key: SocketKey
    proto: int
    family: int
    state: int
    local_addr: bytes
    local_port: int
    remote_addr: bytes
    remote_port: int
    device: str | None
    inode: int
    cookie: int
    uid: int
