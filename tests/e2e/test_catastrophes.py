"""Each process of the pipeline killed or stopped: answers go on, and become complete again."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Host
from tests.e2e.host import Server, is_alive, named_netns, pipeline, quick, seconds_until
from tests.live import needs_root

pytestmark = needs_root

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[A-Z]+) (?P<role>[a-z]+)\[\d+\](?P<netns> netns=\d+)? ."
)


def worker(host: Host) -> int:
    return host.running.worker_of(host.alpha.inode)


def aggregator(host: Host) -> int:
    (pid,) = host.running.pids("aggregator")
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced_while_its_rows_stay_answerable(
    host: Host, number: signal.Signals
) -> None:
    dead = worker(host)
    os.kill(dead, number)
    assert len(host.running.connections(netns=host.alpha.inode, established=True)) == 46
    port = host.server.tell("listen")
    seconds_until(
        lambda: bool(host.running.connections(netns=host.alpha.inode, local_port=port, pid=host.server.pid)),
        5.0,
        f"a change after {number.name} of its worker",
    )
    seconds_until(host.is_complete, 5.0, "complete again")
    seconds_until(lambda: dead not in host.running.pids("netns"), 5.0, "another pid in status")
    assert "the worker of 1 namespaces ended" in host.running.log


@pytest.mark.parametrize("victims", ["netns", "nursery", "everything"])
def test_many_processes_that_die_at_once_are_all_replaced(host: Host, victims: str) -> None:
    workers, supervisor = set(host.running.pids("netns")), host.running.process.pid
    pids = {
        "netns": workers,
        # What the workers were forked from, where that is not the supervisor itself.
        "nursery": {psutil.Process(pid).ppid() for pid in workers} - {supervisor},
        "everything": {child.pid for child in psutil.Process(supervisor).children(recursive=True)},
    }[victims]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    port = host.server.tell("listen")
    seconds_until(
        lambda: bool(host.running.connections(netns=host.alpha.inode, local_port=port, pid=host.server.pid)),
        10.0,
        f"a change after the death of {victims}",
    )
    seconds_until(host.is_complete, 10.0, "complete again")
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_an_aggregator_that_dies_is_replaced_and_complete_from_the_segments(
    host: Host, number: signal.Signals
) -> None:
    before = host.running.status()
    os.kill(aggregator(host), number)
    seconds_until(host.is_complete, 5.0, f"complete again after {number.name} of the aggregator")
    after = host.running.status()
    assert after["epoch"] != before["epoch"]
    # Walkers did not notice.
    netns = {one["pid"] for one in before["workers"] if one["role"] == "netns"}
    assert netns == set(host.running.pids("netns"))
    port = host.server.tell("listen")
    seconds_until(
        lambda: bool(host.running.connections(netns=host.alpha.inode, local_port=port)),
        10.0,
        "a change after it",
    )


def test_a_new_aggregator_reads_what_a_dead_worker_left_in_its_segment(host: Host) -> None:
    """The worker is stopped, so only its segment can tell."""
    stopped = worker(host)
    os.kill(stopped, signal.SIGSTOP)
    try:
        os.kill(aggregator(host), signal.SIGKILL)
        seconds_until(
            lambda: len(host.running.connections(netns=host.alpha.inode, established=True)) == 46,
            5.0,
            "the stopped worker's rows in the new aggregator",
        )
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_the_rows_of_a_stopped_worker_become_stale_and_others_go_on(host: Host) -> None:
    stopped = worker(host)
    os.kill(stopped, signal.SIGSTOP)
    try:
        seconds_until(
            lambda: all(row["stale"] for row in host.running.connections(netns=host.alpha.inode)),
            10.0,
            "stale",
        )
        namespace = host.running.namespace(host.alpha.inode)
        assert namespace is not None
        assert (namespace["stale"], namespace["age_s"] > 3.0) == (True, True)
        seconds_until(lambda: host.running.knows_all(host.beta, host.other_server), 5.0, "others are fresh")
        port = host.other_server.tell("listen")
        seconds_until(
            lambda: bool(host.running.connections(netns=host.beta.inode, local_port=port)),
            5.0,
            "others go on",
        )
    finally:
        os.kill(stopped, signal.SIGCONT)
    seconds_until(host.is_complete, 5.0, "fresh again")


def test_a_namespace_that_is_emptied_while_its_worker_is_stopped_is_not_called_fresh(host: Host) -> None:
    """The counters of an empty namespace prove that nothing changed since the last look: not if that never came."""
    with named_netns(host.mounts, "e2e-emptied") as netns, contextlib.ExitStack() as opened:
        server = Server(netns)
        opened.callback(server.close)
        seconds_until(lambda: host.running.knows_all(netns, server), 10.0, "known")
        stopped = host.running.worker_of(netns.inode)
        os.kill(stopped, signal.SIGSTOP)
        try:
            server.tell("close all")
            seconds_until(
                lambda: all(row["stale"] for row in host.running.connections(netns=netns.inode)),
                10.0,
                "stale",
            )
        finally:
            os.kill(stopped, signal.SIGCONT)
        seconds_until(lambda: not host.running.connections(netns=netns.inode), 10.0, "empty")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_watched_namespace_that_is_deleted_frees_its_devices(host: Host, stopped: bool) -> None:
    with named_netns(host.mounts, "e2e-deleted") as netns:
        device = _add_veth(netns.path)
        assert device.exists()
        seconds_until(lambda: _has_been_looked_at(host, netns.inode), 10.0, "looked at")
        pid = host.running.worker_of(netns.inode)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        netns.remove()
        seconds_until(lambda: not device.exists(), 5.0, f"devices free (worker stopped: {stopped})")
        seconds_until(lambda: not is_alive(pid), 10.0, "the worker has ended")
        seconds_until(lambda: "e2e-deleted" not in host.running.names(), 5.0, "gone")


def _add_veth(path: Path) -> Path:
    """The end here, of a name that no other run of the tests on this host has, of one whose other end is there."""
    device = Path("/sys/class/net", f"e2e-{secrets.token_hex(4)}")
    veth = ["ip", "link", "add", device.name, "type", "veth", "peer", "name", "eth0", "netns"]
    with open(path) as netns_file:
        # iproute2 takes a pid or a name below /run/netns; /proc/PID/fd of this process does as a path.
        netns_path = f"/proc/{os.getpid()}/fd/{netns_file.fileno()}"
        subprocess.run([*veth, netns_path], check=True)
    return device


def _has_been_looked_at(host: Host, inode: int) -> bool:
    namespace = host.running.namespace(inode)
    return namespace is not None and (namespace["generation"] or 0) > 0


def test_a_namespace_appears_and_goes_with_its_name(host: Host) -> None:
    with named_netns(host.mounts, "e2e-brief"):
        seconds_until(lambda: "e2e-brief" in host.running.names(), 5.0, "listed")
    seconds_until(lambda: "e2e-brief" not in host.running.names(), 5.0, "gone")


def test_every_child_ends_with_a_killed_supervisor_and_the_next_start_sweeps(
    host: Host, tmp_path: Path
) -> None:
    config = quick(host.mounts, "e2e-alpha")
    with pipeline(tmp_path / "first", config=config) as first:
        seconds_until(first.is_ready, 30.0, "ready")
        children = [*first.pids("netns"), *first.pids("aggregator")]
        assert len(children) == 2
        segments = first.segments
        assert segments.exists()
        first.process.kill()
        seconds_until(lambda: not any(is_alive(pid) for pid in children), 5.0, "all children gone")
        with pipeline(tmp_path / "second", config=config) as second:
            seconds_until(second.is_ready, 30.0, "ready")
            assert not segments.exists()
            assert host.running.segments.exists()  # a living instance's are not swept
            with pipeline(tmp_path / "first", config=config) as third:
                seconds_until(third.is_ready, 30.0, "ready where the killed one was")
                ours = {second.segments, third.segments}
    assert not any(path.exists() for path in ours)


def test_every_line_of_the_log_tells_its_role_and_workers_tell_their_namespace(host: Host) -> None:
    # A worker that was stopped for longer than its pass may take says so when it goes on.
    stopped = worker(host)
    already = len(host.running.log)
    os.kill(stopped, signal.SIGSTOP)
    try:
        seconds_until(
            lambda: (host.running.namespace(host.alpha.inode) or {"age_s": 0.0})["age_s"] > 6.0,
            20.0,
            "stopped",
        )
    finally:
        os.kill(stopped, signal.SIGCONT)
    told = f"netns[{stopped}] netns={host.alpha.inode} a pass over"
    seconds_until(lambda: told in host.running.log[already:], 10.0, "the late pass is told")
    lines = [LINE.match(line) for line in host.running.log.splitlines()]
    assert None not in lines, host.running.log
    assert {match["role"] for match in lines if match} >= {"supervisor", "netns"}
    assert all(match["netns"] for match in lines if match and match["role"] == "netns")
