"""The addresses of a namespace, by rtnetlink: against `ip`, and on any bytes."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Unsupported
from pipeline.netlink.addresses import decode_addresses, read_addresses
from tests.live import LiveNetns, needs_root


def message(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = bytes(8)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


NEW_ADDRESS, DONE = 20, message(3)
V4, PEER, V6 = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02", b"\xfd" + bytes(14) + b"\x01"


def test_own_address_is_taken_and_not_that_of_the_other_end() -> None:
    buffer = message(NEW_ADDRESS, (1, PEER), (2, V4)) + message(NEW_ADDRESS, (1, V6), (8, b"abcd")) + DONE
    assert decode_addresses(buffer) == ([V4, V6], True)


def test_dump_in_several_reads_goes_on_until_its_end() -> None:
    assert decode_addresses(message(NEW_ADDRESS, (1, V6))) == ([V6], False)
    assert decode_addresses(message(NEW_ADDRESS)) == ([], False)


def test_refusal_of_the_kernel_is_unsupported() -> None:
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -95)
    with pytest.raises(Unsupported, match="not supported"):
        decode_addresses(refusal)


@pytest.mark.parametrize(
    "broken",
    [b"\x00" * 15, message(NEW_ADDRESS)[:-1], message(NEW_ADDRESS, (1, b"12345")), b"\x0f" + DONE[1:]],
)
def test_broken_message_is_malformed(broken: bytes) -> None:
    with pytest.raises(Malformed):
        decode_addresses(broken)


@given(st.binary(max_size=120))
def test_any_bytes_are_addresses_or_malformed(data: bytes) -> None:
    try:
        addresses, _ = decode_addresses(data)
    except (Malformed, Unsupported):
        return
    assert all(len(address) in (4, 16) for address in addresses)


@needs_root
def test_addresses_of_a_namespace_are_those_that_ip_shows() -> None:
    with LiveNetns() as netns:
        for address in ("10.9.8.7/24", "10.9.8.6/24", "fd00:9::7/64"):
            netns.run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        netns_fd = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = read_addresses(netns_fd)
        finally:
            os.close(netns_fd)

    texts = {socket.inet_ntop(socket.AF_INET if len(one) == 4 else socket.AF_INET6, one) for one in found}
    assert texts == {"127.0.0.1", "::1", "10.9.8.7", "10.9.8.6", "fd00:9::7"}
