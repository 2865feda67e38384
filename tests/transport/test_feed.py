"""The feed's wire: subscriptions known, slow readers lose and cost nothing, floods end."""

from __future__ import annotations

import itertools
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pipeline.errors import ConfigError, NoAggregator
from pipeline.transport.feed import FeedSocket, Subscriber
from pipeline.transport.poller import Poller
from tests.live import PATIENCE_S, wait_until


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "feed.ipc")


class Feed:
    """A feed socket with its poller; `came`: all subscriptions so far."""

    def __init__(self, path: str, high_water_mark: int = 100, **limits: int) -> None:
        self.poller = Poller()
        self.socket = FeedSocket(path, self.poller, high_water_mark=high_water_mark, **limits)
        self.came: list[str] = []

    def pump(self) -> None:
        self.came += self.socket.pump()

    def has_come(self, count: int) -> bool:
        """Whether so many subscriptions came so far."""
        self.pump()
        return len(self.came) == count

    def wants(self, topic: str) -> bool:
        self.pump()
        return self.socket.wants(topic)


@pytest.fixture
def feed(path: str) -> Iterator[Feed]:
    feed = Feed(path)
    yield feed
    feed.socket.close()


def test_message_reaches_who_subscribes_to_its_topic_or_a_beginning_of_it(feed: Feed, path: str) -> None:
    exact, prefix, other = (Subscriber(path, [topic]) for topic in ("delta.12", "delta.1", "delta.2"))
    wait_until(lambda: feed.wants("delta.12") and feed.wants("delta.2"))
    wait_until(lambda: feed.has_come(3))
    feed.socket.send("delta.12", b"body")
    assert exact.receive(PATIENCE_S) == ("delta.12", b"body")
    assert prefix.receive(PATIENCE_S) == ("delta.12", b"body")
    assert other.receive(0.1) is None
    for one in (exact, prefix, other):
        one.close()


def test_nobody_wants_what_nobody_subscribes_to(feed: Feed, path: str) -> None:
    assert not feed.wants("delta.1")
    subscriber = Subscriber(path, ["delta.1", "heartbeat"])
    wait_until(lambda: feed.wants("heartbeat"))
    assert (feed.wants("delta.1"), feed.wants("delta.17"), feed.wants("event.1")) == (True, True, False)
    subscriber.close()
    wait_until(lambda: not feed.wants("heartbeat"))
    assert not feed.wants("delta.1")


def test_empty_subscription_wants_everything(feed: Feed, path: str) -> None:
    subscriber = Subscriber(path, [""])
    wait_until(lambda: feed.wants("delta.edges"))
    subscriber.close()


def test_each_subscriber_is_told_of_though_another_has_the_same_topic(feed: Feed, path: str) -> None:
    subscribers = [Subscriber(path, ["heartbeat"]) for _ in range(3)]
    wait_until(lambda: feed.has_come(3))
    assert feed.came == ["heartbeat"] * 3
    for one in subscribers:
        one.close()


def test_subscription_wakes_the_poller(feed: Feed, path: str) -> None:
    subscriber = Subscriber(path, ["heartbeat"])
    assert len(feed.poller.wait(PATIENCE_S)) == 1
    subscriber.close()


def test_slow_subscriber_loses_the_newest_and_others_lose_nothing(path: str) -> None:
    feed = Feed(path, high_water_mark=16)
    slow, quick = (Subscriber(path, ["d"], high_water_mark=4) for _ in range(2))
    wait_until(lambda: feed.has_come(2))
    body = os.urandom(100_000)
    for number in range(200):
        feed.socket.send("d", b"%d " % number + body)
        received = quick.receive(PATIENCE_S)
        assert received is not None and received[1].startswith(b"%d " % number)
        feed.pump()
    kept: list[int] = []

    def has_all() -> bool:
        """Whether nothing came for a while, after what was kept for it at the least."""
        received = slow.receive(0.3)
        if received is not None:
            kept.append(int(received[1].split(b" ")[0]))
        return received is None and len(kept) >= 16

    wait_until(has_all)
    assert kept == list(range(len(kept)))
    assert len(kept) < 100
    assert feed.socket.resets == 0
    for one in (slow, quick):
        one.close()
    feed.socket.close()


def test_what_is_left_unread_is_bounded_and_then_everybody_is_disconnected(path: str) -> None:
    """64 MiB in all, though the high-water mark would allow for 1000 MB; who reads comes back by itself."""
    feed = Feed(path, high_water_mark=1000)
    stuck = Subscriber(path, ["d"], high_water_mark=1)
    wait_until(lambda: feed.wants("d"))
    body = os.urandom(1_000_000)
    for _ in range(90):
        feed.socket.send("d", body)
        feed.pump()
        if feed.socket.resets:
            break
    assert feed.socket.resets == 1
    # Who does not read does not even notice; once it does, it comes back.
    wait_until(lambda: stuck.receive(0.2) is None and feed.wants("d"))
    feed.socket.send("d", b"after")
    while (received := stuck.receive(PATIENCE_S)) == ("d", body):
        pass
    assert received == ("d", b"after")
    stuck.close()
    feed.socket.close()


@pytest.fixture
def peer() -> Iterator[zmq.Socket[bytes]]:
    """A socket that can send what no Subscriber does, and does not come back when it is hung up on."""
    context = zmq.Context()
    with context.socket(zmq.XSUB) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RECONNECT_IVL, -1)
        yield peer
    context.term()


def test_subscriber_with_too_many_subscriptions_is_disconnected(
    feed: Feed, path: str, peer: zmq.Socket[bytes]
) -> None:
    peer.connect("ipc://" + path)
    numbers = itertools.count()

    def is_reset() -> bool:
        for _ in range(50):
            peer.send(b"\1%0500d" % next(numbers))
        feed.pump()
        return feed.socket.resets == 1

    wait_until(is_reset)
    assert not feed.wants("0")


def test_subscribing_to_the_same_for_ever_is_a_flood(path: str, peer: zmq.Socket[bytes]) -> None:
    # Together no more than the 16 that libzmq keeps for us: on a busy machine its thread brings no more meanwhile.
    feed = Feed(path, receives_per_pump=3, max_unfinished_pumps=3)
    peer.connect("ipc://" + path)

    def is_reset() -> bool:
        for _ in range(100):
            peer.send(b"\1heartbeat")
        for _ in range(4):
            feed.pump()
        return feed.socket.resets == 1

    wait_until(is_reset)
    assert not feed.wants("heartbeat")
    feed.socket.close()


def test_subscription_of_kilobytes_is_hung_up_on(feed: Feed, path: str, peer: zmq.Socket[bytes]) -> None:
    with peer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        peer.connect("ipc://" + path)
        peer.send(b"\1" + b"x" * 2000)
        wait_until(lambda: feed.has_come(0) and monitor.poll(10) != 0)
        peer.disable_monitor()


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n\r\n" * 100, bytes(range(256)) * 50, b"\xff" * 5000]
)
def test_peer_that_speaks_no_zeromq_harms_nobody(feed: Feed, path: str, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(path)
        stranger.sendall(said)
        subscriber = Subscriber(path, ["heartbeat"])
        # libzmq takes a stranger for a peer of version 2, and subscribes it to everything.
        wait_until(lambda: feed.wants("heartbeat") and "heartbeat" in feed.came)
        feed.socket.send("heartbeat", b"x")
        assert subscriber.receive(PATIENCE_S) == ("heartbeat", b"x")
        subscriber.close()


def test_messages_of_a_peer_are_no_subscriptions(feed: Feed, path: str, peer: zmq.Socket[bytes]) -> None:
    peer.connect("ipc://" + path)
    peer.send(b"\7hello")
    peer.send_multipart([b"\1a", b"b"])
    peer.send(b"")
    peer.send(b"\1wanted")
    wait_until(lambda: feed.wants("wanted"))
    assert not feed.wants("hello")


def test_socket_is_for_the_group_from_the_first_moment(feed: Feed, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_close_removes_the_socket_and_a_successor_takes_over(path: str) -> None:
    first = Feed(path)
    subscriber = Subscriber(path, ["heartbeat"])
    wait_until(lambda: first.wants("heartbeat"))
    first.socket.close()
    assert not os.path.exists(path)
    second = Feed(path)
    # libzmq subscribes again when its socket is asked for messages.
    wait_until(lambda: subscriber.receive(0.0) is None and second.wants("heartbeat"))
    second.socket.send("heartbeat", b"of the second")
    assert subscriber.receive(PATIENCE_S) == ("heartbeat", b"of the second")
    subscriber.close()
    second.socket.close()


def test_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        FeedSocket(str(tmp_path / ("x" * 120)), Poller(), high_water_mark=16)


def test_subscriber_without_an_aggregator_fails_at_once(path: str) -> None:
    with pytest.raises(NoAggregator):
        Subscriber(path, [""])


def test_waiting_for_a_topic_that_does_not_come_fails(feed: Feed, path: str) -> None:
    subscriber = Subscriber(path, ["heartbeat", "d"])
    wait_until(lambda: feed.wants("d"))
    feed.socket.send("d", b"x")
    with pytest.raises(NoAggregator, match=r"no heartbeat from the feed .* within 0\.2 s"):
        subscriber.wait("heartbeat", 0.2)
    subscriber.close()
