from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Denied, Malformed
from pipeline.kernel.enter import open_netns
from pipeline.model.flow import FlowStatus
from pipeline.netlink.conntrack import Split, count_entries, dump_translated, open_conntrack, split_dump
from pipeline.netlink.conntrack_message import FlowDecoder
from tests.live import LiveNetns, in_child, needs_root
from tests.netlink.conntrack_entries import RECORDED_TCP4, RECORDED_TCP6, RECORDED_UDP4
from tests.translating import flows_through, listed, own_translation, program, routed, seen

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLM_F_MULTI, NLM_F_DUMP_INTR = 2, 16
# So many that the kernel is asked for translated ones only.
MANY = 1_000_000


def end(kind: int, error: int = 0, flags: int = NLM_F_MULTI) -> bytes:
    return struct.pack("=IHHIIi", 20, kind, flags, 1, 0, -error)


def test_a_read_is_cut_into_its_messages() -> None:
    noop = struct.pack("=IHHII", 16, NLMSG_NOOP, 0, 1, 0)
    sent = [RECORDED_TCP4, RECORDED_TCP6, RECORDED_UDP4]
    assert split_dump(noop + b"".join(sent)) == Split(sent, False, False, 0)
    assert split_dump(b"".join(sent) + end(NLMSG_DONE)) == Split(sent, True, False, 0)


def test_errors_come_from_error_messages_and_from_the_last_message() -> None:
    assert split_dump(end(NLMSG_ERROR, errno.EPERM)) == Split([], True, False, errno.EPERM)
    assert split_dump(RECORDED_UDP4 + end(NLMSG_DONE, errno.EINVAL)) == Split(
        [RECORDED_UDP4], True, False, errno.EINVAL
    )


def test_an_interrupted_dump_is_told() -> None:
    marked = RECORDED_UDP4[:6] + struct.pack("=H", NLM_F_MULTI | NLM_F_DUMP_INTR) + RECORDED_UDP4[8:]
    assert split_dump(RECORDED_UDP4 + marked) == Split([RECORDED_UDP4, marked], False, True, 0)
    assert split_dump(end(NLMSG_DONE, flags=NLM_F_DUMP_INTR)).interrupted


@pytest.mark.parametrize(
    "broken",
    [b"\0", RECORDED_TCP4[:-4], RECORDED_TCP4 + b"\0\0\0\0", struct.pack("=IHHII", 8, 0x100, 0, 1, 0)],
)
def test_lengths_that_cannot_be_are_malformed(broken: bytes) -> None:
    with pytest.raises(Malformed):
        split_dump(broken)


@given(st.binary(max_size=300), st.integers(0, 260))
def test_any_bytes_give_messages_or_malformed(noise: bytes, length: int) -> None:
    for buffer in (noise, RECORDED_TCP4 + noise, RECORDED_TCP6[:length]):
        try:
            split_dump(buffer)
        except Malformed:
            continue


def open_in(live: LiveNetns) -> socket.socket:
    netns_fd = open_netns(live.path, live.inode)
    try:
        return open_conntrack(netns_fd)
    finally:
        os.close(netns_fd)


@needs_root
@pytest.mark.parametrize("untranslated", [0, MANY])
def test_flows_through_a_router_are_those_that_conntrack_lists(untranslated: int) -> None:
    """DNAT and masquerade at once; TCP and UDP, IPv4 and IPv6."""
    with routed() as router, flows_through(router, 7):
        decoder = FlowDecoder()
        with open_in(router.router) as sock:
            dump = dump_translated(sock, decoder, untranslated)
        assert (dump.interrupted, decoder.malformed) == (False, 0)
        expected = listed(router.router)
        assert {seen(flow) for flow in dump.flows} == expected
        assert len(dump.flows) == len(expected)
        by_kind = [(flow.proto, flow.family, flow.tcp_state) for flow in dump.flows]
        established = 3
        assert by_kind.count((6, 2, established)) == by_kind.count((6, 10, established)) == 7
        assert by_kind.count((17, 2, None)) >= 7 and by_kind.count((17, 10, None)) >= 7
        both = FlowStatus.SRC_NAT | FlowStatus.DST_NAT
        assert {flow.status & both for flow in dump.flows} == {both}


ASK_BOTH = """
import socket, sys
held = []
for index in range(41):
    for port in (9, 53):
        held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        held[-1].sendto(b"x", ("192.0.2.1", port))
print("ready", flush=True)
sys.stdin.read()
"""


@needs_root
@pytest.mark.parametrize("untranslated", [0, MANY])
def test_what_is_tracked_and_not_translated_is_left_out(untranslated: int) -> None:
    with own_translation() as live, program(live, ASK_BOTH), open_in(live) as sock:
        assert count_entries(sock) == len(listed(live)) == 82
        dump = dump_translated(sock, FlowDecoder(), untranslated)
        assert {seen(flow) for flow in dump.flows} == {one for one in listed(live) if one[4] == 53}
        assert len(dump.flows) == 41
        assert {flow.status & 0x30 for flow in dump.flows} == {FlowStatus.DST_NAT}


@needs_root
def test_a_namespace_that_tracks_nothing_has_no_entries() -> None:
    with LiveNetns() as live, open_in(live) as sock:
        assert count_entries(sock) == 0
        assert dump_translated(sock, FlowDecoder(), 0) == ([], False)


@needs_root
def test_an_ordinary_user_is_denied() -> None:
    def ask() -> list[str]:
        os.setuid(65534)
        said = []
        with open_conntrack() as sock:
            for question in (lambda: count_entries(sock), lambda: dump_translated(sock, FlowDecoder(), 0)):
                try:
                    question()
                except Denied as error:
                    said.append(error.capability)
        return said

    assert in_child(ask) == ["CAP_NET_ADMIN", "CAP_NET_ADMIN"]
