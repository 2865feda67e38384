from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed
from pipeline.model.flow import Flow
from pipeline.netlink.conntrack_message import FlowDecoder, decode_flow
from tests.netlink.conntrack_entries import (
    CONFIRMED,
    CT_DELETE,
    DST_NAT,
    RECORDED_TCP4,
    RECORDED_TCP6,
    RECORDED_UDP4,
    RECORDED_UDP6,
    SRC_NAT,
    Side,
    attribute,
    entry,
    message,
    nest,
    side_attribute,
    status_attribute,
    tcp_state,
)

TCP, UDP, ICMP = 6, 17, 1


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def side(source: str, sport: int, target: str, dport: int) -> Side:
    return Side(ip(source), sport, ip(target), dport)


def key(proto: int, original: Side, zone: int = 0) -> bytes:
    numbers = struct.pack(">BHHH", proto, zone, original.sport, original.dport)
    return numbers + original.src + original.dst


def flow(
    original: Side, reply: Side, proto: int, status: int, state: int | None = None, zone: int = 0
) -> Flow:
    family = 2 if len(original.src) == 4 else 10
    return Flow(key(proto, original, zone), proto, family, *original, *reply, status, state)


CLIENT4 = side("10.77.0.2", 51634, "10.77.0.100", 80)
SERVER4 = side("10.77.1.2", 8080, "10.77.1.1", 51634)

# What conntrack -L showed of the same entries.
RECORDED = {
    RECORDED_TCP4: flow(CLIENT4, SERVER4, TCP, 0x1BE, 7),
    RECORDED_UDP4: flow(
        side("10.77.0.2", 55097, "10.77.0.100", 53), side("10.77.1.2", 5353, "10.77.1.1", 55097), UDP, 0x1BA
    ),
    RECORDED_TCP6: flow(
        side("fd77::2", 38050, "fd77::100", 80), side("fd77:0:0:1::2", 8080, "fd77:0:0:1::1", 38050), TCP, 0x1BE, 7
    ),
    RECORDED_UDP6: flow(
        side("fd77::2", 51955, "fd77::100", 53), side("fd77:0:0:1::2", 5353, "fd77:0:0:1::1", 51955), UDP, 0x1BA
    ),
}  # fmt: skip

ports = st.integers(0, 0xFFFF)


def sides(size: int) -> st.SearchStrategy[Side]:
    addresses = st.binary(min_size=size, max_size=size)
    return st.builds(Side, addresses, ports, addresses, ports)


both_sides = st.one_of(st.tuples(sides(4), sides(4)), st.tuples(sides(16), sides(16)))
# Attributes that a kernel puts behind the status, or leaves out: mark, counters, use.
MARK, COUNTERS, USE = attribute(8, b"\0\0\0\1"), nest(9, attribute(1, bytes(8))), attribute(11, b"\0\0\0\1")
optional = st.lists(st.sampled_from([MARK, COUNTERS, USE]), max_size=3)


@pytest.mark.parametrize("recorded", RECORDED)
def test_an_entry_that_a_kernel_sent_is_what_conntrack_shows_of_it(recorded: bytes) -> None:
    assert decode_flow(recorded) == RECORDED[recorded]


def test_known_layouts_give_what_the_walk_gives_in_the_same_order() -> None:
    messages = [*RECORDED, *RECORDED, *reversed(RECORDED)]
    assert FlowDecoder().decode(messages) == [RECORDED[one] for one in messages]


def test_dnat_is_seen_as_the_reply_s_source() -> None:
    """1.2.3.4:80 is 10.0.47.1:80."""
    original, reply = side("2.3.4.5", 22222, "1.2.3.4", 80), side("10.0.47.1", 80, "2.3.4.5", 22222)
    found = decode_flow(entry(original, reply, TCP, CONFIRMED | DST_NAT, tcp_state(3)))
    assert found is not None
    assert (found.reply_src, found.reply_sport) == (ip("10.0.47.1"), 80)
    assert found == flow(original, reply, TCP, CONFIRMED | DST_NAT, 3)


def test_snat_is_seen_as_the_reply_s_destination() -> None:
    """10.0.47.2:22222 appears outside as 2.3.4.5:22223."""
    original, reply = side("10.0.47.2", 22222, "1.2.3.4", 80), side("1.2.3.4", 80, "2.3.4.5", 22223)
    found = decode_flow(entry(original, reply, TCP, CONFIRMED | SRC_NAT, tcp_state(3)))
    assert found is not None
    assert (found.reply_dst, found.reply_dport) == (ip("2.3.4.5"), 22223)


@given(
    st.lists(st.tuples(both_sides, st.sampled_from([TCP, UDP]), st.integers(0, 0x3FF), optional), max_size=20)
)
def test_entries_of_any_length_come_out_as_the_walk_has_them(
    sent: list[tuple[tuple[Side, Side], int, int, list[bytes]]],
) -> None:
    decoder = FlowDecoder()
    messages = [
        entry(*both, proto, status, *more, *([tcp_state(3)] if proto == TCP else []))
        for both, proto, status, more in sent
    ]
    expected = [flow(*both, proto, status, 3 if proto == TCP else None) for both, proto, status, _ in sent]
    for _ in range(2):
        assert decoder.decode(messages) == expected
    assert decoder.malformed == 0


@given(st.lists(st.tuples(both_sides, st.integers(0, 0xFF)), max_size=20), st.integers(1, 0xFF))
def test_only_entries_with_a_wanted_bit_are_given(
    sent: list[tuple[tuple[Side, Side], int]], wanted: int
) -> None:
    decoder = FlowDecoder()
    messages = [entry(*both, UDP, status) for both, status in sent]
    for _ in range(2):
        assert decoder.decode(messages, wanted) == [
            flow(*both, UDP, status) if status & wanted else None for both, status in sent
        ]


def test_equal_lengths_with_other_attributes_do_not_take_one_for_the_other() -> None:
    """The same 8 bytes more: a mark before the state, and a use count behind it."""
    before = entry(CLIENT4, SERVER4, TCP, CONFIRMED, attribute(8, b"\0\0\0\1"), tcp_state(3))
    behind = entry(CLIENT4, SERVER4, TCP, CONFIRMED, tcp_state(5), attribute(11, b"\0\0\0\1"))
    assert len(before) == len(behind)
    found = FlowDecoder().decode([before, behind, before, behind])
    assert [one.tcp_state for one in found if one] == [3, 5, 3, 5]


def test_a_value_that_looks_like_a_header_changes_nothing() -> None:
    odd = Side(struct.pack("=HH", 8, 3), 0x0800, struct.pack("=HH", 52, 2 | 0x8000), 0x0300)
    messages = [RECORDED_TCP4, entry(odd, odd, TCP, CONFIRMED, tcp_state(1)), RECORDED_TCP4]
    found = FlowDecoder().decode(messages)
    assert found == [RECORDED[RECORDED_TCP4], flow(odd, odd, TCP, CONFIRMED, 1), RECORDED[RECORDED_TCP4]]


def test_the_zone_is_part_of_the_key() -> None:
    whole = entry(CLIENT4, SERVER4, UDP, CONFIRMED, attribute(18, b"\0\7"))
    of_tuple = message(
        2,
        side_attribute(1, CLIENT4, UDP, zone=9),
        side_attribute(2, SERVER4, UDP),
        status_attribute(CONFIRMED),
    )
    plain = entry(CLIENT4, SERVER4, UDP, CONFIRMED)
    for _ in range(2):
        found = FlowDecoder().decode([whole, of_tuple, plain, whole])
        assert [one.key for one in found if one] == [key(UDP, CLIENT4, zone) for zone in (7, 9, 0, 7)]


def test_the_key_of_an_end_is_that_of_the_beginning() -> None:
    ended = entry(CLIENT4, SERVER4, TCP, CONFIRMED, kind=CT_DELETE)
    began = entry(CLIENT4, SERVER4, TCP, CONFIRMED, tcp_state(1))
    found = FlowDecoder().decode([began, ended])
    assert [one.key for one in found if one] == [key(TCP, CLIENT4)] * 2


def test_other_protocols_are_none_of_ours_and_not_malformed() -> None:
    echo = nest(
        2, attribute(1, bytes((ICMP,))), attribute(4, b"\0\1"), attribute(5, b"\x08"), attribute(6, b"\0")
    )
    both = [
        nest(kind, nest(1, attribute(1, ip("10.0.0.1")), attribute(2, ip("10.0.0.2"))), echo)
        for kind in (1, 2)
    ]
    icmp = message(2, *both, status_attribute(CONFIRMED))
    decoder = FlowDecoder()
    assert decoder.decode([icmp, RECORDED_UDP4, icmp]) == [None, RECORDED[RECORDED_UDP4], None]
    assert decoder.malformed == 0


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        RECORDED_TCP4[:19],
        RECORDED_TCP4[:16] + b"\x07" + RECORDED_TCP4[17:],
        RECORDED_TCP4[:100],
        message(2, side_attribute(1, CLIENT4, TCP), status_attribute(CONFIRMED)),
        message(2, side_attribute(1, CLIENT4, TCP), side_attribute(2, SERVER4, TCP)),
        message(2, side_attribute(1, CLIENT4, TCP), side_attribute(2, SERVER4, TCP), attribute(3, b"\0\0")),
        message(10, side_attribute(1, CLIENT4, TCP), side_attribute(2, SERVER4, TCP), status_attribute(8)),
        message(2, nest(1), nest(2), status_attribute(CONFIRMED)),
    ],
)
def test_what_is_no_entry_is_malformed_and_counted(broken: bytes) -> None:
    with pytest.raises(Malformed):
        decode_flow(broken)
    decoder = FlowDecoder()
    assert decoder.decode([broken, RECORDED_TCP4, broken]) == [None, RECORDED[RECORDED_TCP4], None]
    assert decoder.malformed == 2


@given(st.binary(max_size=300), st.integers(0, 260), st.integers(0, 260))
def test_any_bytes_give_an_entry_or_malformed(noise: bytes, start: int, length: int) -> None:
    decoder = FlowDecoder()
    decoder.decode(RECORDED)
    for good in RECORDED:
        for data in (
            noise,
            good[:length],
            good[:start] + noise,
            good[:start] + noise + good[start + len(noise) :],
        ):
            (found,) = decoder.decode([data])
            try:
                walked = decode_flow(data)
            except Malformed:
                continue  # a known layout does not look at what stands between the attributes it wants
            assert found == walked
