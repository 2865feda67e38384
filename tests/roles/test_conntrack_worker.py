"""The conntrack worker, alive, on a line of its own: what it publishes of namespaces that translate."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.board import LOOKS, Board
from pipeline.clock import SystemClock
from pipeline.codec import decode_map
from pipeline.config import Budget, Config, Conntrack
from pipeline.kernel.enter import open_netns
from pipeline.kernel.libc import CLONE_NEWNET, CLONE_NEWUSER, setns, unshare
from pipeline.merge.latest import Latest, Verdict
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FlowHealth, FlowSnapshot, flows_from_wire
from pipeline.roles.conntrack_worker import ConntrackWorker
from pipeline.roles.control import Control
from pipeline.segment import read_segment
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
# Asked often; only the events can be quicker than the full interval.
OFTEN = Conntrack(interval_s=0.1, idle_interval_s=0.2, full_interval_s=0.5)
SELDOM = Conntrack(interval_s=0.1, idle_interval_s=0.2, full_interval_s=3600.0)


class Followed:
    """What a worker has said, put together as the aggregator does."""

    def __init__(self) -> None:
        self.snapshots: list[FlowSnapshot] = []
        self.flows: dict[int, dict[bytes, Flow]] = {}
        self.takes = True
        # What holds up `take`, and whether somebody is being held up.
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_held = threading.Event()
        self._latest = Latest()

    def take(self, payload: bytes) -> bool:
        if not self.may_go_on.is_set():
            self.is_held.set()
            assert self.may_go_on.wait(DEADLINE_S)
        if not self.takes:
            return False
        self.put(flows_from_wire(decode_map(payload)))
        return True

    def put(self, snapshot: FlowSnapshot) -> None:
        assert self._latest.offer(snapshot) is Verdict.APPLY
        self.snapshots.append(snapshot)
        flows = {} if snapshot.base else dict(self.flows.get(snapshot.netns, {}))
        for key in snapshot.gone_flows:
            flows.pop(key, None)
        flows.update((row[0], Flow(*row)) for row in snapshot.flows)
        self.flows[snapshot.netns] = flows

    def of(self, live: LiveNetns) -> set[Seen]:
        return {seen(flow) for flow in self.flows.get(live.inode, {}).values()}

    def health(self, live: LiveNetns) -> FlowHealth:
        return [one.health for one in self.snapshots if one.netns == live.inode][-1]


class Running(Followed):
    """A worker in a thread, with its control line and segments in `folder`."""

    def __init__(self, folder: Path, settings: Conntrack, cpu_percent: float = 400.0) -> None:
        super().__init__()
        self._folder = folder
        self._ours, self._theirs = Control.pair()
        self.slot = Board(1).slot(0)
        config = Config(conntrack=settings, budget=Budget(cpu_percent=cpu_percent))
        worker = ConntrackWorker(config, self._theirs, self.slot, self.take, SystemClock())
        self._thread = threading.Thread(target=worker.run)
        self._thread.start()

    def tell(self, **message: object) -> None:
        self._ours.send(message, 0.0)

    def assign(self, live: LiveNetns, life: int = 1) -> None:
        self.tell(op="assign", netns=live.inode, life=life, segment=self.segment(live), ways=[live.path])

    def segment(self, live: LiveNetns) -> str:
        return str(self._folder / f"flows-{live.inode}")

    def end(self) -> None:
        self.tell(op="stop")
        self._thread.join(timeout=DEADLINE_S)
        assert not self._thread.is_alive()
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with contextlib.ExitStack() as ends:

        def make(settings: Conntrack = OFTEN, cpu_percent: float = 400.0) -> Running:
            running = Running(tmp_path, settings, cpu_percent)
            ends.callback(running.end)
            return running

        yield make


def wait(condition: Callable[[], bool]) -> None:
    wait_until(condition, DEADLINE_S)


def test_flows_of_a_router_without_nsid_are_those_that_conntrack_lists(start: Callable[..., Running]) -> None:
    with routed() as router:
        running = start()
        for one in router:
            running.assign(one)
        with flows_through(router, 7) as client:
            wait(lambda: running.of(router.router) == listed(router.router))
            assert len(running.of(router.router)) >= 28
            close_flows(client)
        end_entries(router.router)
        wait(lambda: not running.of(router.router))
        assert running.health(router.router).events == 0
        # The others see the same traffic, and translate nothing of it.
        assert {one.netns for one in running.snapshots} == {router.router.inode}
        assert {one.cookie for one in running.snapshots} != {None}


def test_flows_of_a_router_with_an_nsid_are_told_by_events(start: Callable[..., Running]) -> None:
    with routed() as router:
        join_with_host(router.router)
        running = start(SELDOM)
        running.assign(router.router)
        wait(lambda: running.slot[LOOKS] >= 1)  # from here on it listens
        with flows_through(router, 7) as client:
            wait(lambda: running.of(router.router) == listed(router.router))
            health = running.health(router.router)
            # One socket hears all of this host: a flood elsewhere may cost events here, which are then read again.
            assert health.events >= 28 or health.events_lost
            assert health.flows_missed == 0
            close_flows(client)
        end_entries(router.router)
        wait(lambda: not running.of(router.router))
        health = running.health(router.router)
        assert health.dumps <= 1 + health.events_lost  # the first, and one for each loss


def test_entries_older_than_the_subscription_end_by_the_next_full_dump(start: Callable[..., Running]) -> None:
    """With nf_conntrack_events = 2 they never announce their end."""
    with routed() as router:
        join_with_host(router.router)
        with flows_through(router, 3):
            running = start()
            running.assign(router.router)
            wait(lambda: running.of(router.router) == listed(router.router) != set())
        end_entries(router.router)
        wait(lambda: not running.of(router.router))


def test_a_namespace_that_sends_no_events_is_asked_instead(start: Callable[..., Running]) -> None:
    with routed() as router:
        join_with_host(router.router)
        router.router.run("sh", "-c", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_events")
        running = start()
        running.assign(router.router)
        with flows_through(router, 3):
            wait(lambda: running.of(router.router) == listed(router.router) != set())
            assert running.health(router.router).events == 0


ASK = """
import socket, sys
held = []
for port in range(int(sys.argv[1]), int(sys.argv[2])):
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].sendto(b"x", ("192.0.2.1", port))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_namespace_that_translates_for_its_own_processes_is_found(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        running = start()
        running.assign(live)
        with program(live, ASK, "7", "30"):
            # Port 9 is tracked and not translated.
            wait(lambda: running.of(live) == {one for one in listed(live) if one[4] != 9} != set())
            assert {one[4] for one in running.of(live)} == set(range(7, 30)) - {9}


def test_the_worker_s_own_namespace_is_told_by_events(tmp_path: Path) -> None:
    with own_translation() as live:

        def follow() -> tuple[set[int], int, bool]:
            netns_fd = open_netns(live.path, live.inode)
            setns(netns_fd, CLONE_NEWNET)
            os.close(netns_fd)
            running = Running(tmp_path, SELDOM)
            running.assign(live)
            wait(lambda: running.slot[LOOKS] >= 1)  # from here on it listens
            with program(live, ASK, "20", "43"):
                wait(lambda: len(running.of(live)) == 23)
            running.end()
            health = running.health(live)
            return {one[4] for one in running.of(live)}, health.events, health.dumps <= 1

        assert in_child(follow) == (set(range(20, 43)), 23, True)


def test_what_begins_while_nobody_listens_and_changes_no_count_is_found_by_the_next_dump(
    start: Callable[..., Running],
) -> None:
    with own_translation() as live:
        running = start()
        running.assign(live)
        with program(live, ASK, "20", "31"):
            wait(lambda: len(running.of(live)) == 11)
        live.run("conntrack", "-D", "-p", "udp", "--orig-port-dst", "20")
        with program(live, ASK, "40", "41"):
            wait(lambda: {one[4] for one in running.of(live)} == {*range(21, 31), 40})


def test_a_second_worker_takes_back_what_the_first_one_said(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        first = start()
        first.assign(live)
        with program(live, ASK, "20", "31"):
            wait(lambda: len(first.of(live)) == 11)
        end_entries(live)
        first.tell(op="drop", netns=live.inode)
        second = start()
        second.assign(live, life=2)
        wait(lambda: len(second.snapshots) > 0)
        assert (second.snapshots[0].base, second.snapshots[0].life, list(second.snapshots[0].flows)) == (
            True,
            2,
            [],
        )


def test_the_segment_holds_what_was_sent_and_also_what_was_not(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        running = start()
        running.assign(live)
        with program(live, ASK, "20", "31"):
            wait(lambda: len(running.of(live)) == 11)
            running.takes = False
            with program(live, ASK, "40", "47"):

                def read() -> set[Seen]:
                    followed = Followed()
                    for payload in read_segment(running.segment(live)).payloads:
                        followed.take(payload)
                    return followed.of(live)

                wait(lambda: len(read()) == 18)
                assert read() == {one for one in listed(live) if one[4] != 9}


def test_more_flows_than_the_limit_are_left_out_and_counted(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        running = start(Conntrack(interval_s=0.1, idle_interval_s=0.2, full_interval_s=0.5, max_flows=7))
        running.assign(live)
        with program(live, ASK, "20", "31"):
            wait(lambda: len(running.of(live)) == 7)
        assert running.health(live).flows_over_limit >= 4


# 2,000 flows a second: UDP, and every eighth TCP, opened and closed.
SHORT = """
import socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", 2000), backlog=4096)
def serve():
    while True:
        listener.accept()[0].close()
threading.Thread(target=serve, daemon=True).start()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began_s = time.monotonic()
for index in range(8000):
    if index % 8 == 0:
        socket.create_connection(("192.0.2.1", 2000)).close()
    else:
        sock.sendto(b"x", ("192.0.2.1", 10_000 + index))
    time.sleep(max(0.0, began_s + index / 2000 - time.monotonic()))
print("ready", flush=True)
sys.stdin.read()
"""
# As fast as it goes.
FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(10, 30010):
    sock.sendto(b"x", ("192.0.2.1", port))
print("ready", flush=True)
sys.stdin.read()
"""


def test_after_two_thousand_short_flows_a_second_the_state_is_right(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        join_with_host(live)
        running = start()
        running.assign(live)
        wait(lambda: running.slot[LOOKS] >= 1)  # from here on it listens
        with program(live, SHORT):
            wait(lambda: running.of(live) == listed(live) != set())
            # A busy host drops datagrams before they are tracked, and never all of them.
            assert len(running.of(live)) > 2000
        assert running.health(live).rows_malformed == 0


def test_events_that_were_lost_are_counted_and_the_flows_are_read_again(
    start: Callable[..., Running],
) -> None:
    with own_translation() as live:
        join_with_host(live)
        running = start(SELDOM)
        running.assign(live)
        wait(lambda: running.slot[LOOKS] >= 1)  # from here on it listens
        running.may_go_on.clear()
        with program(live, ASK, "5", "6"):
            assert running.is_held.wait(DEADLINE_S)
            with program(live, FLOOD):
                running.may_go_on.set()
                wait(lambda: running.of(live) == listed(live) != set())
                assert len(running.of(live)) > 10_000
        health = running.health(live)
        assert (health.events_lost >= 1, health.events < 30_000, health.flows_missed) == (True, True, 0)


SPAM = """
import socket, sys, threading
def send():
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"x", ("10.77.0.100", 53))
            except OSError:
                pass
        ended.wait(0.001)
ended = threading.Event()
threading.Thread(target=send, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("has_nsid", [False, True])
def test_a_translating_namespace_that_is_deleted_while_flows_come_frees_its_devices(
    start: Callable[..., Running], has_nsid: bool
) -> None:
    """The oracle are two veths: the kernel frees them with the namespace, not before the last reference is gone."""
    running = start()
    with routed() as router:
        name = join_with_host(router.router) if has_nsid else None
        running.assign(router.router)
        with program(router.client, SPAM):
            wait(lambda: len(running.of(router.router)) > 50)
            os.kill(router.router.pid, signal.SIGKILL)
            wait(lambda: "to-router" not in router.client.run("ip", "-o", "link"))
            wait(lambda: name is None or not Path(f"/sys/class/net/{name}").exists())
        running.tell(op="drop", netns=router.router.inode)
    with own_translation() as live:
        running.assign(live, life=2)  # it may have been given the inode of the other one
        with program(live, ASK, "20", "31"):
            wait(lambda: len(running.of(live)) == 11)


def test_a_namespace_without_a_way_in_is_asked_once_there_is_one(start: Callable[..., Running]) -> None:
    with own_translation() as live:
        running = start()
        running.tell(op="assign", netns=live.inode, life=1, segment=running.segment(live), ways=[])
        with program(live, ASK, "20", "31"):
            wait(lambda: running.slot[LOOKS] >= 3)
            assert running.snapshots == []
            running.tell(op="ways", netns=live.inode, ways=["/nonexistent", live.path])
            wait(lambda: len(running.of(live)) == 11)
            assert running.health(live).dumps_vanished >= 3


def test_where_it_may_not_ask_it_says_that_it_is_blind(tmp_path: Path) -> None:
    def follow() -> list[tuple[bool, int, int]]:
        unshare(CLONE_NEWUSER)  # root, but no more over our network namespace
        running = Running(tmp_path, OFTEN)
        netns = os.stat("/proc/self/ns/net").st_ino
        running.tell(op="assign", netns=netns, life=1, segment=str(tmp_path / "flows"), ways=[])
        wait(lambda: running.slot[LOOKS] >= 3)
        running.end()
        return [(one.base, len(one.flows), one.health.dumps_denied) for one in running.snapshots]

    assert in_child(follow) == [(True, 0, 1)]
