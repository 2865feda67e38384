"""Following a running pipeline: what comes over the feed, and that a copy always comes to the aggregator's state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.client import AsyncClient, Change, Feed, Kind, SegmentReader
from pipeline.client.replica import FIELDS
from pipeline.codec import decode_map
from pipeline.transport.feed import Subscriber
from tests.e2e.conftest import Host
from tests.e2e.host import (
    CONNECTIONS,
    REPOSITORY,
    NamedNetns,
    Pipeline,
    named_netns,
    pipeline,
    quick,
    seconds_until,
)
from tests.live import PATIENCE_S, needs_root

pytestmark = needs_root

# FEED_CHURN_S=60 FEED_CHURN_NAMESPACES=20 for the long run.
CHURN_S = float(os.environ.get("FEED_CHURN_S", "20"))
CHURN_NAMESPACES = int(os.environ.get("FEED_CHURN_NAMESPACES", "5"))

# Opens and closes connections to itself until it reads a line, then keeps what it has.
CHURN = """
import random, select, socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=256)
pairs = []
def close(pair):
    for one in pair:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\x01\\0\\0\\0\\0\\0\\0\\0")
        one.close()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for _ in range(random.randrange(12)):
        client = socket.create_connection(listener.getsockname())
        pairs.append((client, listener.accept()[0]))
    random.shuffle(pairs)
    while len(pairs) > 60 or (pairs and random.random() < 0.8):
        close(pairs.pop())
sys.stdin.readline()
print("done", flush=True)
sys.stdin.readline()
"""
# Follows; for each line on stdin it says where it is.
FOLLOWER = """
import json, select, sys
from pipeline.client import Feed
feed = Feed(sys.argv[1], timeout_s=60.0)
print("ready", flush=True)
while True:
    feed.changes(0.1)
    if select.select([sys.stdin], [], [], 0)[0]:
        if not sys.stdin.readline():
            break
        print(json.dumps({"rows": feed.rows(), "gaps": feed.gaps, "restarts": feed.restarts,
                          "synchronised": feed.synchronised}), flush=True)
"""


class Talker:
    """A Python program that says "ready", and a line for each line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self.pid = self._process.pid
        assert self._read() == "ready"

    def ask(self, word: str = "") -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def talker(*command: str) -> Iterator[Talker]:
    started = Talker(*command)
    try:
        yield started
    finally:
        started.close()


def by_identity(rows: list[dict[str, Any]]) -> dict[tuple[int, str], dict[str, Any]]:
    """Without when it was seen: a copy hears of that only together with something else."""
    return {(row["netns"], row["key"]): {**row, "seen_at": None} for row in rows}


def is_in_step(running: Pipeline, follower: Talker) -> bool:
    told = json.loads(follower.ask())
    if not told["synchronised"]:
        return False
    return by_identity(told["rows"]) == by_identity(running.connections(fields=FIELDS))


def receive(subscriber: Subscriber, topic: str) -> dict[str, Any]:
    return decode_map(subscriber.wait(topic, PATIENCE_S)[1])


def test_a_copy_comes_to_the_aggregators_state_through_churn_a_stop_and_a_killed_aggregator(
    tmp_path: Path,
) -> None:
    mounts = tmp_path / "netns"
    mounts.mkdir()
    # A small mark, so that a stop of seconds loses messages.
    config = quick(mounts, "feed-*") + "[feed]\nhigh_water_mark = 16\n"
    with contextlib.ExitStack() as opened:
        spaces = [
            opened.enter_context(named_netns(mounts, f"feed-{number}")) for number in range(CHURN_NAMESPACES)
        ]
        churners = [opened.enter_context(churner(netns)) for netns in spaces]
        running = opened.enter_context(pipeline(tmp_path / "pipeline", config=config))
        seconds_until(running.is_ready, 30.0, "ready")
        stopped, steady = (
            opened.enter_context(talker(sys.executable, "-c", FOLLOWER, str(running.runtime_dir)))
            for _ in range(2)
        )
        (first,) = running.pids("aggregator")
        memory = watch_memory(first, CHURN_S / 4)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            memory += watch_memory(first, CHURN_S / 4)
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        memory += watch_memory(first, CHURN_S / 4)
        os.kill(first, signal.SIGKILL)
        seconds_until(lambda: bool(running.connections(limit=1)), 20.0, "another aggregator")
        watch_memory(running.process.pid, CHURN_S / 4)
        for one in churners:
            assert one.ask() == "done"
        for name, follower in (("stopped", stopped), ("steady", steady)):
            seconds_until(
                lambda follower=follower: is_in_step(running, follower),  # type: ignore[misc]
                30.0,
                f"the {name} one is equal",
            )
        told = {name: json.loads(one.ask()) for name, one in (("stopped", stopped), ("steady", steady))}
        for name, one in told.items():
            print(f"{name}: {one['gaps']} gaps, {one['restarts']} restarts, {len(one['rows'])} rows")
        print(f"aggregator: {memory[0] >> 20} MiB at first, at most {max(memory) >> 20} MiB")
        assert len(told["stopped"]["rows"]) > CHURN_NAMESPACES
        assert told["stopped"]["gaps"] >= 1
        assert (told["stopped"]["restarts"], told["steady"]["restarts"]) == (1, 1)
        assert max(memory) - memory[0] < 32 << 20


@contextlib.contextmanager
def churner(netns: NamedNetns) -> Iterator[Talker]:
    with talker("nsenter", f"--net={netns.path}", sys.executable, "-S", "-c", CHURN) as started:
        yield started


def watch_memory(pid: int, seconds: float) -> list[int]:
    """The process's resident bytes every tenth of a second for so long."""
    process = psutil.Process(pid)
    end_s = time.monotonic() + seconds
    found = []
    while time.monotonic() < end_s:
        found.append(process.memory_info().rss)
        time.sleep(0.1)
    return found


def test_feed_gives_what_is_there_then_each_change_and_misses_nothing(host: Host) -> None:
    netns = host.alpha.inode
    with Feed(str(host.running.runtime_dir), netns=[netns]) as feed:
        first = feed.changes(PATIENCE_S)
        assert {change.kind for change in first} == {Kind.OPENED}
        held = [row for row in feed.rows() if row["state"] == "ESTABLISHED"]
        assert len(held) == 2 * CONNECTIONS
        assert {owner["pid"] for row in held for owner in row["owners"]} == {host.server.pid}
        port = int(host.server.tell("listen"))
        seen: list[Change] = []
        while not any(change.row["local_port"] == port for change in seen):
            seen += feed.changes(PATIENCE_S)
        (opened,) = [change.row for change in seen if change.row["local_port"] == port][:1]
        assert (opened["netns"], opened["netns_name"], opened["state"]) == (netns, "e2e-alpha", "LISTEN")
        assert (feed.gaps, feed.restarts, feed.synchronised) == (0, 0, True)
        seconds_until(
            lambda: feed.changes(0.1) is not None and by_identity(feed.rows())
            == by_identity(host.running.connections(netns=netns, fields=FIELDS)),
            10.0,
            "equal",
        )  # fmt: skip


def test_every_message_has_the_five_fields_and_names_the_one_before(host: Host) -> None:
    topics = [f"delta.{host.alpha.inode}", "heartbeat"]
    subscriber = Subscriber(str(host.running.runtime_dir / "feed.ipc"), topics)
    beats = [receive(subscriber, "heartbeat") for _ in range(3)]
    host.server.tell("listen")
    delta = receive(subscriber, topics[0])
    after = receive(subscriber, "heartbeat")
    subscriber.close()
    status = host.running.status()
    for message in (*beats, delta, after):
        assert list(message)[:5] == ["schema", "host", "epoch", "seq", "prev"]
        assert (message["schema"], message["epoch"], message["host"]) == (1, status["epoch"], status["host"])
    assert [beat["prev"] for beat in beats[1:]] == [beat["seq"] for beat in beats[:2]]
    assert delta["prev"] < delta["seq"] <= after["topics"][topics[0]]
    assert len(delta["added"] + delta["changed"]) >= 1
    assert all(len(row) == len(delta["columns"]) for row in delta["added"])
    assert (delta["namespace"]["netns"], delta["namespace"]["name"]) == (host.alpha.inode, "e2e-alpha")


def test_events_tell_of_namespaces_and_connections(host: Host) -> None:
    subscriber = Subscriber(str(host.running.runtime_dir / "feed.ipc"), ["event.", "heartbeat"])
    subscriber.wait("heartbeat", PATIENCE_S)
    seen: list[tuple[str, Any]] = []

    def has_come(event: str, about: Any) -> bool:
        while (received := subscriber.receive(0.1)) is not None:
            if received[0].startswith("event."):
                for one in decode_map(received[1])["events"]:
                    connection = one.get("connection")
                    seen.append((one["event"], connection["local_port"] if connection else one["netns_name"]))
        return (event, about) in seen

    port = int(host.server.tell("listen"))
    seconds_until(lambda: has_come("opened", port), 10.0, "opened")
    with named_netns(host.mounts, "e2e-told"):
        seconds_until(lambda: has_come("appeared", "e2e-told"), 10.0, "appeared")
    seconds_until(lambda: has_come("gone", "e2e-told"), 10.0, "gone")
    subscriber.close()


def test_snapshot_after_a_walk_is_the_whole_namespace(host: Host) -> None:
    topic = f"snapshot.{host.alpha.inode}"
    subscriber = Subscriber(str(host.running.runtime_dir / "feed.ipc"), [topic])
    first, second = (receive(subscriber, topic) for _ in range(2))
    subscriber.close()
    rows = [dict(zip(first["columns"], row, strict=True)) for row in first["rows"]]
    assert len([row for row in rows if row["state"] == "ESTABLISHED"]) == 2 * CONNECTIONS
    assert first["namespace"]["name"] == "e2e-alpha"
    assert second["prev"] == first["seq"] < second["seq"]


def test_edges_begin_with_all_there_are_for_each_who_comes(host: Host) -> None:
    path = str(host.running.runtime_dir / "feed.ipc")
    for _ in range(2):
        subscriber = Subscriber(path, ["delta.edges"])
        message = receive(subscriber, "delta.edges")
        while not message["base"]:
            message = receive(subscriber, "delta.edges")
        subscriber.close()
        edges = [dict(zip(message["columns"], row, strict=True)) for row in message["added"]]
        counts = {
            edge["server"]["pid"]: edge["connections"]
            for edge in edges
            if edge["client"]["pid"] == edge["server"]["pid"]
        }
        assert counts.get(host.server.pid) == CONNECTIONS


def test_asyncio_client_waits_for_a_change_while_it_asks_other_things(host: Host) -> None:
    async def ask() -> None:
        async with AsyncClient(str(host.running.runtime_dir)) as client:
            before = await client.connections(netns=host.alpha.inode, listening=True)
            since: dict[str, Any] = {"epoch": before.epoch, "seq": before.seq}
            quiet = await client.wait(timeout_s=0.2, **since, netns=host.alpha.inode, local_port=1)
            assert quiet.rows == [{"changed": False}]
            # Longer than any other question may take.
            waiting = asyncio.create_task(
                client.wait(timeout_s=PATIENCE_S, **since, netns=host.alpha.inode, listening=True)
            )
            assert (await client.sql("SELECT count(*) AS n FROM namespaces")).rows[0]["n"] >= 3
            port = int(host.server.tell("listen"))
            assert (await waiting).rows == [{"changed": True}]
            explained = await client.explain(netns=host.alpha.inode, local_port=port)
            edges = await client.edges(netns=host.alpha.inode)
            assert (explained.total, sum(edge["connections"] for edge in edges)) == (1, CONNECTIONS)

    asyncio.run(ask())


def test_asyncio_client_asks_many_things_at_once(host: Host) -> None:
    async def ask() -> list[int]:
        async with AsyncClient(str(host.running.runtime_dir)) as client:
            answers = await asyncio.gather(
                *(client.connections(netns=host.alpha.inode, established=True) for _ in range(10)),
                client.namespaces(netns=host.beta.inode),
            )
            assert (await client.status())["ready"]
            return [answer.total for answer in answers]

    assert asyncio.run(ask()) == [2 * CONNECTIONS] * 10 + [1]


def test_segment_reader_has_a_namespace_straight_from_shared_memory(host: Host) -> None:
    reader = SegmentReader(str(host.running.runtime_dir))
    assert {host.alpha.inode, host.beta.inode, host.gamma.inode} <= set(reader.namespaces())
    state = reader.read(host.alpha.inode)
    established = [row for row in state.connections if row.state == 1]
    assert len(established) == 2 * CONNECTIONS
    assert {held.pid for held in state.holdings if held.inode in {row.inode for row in established}} == {
        host.server.pid
    }
    assert host.server.pid in {process.pid for process in state.processes}
    assert (state.head.netns, state.head.generation > 0) == (host.alpha.inode, True)
