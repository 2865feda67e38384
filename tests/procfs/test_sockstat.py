from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Vanished
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.sockstat import (
    Sockstat,
    Sockstat6,
    parse_sockstat,
    parse_sockstat6,
    read_sockstat,
    read_sockstat6,
)
from tests.fake_root import recorded
from tests.live import LiveNetns, connect_pairs, needs_root, wait_until


def test_read_sockstat_of_a_recorded_namespace() -> None:
    root = recorded("two_namespaces")
    assert read_sockstat(root, Task(71, 71)) == Sockstat(
        tcp_inuse=4, tcp_orphan=1, tcp_tw=2, udp_inuse=1, used=9
    )
    assert read_sockstat6(root, Task(71, 71)) == Sockstat6(tcp_inuse=3, udp_inuse=1)


def test_without_ipv6_its_counters_are_zero() -> None:
    assert read_sockstat6(recorded("two_namespaces"), Task(72, 72)) == Sockstat6(0, 0)


def test_a_namespace_that_is_gone_vanished() -> None:
    for read in (read_sockstat, read_sockstat6):
        with pytest.raises(Vanished):
            read(recorded("two_namespaces"), Task(99, 99))


def test_missing_values_and_swapped_columns_are_malformed() -> None:
    for pid in (71, 72):
        with pytest.raises(Malformed):
            read_sockstat(recorded("broken"), Task(pid, pid))
    with pytest.raises(Malformed):
        read_sockstat6(recorded("broken"), Task(71, 71))


@given(st.binary(max_size=100))
def test_any_bytes_give_counters_or_malformed(data: bytes) -> None:
    for parse in (parse_sockstat, parse_sockstat6):
        for text in (data, b"\nTCP: inuse " + data + b"\nUDP: inuse 1\n", b"TCP6: inuse " + data):
            try:
                parse(text)
            except Malformed:
                continue


@needs_root
def test_counters_of_a_live_namespace() -> None:
    with LiveNetns() as netns:
        task = Task(netns.pid, netns.pid)
        netns_fd = open_netns(netns.path, netns.inode)
        with inside(netns_fd), open(netns_fd, closefd=True):
            sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 5) + connect_pairs(socket.AF_INET6, "::1", 3)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
        stat, stat6 = read_sockstat(ProcRoot(), task), read_sockstat6(ProcRoot(), task)
        assert (stat.tcp_inuse, stat.tcp_tw, stat.udp_inuse) == (11, 0, 1)
        assert stat6 == Sockstat6(7, 0)
        # The client, which closes first, goes into TIME_WAIT.
        sockets[1].close()
        sockets[2].close()

        def counted() -> tuple[int, int]:
            now = read_sockstat(ProcRoot(), task)
            return now.tcp_inuse, now.tcp_tw

        # Each end has to hear of the other's first.
        wait_until(lambda: counted() == (9, 1))
        for sock in (*sockets, udp):
            sock.close()
