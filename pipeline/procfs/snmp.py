"""PID/net/snmp: counters of a namespace that move with every connection. Read each second: no generic parsing."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import Malformed
from pipeline.model.process import Task
from pipeline.procfs.lines import rest_of_line
from pipeline.procfs.root import ProcRoot, read_net_file

_TCP_COLUMNS = (
    b"\nTcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab"
    b" InSegs OutSegs "
)


class SnmpTcp(NamedTuple):
    """TCP over IPv4 and IPv6 together (RFC 1213): opens are counters, `curr_estab` (ESTABLISHED and CLOSE_WAIT) a
    gauge. Together they catch a connection that came and went between two reads, which `inuse` misses. `segments`: in
    and out; while they stand still no connection changes its state, but by a timer that moves one of the others."""

    active_opens: int
    passive_opens: int
    curr_estab: int
    segments: int = 0


def parse_snmp_tcp(data: bytes) -> SnmpTcp:
    """The Tcp counters of one snmp file. Raises: Malformed. Source: snmp_seq_show_tcp_udp(), net/ipv4/proc.c."""
    try:
        header = data.index(_TCP_COLUMNS)
        values = rest_of_line(data, b"\nTcp: ", header + len(_TCP_COLUMNS)).split(None, 11)
        return SnmpTcp(int(values[4]), int(values[5]), int(values[8]), int(values[9]) + int(values[10]))
    except (IndexError, ValueError):
        raise Malformed(f"snmp: no Tcp line with the known columns in {len(data)} bytes") from None


def read_snmp_tcp(root: ProcRoot, task: Task) -> SnmpTcp:
    """The TCP counters of the task's namespace. Raises: Vanished, Denied, Malformed."""
    return parse_snmp_tcp(read_net_file(root, task, "snmp", in_one=True))
