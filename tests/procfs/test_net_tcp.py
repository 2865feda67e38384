from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Vanished
from pipeline.kernel.enter import inside, open_netns
from pipeline.model.connection import Family
from pipeline.model.process import Task
from pipeline.model.socket_row import SocketRow
from pipeline.procfs.net_tcp import parse_net_table, read_net_table
from pipeline.procfs.root import ProcRoot
from tests.fake_root import recorded
from tests.live import LiveNetns, connect_pairs, needs_root

FAMILIES = {"tcp": Family.INET, "tcp6": Family.INET6, "udp": Family.INET, "udp6": Family.INET6}
PAD = bytes(12)


def packed(address: str) -> bytes:
    """An address as rows hold it: 16 bytes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address).ljust(16, b"\0")


def port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def read(scenario: str, pid: int, table: str) -> tuple[list[SocketRow], list[str]]:
    """The rows of a recorded table, and what was said of its malformed lines."""
    said: list[str] = []
    rows = read_net_table(
        recorded(scenario), Task(pid, pid), table, FAMILIES[table], lambda error: said.append(str(error))
    )
    return rows, said


def test_rows_of_tcp_in_file_order() -> None:
    assert read("two_namespaces", 71, "tcp") == (
        [
            (2, 10, port(2024), port(0), packed("0.0.0.0"), packed("0.0.0.0"), 0, 0, 0, 321),
            (2, 1, port(42688), port(0), packed("0.0.0.0"), packed("0.0.0.0"), 0, 0, 1000, 5107),
            (2, 6, port(50214), port(2024), packed("127.0.0.1"), packed("127.0.0.1"), 0, 0, 0, 0),
            (2, 6, port(50216), port(2024), packed("127.0.0.1"), packed("127.0.0.1"), 0, 0, 0, 0),
        ],
        [],
    )


def test_rows_of_tcp6_with_a_mapped_address() -> None:
    rows, said = read("two_namespaces", 71, "tcp6")
    assert said == []
    assert rows == [
        (10, 10, port(36537), port(0), packed("::"), packed("::"), 0, 0, 0, 322),
        (
            10,
            1,
            port(54812),
            port(443),
            packed("2003:45:2b69:be00:bd1e:e38a:109d:9d91"),
            packed("2a00:1450:4005:808::1015"),
            0,
            0,
            1000,
            36856710,
        ),
        (
            10,
            8,
            port(36537),
            port(50214),
            packed("::ffff:127.0.0.1"),
            packed("::ffff:127.0.0.1"),
            0,
            0,
            0,
            323,
        ),
    ]


def test_rows_of_udp_and_udp6() -> None:
    assert read("two_namespaces", 71, "udp") == (
        [(2, 7, port(5353), port(0), packed("127.0.0.1"), packed("0.0.0.0"), 0, 0, 101, 324)],
        [],
    )
    assert read("two_namespaces", 71, "udp6") == (
        [(10, 1, port(5353), port(53), packed("::1"), packed("::1"), 0, 0, 101, 325)],
        [],
    )


def test_a_table_that_this_kernel_lacks_has_no_rows() -> None:
    assert read("two_namespaces", 72, "tcp6") == ([], [])


def test_a_process_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        read("two_namespaces", 99, "tcp6")


def test_nonsense_short_addresses_and_a_cut_last_row_leave_the_other_rows() -> None:
    rows, said = read("broken", 71, "tcp")
    assert [row[9] for row in rows] == [5107, 5109]
    assert [text.split(":")[0] for text in said] == [
        "net table, line 3",
        "net table, line 4",
        "net table, line 6",
    ]


def test_a_last_row_cut_inside_its_inode_is_malformed_and_not_another_socket() -> None:
    rows, said = read("broken", 71, "tcp6")
    assert [row[9] for row in rows] == [36856710]
    assert [text.split(":")[0] for text in said] == ["net table, line 2", "net table, line 4"]
    assert said[1].startswith("net table, line 4: cut short")


def test_an_ipv6_table_read_as_ipv4_is_malformed_in_every_row() -> None:
    said: list[Malformed] = []
    text = recorded("two_namespaces").read("71/net/tcp6")
    assert parse_net_table(text, Family.INET, said.append) == []
    assert len(said) == 3


@given(st.binary(max_size=400), st.sampled_from([Family.INET, Family.INET6]))
def test_any_bytes_give_rows_or_a_malformed_for_each_line(data: bytes, family: Family) -> None:
    said: list[Malformed] = []
    rows = parse_net_table(data, family, said.append)
    assert len(rows) + len(said) <= data.count(b"\n") + 1


@given(st.integers(min_value=0, max_value=700), st.sampled_from(["tcp", "tcp6", "udp", "udp6"]))
def test_a_table_cut_anywhere_gives_the_rows_before_the_cut(length: int, table: str) -> None:
    said: list[Malformed] = []
    text = recorded("two_namespaces").read(f"71/net/{table}")
    whole = parse_net_table(text, FAMILIES[table], said.append)
    cut = parse_net_table(text[:length], FAMILIES[table], said.append)
    assert cut == whole[: len(cut)]
    assert len(cut) == max(text[:length].count(b"\n") - 1, 0)


octets = st.binary(min_size=4, max_size=4)


@given(
    octets,
    octets,
    st.integers(0, 65535),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_a_printed_row_comes_back(
    local: bytes, remote: bytes, local_port: int, state: int, uid: int, inode: int
) -> None:
    # As the kernel prints on a little-endian machine: each address as one number.
    printed = [f"{int.from_bytes(address, 'little'):08X}:{local_port:04X}" for address in (local, remote)]
    line = f"   0: {printed[0]} {printed[1]} {state:02X} 0:0 00:0 0 {uid:5d} 0 {inode} 1 0\n"
    said: list[Malformed] = []
    assert parse_net_table(line.encode(), Family.INET, said.append) == [
        (2, state, port(local_port), port(local_port), local + PAD, remote + PAD, 0, 0, uid, inode)
    ]


@needs_root
def test_text_tables_of_a_live_namespace_agree_with_ss() -> None:
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with inside(netns_fd), open(netns_fd, closefd=True):
            sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 23) + connect_pairs(
                socket.AF_INET6, "::1", 23
            )
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                udp = socket.socket(family, socket.SOCK_DGRAM)
                udp.bind((address, 0))
                sockets.append(udp)
        said: list[Malformed] = []
        rows = {
            table: read_net_table(ProcRoot(), Task(netns.pid, netns.pid), table, family, said.append)
            for table, family in FAMILIES.items()
        }
        assert said == []
        assert {table: len(found) for table, found in rows.items()} == {
            "tcp": 47,
            "tcp6": 47,
            "udp": 1,
            "udp6": 1,
        }
        tcp_inodes = {row[9] for row in rows["tcp"] + rows["tcp6"]}
        udp_inodes = {row[9] for row in rows["udp"] + rows["udp6"]}
        assert tcp_inodes == {inode for inode, _ in netns.ss("-t")}
        assert udp_inodes == {inode for inode, _ in netns.ss("-u")}
        own_ports = {sock.getsockname()[1] for sock in sockets}
        assert {int.from_bytes(row[2], "big") for found in rows.values() for row in found} == own_ports
        for sock in sockets:
            sock.close()
