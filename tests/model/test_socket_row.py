from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.connection import Connection, Family, Proto
from pipeline.model.socket_row import SocketRow, socket_key, to_connection

V4 = bytes((10, 0, 0, 2)) + bytes(12)
V6 = bytes(15) + b"\x01"


def row(family: int = Family.INET, dport: bytes = b"\x01\xbb", cookie: int = 0, inode: int = 0) -> SocketRow:
    address = V4 if family == Family.INET else V6
    return (family, 1, b"\x00\x50", dport, address, address, 3, cookie, 1000, inode)


def test_the_cookie_is_the_key_where_there_is_one() -> None:
    assert socket_key(row(cookie=4163, inode=5107), Proto.TCP) == 4163


def test_without_cookie_the_key_is_minus_the_inode() -> None:
    assert socket_key(row(inode=5107), Proto.TCP) == -5107


def test_rows_with_neither_have_a_key_by_tuple_protocol_and_device() -> None:
    keys = [
        socket_key(row(), Proto.TCP),
        socket_key(row(), Proto.UDP),
        socket_key(row(dport=b"\x01\xbc"), Proto.TCP),
        socket_key(row(family=Family.INET6), Proto.TCP),
        socket_key((*row()[:6], 4, *row()[7:]), Proto.TCP),
    ]
    assert len(set(keys)) == 5
    assert keys[0] == b"\x06\x02\x00\x50\x01\xbb" + V4 + V4 + b"\x00\x00\x00\x03"


def test_to_connection_shortens_ipv4_addresses_and_reads_ports() -> None:
    assert to_connection(row(cookie=9, inode=5107), Proto.TCP, 9, "eth0") == Connection(
        9, 6, 2, 1, b"\x0a\x00\x00\x02", 80, b"\x0a\x00\x00\x02", 443, "eth0", 5107, 9, 1000
    )
    assert to_connection(row(family=Family.INET6), Proto.UDP, -1, None)[4:8] == (V6, 80, V6, 443)


@given(st.integers(0, 65535))
def test_every_port_is_read_in_network_order(number: int) -> None:
    connection = to_connection(row(dport=number.to_bytes(2, "big")), Proto.TCP, 1, None)
    assert connection.remote_port == number
