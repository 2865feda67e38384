"""The conntrack worker inside the running pipeline: it may die, the aggregator may die, namespaces may go."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NoAggregator
from tests.e2e.host import NamedNetns, Pipeline, is_alive, named_netns, pipeline, quick, seconds_until
from tests.e2e.routers import Talker, translate
from tests.live import needs_root

pytestmark = needs_root

DEADLINE_S = 60.0
CONFIG = """
[conntrack]
interval_s = 0.2
idle_interval_s = 0.5
full_interval_s = 2
"""
# What a process here asks for, and where it gets to.
ASKED, REAL = "192.0.2.1", "127.0.0.1"


@pytest.fixture
def own_nat(tmp_path: Path) -> Iterator[tuple[NamedNetns, Talker]]:
    """A namespace that translates for its own processes, and one of them, which serves on port 8080."""
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with named_netns(mounts, "flows") as netns:
        netns.run("ip", "route", "add", f"{ASKED}/32", "dev", "lo", "src", REAL)
        translate(netns, "output", f"ip daddr {ASKED} tcp dport 80 dnat to {REAL}:8080", masquerade=False)
        with Talker(netns) as talker:
            talker.serve("tcp", REAL, 8080)
            yield netns, talker


@contextlib.contextmanager
def watching(folder: Path, more: str = CONFIG) -> Iterator[Pipeline]:
    with pipeline(folder, config=quick(folder / "netns", "flows") + more) as running:
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        yield running


def asked_ports(running: Pipeline) -> list[int]:
    """Of each established connection to the server as its client sees it: the port it asked for, by `nat`."""
    try:
        with running.client() as client:
            rows: list[dict[str, Any]] = client.connections(established=True, remote_port=80).rows
    except NoAggregator:
        return []
    return [row["nat"]["original"]["dport"] for row in rows if row["nat"] is not None]


def wait_for_flows(running: Pipeline, count: int) -> None:
    seconds_until(lambda: asked_ports(running) == [80] * count, DEADLINE_S, f"{count} translated connections")


def test_a_killed_conntrack_worker_is_started_again_and_knows_all_flows(
    tmp_path: Path, own_nat: tuple[NamedNetns, Talker]
) -> None:
    _, talker = own_nat
    talker.connect("tcp", ASKED, 80)
    with watching(tmp_path) as running:
        wait_for_flows(running, 1)
        (first,) = running.pids("conntrack")
        os.kill(first, signal.SIGKILL)
        talker.connect("tcp", ASKED, 80)
        wait_for_flows(running, 2)
        (second,) = running.pids("conntrack")
        assert first != second
        assert "Traceback" not in running.log
    assert not is_alive(second)


def test_a_new_aggregator_knows_all_flows_from_the_segments(
    tmp_path: Path, own_nat: tuple[NamedNetns, Talker]
) -> None:
    _, talker = own_nat
    talker.connect("tcp", ASKED, 80)
    with watching(tmp_path) as running:
        wait_for_flows(running, 1)
        (worker,) = running.pids("conntrack")
        (aggregator,) = running.pids("aggregator")
        # Nobody tells the next one anything that the segments do not hold.
        os.kill(worker, signal.SIGSTOP)
        try:
            os.kill(aggregator, signal.SIGKILL)
            seconds_until(lambda: not is_alive(aggregator), DEADLINE_S, "dead")
            wait_for_flows(running, 1)
        finally:
            with contextlib.suppress(ProcessLookupError):  # stopped inside a dump it is killed after a while
                os.kill(worker, signal.SIGCONT)


def test_a_translating_namespace_that_is_deleted_frees_its_devices_and_its_flows(
    tmp_path: Path, own_nat: tuple[NamedNetns, Talker]
) -> None:
    """The oracle is a veth, which gives the namespace an nsid as well."""
    netns, talker = own_nat
    device = Path("/sys/class/net") / f"flows-{secrets.token_hex(4)}"
    veth = [
        "ip",
        "link",
        "add",
        device.name,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        str(netns.path),
    ]
    subprocess.run(veth, check=True)
    with watching(tmp_path) as running:
        talker.connect("tcp", ASKED, 80)
        wait_for_flows(running, 1)
        segment = running.segments / f"flows-{netns.inode}"
        assert segment.exists()
        netns.remove()
        os.kill(talker.pid, signal.SIGKILL)
        seconds_until(lambda: not device.exists(), 20.0, "devices free")
        seconds_until(lambda: running.namespace(netns.inode) is None, 20.0, "gone")
        seconds_until(lambda: not segment.exists(), 20.0, "segment gone")
        assert "Traceback" not in running.log


def test_without_conntrack_there_is_no_such_process_and_nothing_is_translated(
    tmp_path: Path, own_nat: tuple[NamedNetns, Talker]
) -> None:
    _, talker = own_nat
    talker.connect("tcp", ASKED, 80)
    with watching(tmp_path, '[conntrack]\nmode = "off"\n') as running:
        seconds_until(lambda: len(running.connections(established=True)) == 2, DEADLINE_S, "connections")
        assert running.pids("conntrack") == {}
        assert asked_ports(running) == []
