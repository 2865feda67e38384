"""Rows of socket tables, written short: what a test does not name is the same in every row."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from pipeline.model.connection import Family, Proto, State
from pipeline.model.socket_row import SocketRow
from pipeline.walk.table import Reading


def row(
    inode: int,
    cookie: int,
    local_port: int = 80,
    state: State = State.ESTABLISHED,
    ifindex: int = 0,
    uid: int = 0,
) -> SocketRow:
    """An IPv4 row 127.0.0.1:`local_port` -> 127.0.0.1:9999; cookie 0 as the text tables give it."""
    address = socket.inet_aton("127.0.0.1") + bytes(12)
    sport, dport = local_port.to_bytes(2, "big"), (9999).to_bytes(2, "big")
    return (Family.INET, state, sport, dport, address, address, ifindex, cookie, uid, inode)


def diag(*tcp: SocketRow, devices: dict[int, str] | None = None, cookie: int = 5) -> Reading:
    """A reading by sock_diag with these TCP rows."""
    return Reading("sock_diag", cookie, {Proto.TCP: list(tcp), Proto.UDP: []}, devices or {}, 0, 0)


def text(tcp: Iterable[SocketRow]) -> Reading:
    """The reading that /proc text gives of the same rows: without cookies and devices."""
    rows = [(*one[:6], 0, 0, *one[8:]) for one in tcp]
    return Reading("proc", None, {Proto.TCP: rows, Proto.UDP: []}, {}, 0, 0)
