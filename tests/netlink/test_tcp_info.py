"""What connections have carried: recorded messages, and against `ss -i`."""

from __future__ import annotations

import re
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kernel.enter import inside, open_netns
from pipeline.model.traffic import Figures
from pipeline.netlink.sock_diag import dump_tcp, open_diag
from pipeline.netlink.tcp_info import decode_traffic
from tests.live import LiveNetns, connect_pairs, needs_root, wait_until

TCP_INFO = struct.pack("=68xI28xI16xQQ", 417, 3, 1001, 2002) + bytes(100)


def message(cookie: int, *attributes: tuple[int, bytes], state: int = 1) -> bytes:
    """A socket's message: header and struct inet_diag_msg (88 bytes), then attributes."""
    body = struct.pack("=BB42xQ20x", 2, state, cookie)
    for kind, data in attributes:
        body += struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
    return struct.pack("=IHHII", 16 + len(body), 18, 2, 7, 0) + body


def decoded(*messages: bytes) -> dict[int, Figures]:
    (length,) = {len(one) for one in messages}
    return decode_traffic(b"".join(messages), length)


def test_figures_are_found_behind_other_attributes_and_by_cookie() -> None:
    attributes = ((8, b"\1"), (15, bytes(4)), (2, TCP_INFO))
    assert decoded(message(5, *attributes), message(6, *attributes)) == {
        5: Figures(1001, 2002, 417, 3),
        6: Figures(1001, 2002, 417, 3),
    }


def test_sockets_that_listen_or_have_no_figures_are_left_out() -> None:
    assert decoded(message(5, (2, TCP_INFO), state=10)) == {}
    assert decoded(message(5, (8, b"\1"))) == {}
    assert decoded(message(5)) == {}


def test_an_old_kernel_s_shorter_figures_are_none() -> None:
    assert decoded(message(5, (2, bytes(104)))) == {}


def test_a_message_whose_attributes_stand_elsewhere_has_no_figures_rather_than_wrong_ones() -> None:
    first = message(5, (8, b"\1"), (2, TCP_INFO))
    other = message(6, (2, TCP_INFO), (8, b"\1"))
    assert decoded(first, other) == {5: Figures(1001, 2002, 417, 3)}


@given(st.binary(min_size=88, max_size=400))
def test_any_bytes_give_figures_or_none(data: bytes) -> None:
    run = data[: len(data) & ~3]
    decode_traffic(run, len(run))


@needs_root
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_bytes_are_those_that_ss_shows(family: socket.AddressFamily, address: str) -> None:
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with open(netns_fd, closefd=True), open_diag(netns_fd) as diag:
            with inside(netns_fd):
                listener, client, server = connect_pairs(family, address, 1)
            try:
                client.sendall(bytes(70001))
                received = 0
                while received < 70001:
                    received += len(server.recv(65536))

                def is_settled() -> bool:
                    """The last acknowledgement has arrived."""
                    return 70001 + 1 in {
                        one.bytes_sent for one in dump_tcp(diag, traffic=True).traffic.values()
                    }

                wait_until(is_settled, 30.0)
                dump = dump_tcp(diag, traffic=True)
                assert len(dump.rows) == 3
                assert sorted(
                    (one.bytes_sent, one.bytes_received) for one in dump.traffic.values()
                ) == sorted(
                    (number_of(line, "bytes_acked"), number_of(line, "bytes_received"))
                    for line in netns.run("ss", "-HtnOi").splitlines()
                )
                assert dump_tcp(diag).traffic == {}
            finally:
                for one in (client, server, listener):
                    one.close()


def number_of(line: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", line)
    return int(found[1]) if found else 0
