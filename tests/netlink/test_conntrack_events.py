from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from pipeline.errors import Denied, EventsLost
from pipeline.kernel.enter import inside, open_netns
from pipeline.netlink.conntrack_events import FlowEvent, FlowEvents, FlowGroup
from pipeline.netlink.conntrack_message import FlowDecoder
from pipeline.netlink.nsid import open_route, read_nsid
from tests.live import LiveNetns, in_child, needs_root, wait_until
from tests.translating import (
    Seen,
    close_flows,
    end_entries,
    flows_through,
    join_with_host,
    listed,
    own_translation,
    program,
    routed,
    seen,
)

pytestmark = needs_root

DEADLINE_S = 60.0
BOTH_NAT = 0x30


class Hearing:
    """All events so far of the namespace with this nsid: others of this host may translate as well. Lost ones are an
    error."""

    def __init__(self, events: FlowEvents, nsid: int | None = None) -> None:
        self.events = events
        self.nsid = nsid
        self.decoder = FlowDecoder()
        self.heard: list[FlowEvent] = []

    def keys(self, kind: FlowGroup) -> set[bytes]:
        received = self.events.receive(self.decoder, 100_000)
        self.heard += [event for event in received if event.nsid == self.nsid]
        return {event.flow.key for event in self.heard if event.kind is kind}

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, DEADLINE_S)


def nsid_of(live: LiveNetns) -> int | None:
    netns_fd = open_netns(live.path, live.inode)
    try:
        with open_route() as route:
            return read_nsid(route, netns_fd)
    finally:
        os.close(netns_fd)


def hear_inside(live: LiveNetns, *groups: FlowGroup) -> FlowEvents:
    """A subscription in the namespace itself, as of a pipeline that lives there."""
    netns_fd = open_netns(live.path, live.inode)
    try:
        with inside(netns_fd):
            return FlowEvents(groups)
    finally:
        os.close(netns_fd)


def test_flows_of_a_namespace_with_an_nsid_are_heard_from_outside_it() -> None:
    with routed() as router:
        join_with_host(router.router)
        hearing = Hearing(FlowEvents(), nsid_of(router.router))
        with flows_through(router, 5) as client:
            hearing.wait(lambda: len(hearing.keys(FlowGroup.NEW)) >= 20)
            hearing.wait(lambda: len(hearing.keys(FlowGroup.UPDATE)) >= 20)
            close_flows(client)
            end_entries(router.router)
        began = hearing.keys(FlowGroup.NEW)
        hearing.wait(lambda: hearing.keys(FlowGroup.DESTROY) >= began)
        assert {event.flow.status & BOTH_NAT for event in hearing.heard} == {BOTH_NAT}
        assert hearing.decoder.malformed == 0
        hearing.events.close()


def test_flows_of_a_namespace_without_nsid_are_not_heard() -> None:
    with routed() as router, own_translation() as other:
        join_with_host(other)
        assert nsid_of(router.router) is None
        events, decoder = FlowEvents(), FlowDecoder()
        heard: set[Seen] = set()
        with flows_through(router, 1):
            silent = listed(router.router)
            # Whatever was to be heard of those comes before this.
            with program(other, ASK, "53"):
                audible = listed(other)
                end_s = time.monotonic() + DEADLINE_S
                while not audible <= heard and time.monotonic() < end_s:
                    heard |= {seen(event.flow) for event in events.receive(decoder, 100_000)}
        assert (audible <= heard, heard & silent, len(silent) >= 4) == (True, set(), True)
        events.close()


ASK = """
import socket, sys
held = []
for port in sys.argv[1:]:
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].sendto(b"x", ("192.0.2.1", int(port)))
print("ready", flush=True)
sys.stdin.read()
"""


def test_flows_of_our_own_namespace_have_no_nsid_and_those_not_translated_are_not_heard() -> None:
    with own_translation() as live:
        hearing = Hearing(hear_inside(live, FlowGroup.NEW))
        with program(live, ASK, "9", "9", "53", "9", "54"):
            hearing.wait(lambda: len(hearing.keys(FlowGroup.NEW)) >= 2)
        assert [(event.nsid, event.flow.original_dport) for event in hearing.heard] == [
            (None, 53),
            (None, 54),
        ]
        hearing.events.close()


# Each datagram to another port is a flow of its own.
FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(10, 30010):
    try:
        sock.sendto(b"x", ("192.0.2.1", port))
    except OSError:
        pass
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_flood_that_is_not_read_is_told_as_lost_once_and_the_rest_is_heard() -> None:
    with own_translation() as live:
        events, decoder = hear_inside(live, FlowGroup.NEW), FlowDecoder()
        with program(live, FLOOD):
            with pytest.raises(EventsLost):
                events.receive(decoder, 100_000)
            kept = events.receive(decoder, 100_000)
            assert 1000 < len(kept) < 30_000
            with program(live, ASK, "30011"):
                end_s = time.monotonic() + DEADLINE_S
                later: list[FlowEvent] = []
                while not later and time.monotonic() < end_s:
                    later = events.receive(decoder, 100_000)
                assert [event.flow.original_dport for event in later] == [30011]
        events.close()


def test_a_limit_leaves_the_rest_for_the_next_time() -> None:
    with own_translation() as live:
        events, decoder = hear_inside(live, FlowGroup.NEW), FlowDecoder()
        with program(live, ASK, *(str(port) for port in range(100, 107))):
            found = [event.flow.original_dport for _ in range(4) for event in events.receive(decoder, 2)]
        assert found == list(range(100, 107))
        events.close()


def test_an_ordinary_user_is_denied() -> None:
    def listen() -> str:
        os.setuid(65534)
        try:
            FlowEvents()
        except Denied as error:
            return error.capability
        return ""

    assert in_child(listen) == "CAP_NET_ADMIN"
