"""PID/net/sockstat and sockstat6: how many sockets a namespace has. Read each second: find the line, split it."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import Malformed
from pipeline.model.process import Task
from pipeline.procfs.lines import rest_of_line
from pipeline.procfs.root import ProcRoot, read_net_file


class Sockstat(NamedTuple):
    """IPv4 sockets by protocol. `tcp_inuse` counts no TIME_WAIT, `tcp_tw` counts those of both families.
    `tcp_orphan` is of the whole host, whichever namespace shows it: no sign of change in this one. `used`: sockets of
    all families, that processes opened."""

    tcp_inuse: int
    tcp_orphan: int
    tcp_tw: int
    udp_inuse: int
    used: int


class Sockstat6(NamedTuple):
    """IPv6 sockets by protocol, v4-mapped ones among them."""

    tcp_inuse: int
    udp_inuse: int


def parse_sockstat(data: bytes) -> Sockstat:
    """The counters of one sockstat file. Raises: Malformed. Source: sockstat_seq_show(), net/ipv4/proc.c."""
    try:
        # TCP: inuse 4 orphan 0 tw 0 alloc 5 mem 0
        tcp = rest_of_line(data, b"\nTCP: inuse ").split(None, 5)
        if tcp[1] != b"orphan" or tcp[3] != b"tw":
            raise Malformed(f"sockstat: unknown columns {tcp!r}")
        udp_inuse = int(rest_of_line(data, b"\nUDP: inuse ").split(None, 1)[0])
        used = int(rest_of_line(data, b"sockets: used "))
        return Sockstat(int(tcp[0]), int(tcp[2]), int(tcp[4]), udp_inuse, used)
    except (IndexError, ValueError):
        raise Malformed(f"sockstat: no counters of TCP and UDP: {data[:120]!r}") from None


def parse_sockstat6(data: bytes) -> Sockstat6:
    """The counters of one sockstat6 file. Raises: Malformed. Source: sockstat6_seq_show(), net/ipv6/proc.c."""
    try:
        # The first line here is TCP6's.
        lines = b"\n" + data
        return Sockstat6(
            int(rest_of_line(lines, b"\nTCP6: inuse ").split(None, 1)[0]),
            int(rest_of_line(lines, b"\nUDP6: inuse ").split(None, 1)[0]),
        )
    except (IndexError, ValueError):
        raise Malformed(f"sockstat6: no counters of TCP6 and UDP6: {data[:120]!r}") from None


def read_sockstat(root: ProcRoot, task: Task) -> Sockstat:
    """The IPv4 counters of the task's namespace. Raises: Vanished, Denied, Malformed."""
    return parse_sockstat(read_net_file(root, task, "sockstat", in_one=True))


def read_sockstat6(root: ProcRoot, task: Task) -> Sockstat6:
    """The IPv6 counters of the task's namespace, 0 without IPv6. Raises: Vanished, Denied, Malformed."""
    data = read_net_file(root, task, "sockstat6", in_one=True)
    return parse_sockstat6(data) if data else Sockstat6(0, 0)
