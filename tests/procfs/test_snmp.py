from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Vanished
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.snmp import SnmpTcp, parse_snmp_tcp, read_snmp_tcp
from tests.fake_root import recorded
from tests.live import LiveNetns, connect_pairs, needs_root


def test_read_snmp_of_recorded_namespaces() -> None:
    root = recorded("two_namespaces")
    assert read_snmp_tcp(root, Task(71, 71)) == SnmpTcp(
        active_opens=1201, passive_opens=907, curr_estab=3, segments=427
    )
    assert read_snmp_tcp(root, Task(72, 72)) == SnmpTcp(0, 17, 0, 427)


@pytest.mark.parametrize("pid", [71, 72])
def test_unknown_columns_and_a_cut_line_are_malformed(pid: int) -> None:
    with pytest.raises(Malformed):
        read_snmp_tcp(recorded("broken"), Task(pid, pid))


def test_a_namespace_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        read_snmp_tcp(recorded("two_namespaces"), Task(99, 99))


@given(st.binary(max_size=100), st.integers(min_value=0, max_value=1400))
def test_any_bytes_give_counters_or_malformed(data: bytes, length: int) -> None:
    whole = recorded("two_namespaces").read("71/net/snmp")
    for text in (data, whole[:length], whole[:length] + data):
        try:
            parse_snmp_tcp(text)
        except Malformed:
            continue


@needs_root
def test_opens_of_both_families_are_counted_and_stay_after_the_close() -> None:
    with LiveNetns() as netns:
        task = Task(netns.pid, netns.pid)
        assert read_snmp_tcp(ProcRoot(), task) == SnmpTcp(0, 0, 0)
        netns_fd = open_netns(netns.path, netns.inode)
        with inside(netns_fd), open(netns_fd, closefd=True):
            sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 5) + connect_pairs(socket.AF_INET6, "::1", 3)
        during = read_snmp_tcp(ProcRoot(), task)
        assert during[:3] == (8, 8, 16)
        assert during.segments >= 8 * 3 * 2  # three of each handshake, sent and received
        for sock in sockets:
            sock.close()
        after = read_snmp_tcp(ProcRoot(), task)
        assert (after.active_opens, after.passive_opens, after.curr_estab) == (8, 8, 0)
        assert after.segments > during.segments
