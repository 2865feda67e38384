"""Connections through namespaces that translate addresses, as the running pipeline shows them: both real ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NoAggregator
from tests.e2e.host import NamedNetns, Pipeline, named_netns, pipeline, quick, seconds_until
from tests.e2e.routers import Talker, cable, forward, route, translate
from tests.live import needs_root

pytestmark = needs_root

_DEADLINE_S = 60.0
_CONFIG = """
[conntrack]
interval_s = 0.2
idle_interval_s = 0.5
full_interval_s = 2
"""
Edge = dict[str, Any]


class World:
    """Namespaces that one pipeline watches, by short names, and who talks in them."""

    def __init__(self, opened: contextlib.ExitStack, folder: Path) -> None:
        self._opened = opened
        self._folder = folder
        self._mounts = folder / "netns"
        self._mounts.mkdir()

    def netns(self, *names: str) -> list[NamedNetns]:
        return [self._opened.enter_context(named_netns(self._mounts, f"nat-{name}")) for name in names]

    def talker(self, netns: NamedNetns) -> Talker:
        return self._opened.enter_context(Talker(netns))

    def start(self) -> Pipeline:
        """The pipeline, ready; before or after anybody talks."""
        running = self._opened.enter_context(
            pipeline(self._folder, config=quick(self._mounts, "nat-*") + _CONFIG)
        )
        seconds_until(running.is_ready, _DEADLINE_S, "ready")
        return running


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.ExitStack() as opened:
        yield World(opened, tmp_path)


def edges(running: Pipeline) -> list[Edge]:
    """All edges, or none while nobody answers."""
    try:
        with running.client() as client:
            return list(client.ask("edges").rows)
    except NoAggregator:
        return []


def short(edge: Edge) -> tuple[Any, ...]:
    """(protocol, client's pid, server's pid, server's address and port, the destination that the client asked for)."""
    server, nat = edge["server"], edge["nat"]
    asked = None if nat is None else (nat["original"]["dst"], nat["original"]["dport"])
    return edge["proto"], edge["client"]["pid"], server["pid"], server["addr"], server["port"], asked


def wait_for(running: Pipeline, wanted: set[tuple[Any, ...]]) -> None:
    seen: list[set[tuple[Any, ...]]] = []

    def found() -> bool:
        seen[:] = [{short(edge) for edge in edges(running)}]
        return seen[0] == wanted

    try:
        seconds_until(found, _DEADLINE_S, f"{len(wanted)} edges")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen[0] ^ wanted}") from None


def routed(world: World, number: str = "") -> tuple[NamedNetns, NamedNetns, NamedNetns]:
    """A client's namespace, a router's, which translates 10.99.0.1 and fd99::1, and a server's behind it.

    The router forgets at once what has ended: until then another with the same addresses may be mistaken for it.
    """
    client, router, server = world.netns(f"client{number}", f"router{number}", f"server{number}")
    cable(client, ["10.77.1.2/24", "fd77:1::2/64"], router, ["10.77.1.1/24", "fd77:1::1/64"])
    cable(router, ["10.77.2.1/24", "fd77:2::1/64"], server, ["10.77.2.2/24", "fd77:2::2/64"])
    route(client, "10.77.1.1", "fd77:1::1")
    forward(router)
    translate(
        router, "prerouting",
        "ip daddr 10.99.0.1 tcp dport 80 dnat ip to 10.77.2.2:8080",
        "ip daddr 10.99.0.1 udp dport 53 dnat ip to 10.77.2.2:5353",
        "ip6 daddr fd99::1 tcp dport 80 dnat ip6 to [fd77:2::2]:8080",
        "ip6 daddr fd99::1 udp dport 53 dnat ip6 to [fd77:2::2]:5353",
    )  # fmt: skip
    for state in ("time_wait", "close", "close_wait", "last_ack", "fin_wait"):
        router.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_{state}=1")
    return client, router, server


@pytest.mark.parametrize("started", ["before", "after"])
def test_router_between_client_and_server(world: World, started: str) -> None:
    client_netns, _, server_netns = routed(world)
    client, server = world.talker(client_netns), world.talker(server_netns)
    running = world.start() if started == "before" else None
    for address in ("10.77.2.2", "fd77:2::2"):
        server.serve("tcp", address, 8080)
    # One that is bound to no address, for both families.
    server.serve("udp", "::", 5353)
    for address in ("10.99.0.1", "fd99::1"):
        client.connect("tcp", address, 80)
        client.connect("udp", address, 53)
    running = running or world.start()

    wait_for(running, {
        ("tcp", client.pid, server.pid, "10.77.2.2", 8080, ("10.99.0.1", 80)),
        ("udp", client.pid, server.pid, "10.77.2.2", 5353, ("10.99.0.1", 53)),
        ("tcp", client.pid, server.pid, "fd77:2::2", 8080, ("fd99::1", 80)),
        ("udp", client.pid, server.pid, "fd77:2::2", 5353, ("fd99::1", 53)),
    })  # fmt: skip
    both = [edge for edge in edges(running) if edge["proto"] == "tcp"]
    assert [(edge["client"]["netns"], edge["server"]["netns"], edge["ambiguous"]) for edge in both] == [
        (client_netns.inode, server_netns.inode, False)
    ] * 2
    # Masquerade: the server sees the router.
    assert {edge["nat"]["translated"]["src"] for edge in both} == {"10.77.2.1", "fd77:2::1"}

    client.close_all()
    server.close_all()
    wait_for(running, set())


def test_translation_in_the_namespace_of_the_client_itself(world: World) -> None:
    client_netns, server_netns = world.netns("pod", "node")
    cable(client_netns, ["10.77.1.2/24", "fd77:1::2/64"], server_netns, ["10.77.1.1/24", "fd77:1::1/64"])
    route(client_netns, "10.77.1.1", "fd77:1::1")
    translate(
        client_netns, "output",
        "ip daddr 10.96.0.10 tcp dport 443 dnat ip to 10.77.1.1:8443",
        "ip6 daddr fd96::10 tcp dport 443 dnat ip6 to [fd77:1::1]:8443",
        "ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.77.1.1:5353",
        masquerade=False,
    )  # fmt: skip
    client, server = world.talker(client_netns), world.talker(server_netns)
    for address in ("10.77.1.1", "fd77:1::1"):
        server.serve("tcp", address, 8443)
    server.serve("udp", "10.77.1.1", 5353)
    running = world.start()
    for address in ("10.96.0.10", "fd96::10"):
        client.connect("tcp", address, 443)
    client.connect("udp", "10.96.0.10", 53)

    wait_for(running, {
        ("tcp", client.pid, server.pid, "10.77.1.1", 8443, ("10.96.0.10", 443)),
        ("tcp", client.pid, server.pid, "fd77:1::1", 8443, ("fd96::10", 443)),
        ("udp", client.pid, server.pid, "10.77.1.1", 5353, ("10.96.0.10", 53)),
    })  # fmt: skip


def test_two_routers_in_a_row(world: World) -> None:
    client_netns, first, second, server_netns = world.netns("one", "two", "three", "four")
    cable(client_netns, ["10.77.1.2/24", "fd77:1::2/64"], first, ["10.77.1.1/24", "fd77:1::1/64"])
    cable(first, ["10.77.5.1/24", "fd77:5::1/64"], second, ["10.77.5.2/24", "fd77:5::2/64"])
    cable(second, ["10.77.2.1/24", "fd77:2::1/64"], server_netns, ["10.77.2.2/24", "fd77:2::2/64"])
    route(client_netns, "10.77.1.1", "fd77:1::1")
    for router, target, port in (
        (first, ("10.77.5.2", "fd77:5::2"), 81),
        (second, ("10.77.2.2", "fd77:2::2"), 8080),
    ):
        forward(router)
        translate(
            router, "prerouting",
            f"ip daddr {{ 10.99.0.1, 10.77.5.2 }} meta l4proto {{ tcp, udp }} dnat ip to {target[0]}:{port}",
            f"ip6 daddr {{ fd99::1, fd77:5::2 }} meta l4proto tcp dnat ip6 to [{target[1]}]:{port}",
        )  # fmt: skip
    client, server = world.talker(client_netns), world.talker(server_netns)
    for proto, address in (("tcp", "10.77.2.2"), ("udp", "10.77.2.2"), ("tcp", "fd77:2::2")):
        server.serve(proto, address, 8080)
    for proto, address in (("tcp", "10.99.0.1"), ("udp", "10.99.0.1"), ("tcp", "fd99::1")):
        client.connect(proto, address, 80)
    running = world.start()

    wait_for(running, {
        ("tcp", client.pid, server.pid, "10.77.2.2", 8080, ("10.99.0.1", 80)),
        ("udp", client.pid, server.pid, "10.77.2.2", 8080, ("10.99.0.1", 80)),
        ("tcp", client.pid, server.pid, "fd77:2::2", 8080, ("fd99::1", 80)),
    })  # fmt: skip


def test_two_pairs_with_the_same_addresses_name_nobody_wrongly(world: World) -> None:
    talkers = []
    for number in ("1", "2"):
        client_netns, _, server_netns = routed(world, number)
        client, server = world.talker(client_netns), world.talker(server_netns)
        server.serve("tcp", "10.77.2.2", 8080)
        # The same in every number; then one that only this pair has.
        client.connect("tcp", "10.99.0.1", 80, 40000)
        client.connect("tcp", "10.99.0.1", 80, 40000 + int(number))
        talkers.append((client, server))
    running = world.start()
    pids = {(client.pid, server.pid) for client, server in talkers}

    def settled() -> bool:
        found = edges(running)
        return sum(edge["ambiguous"] for edge in found) == 4 and len(found) == 6

    seconds_until(settled, _DEADLINE_S, "two pairs and four halves")
    named = [edge for edge in edges(running) if not edge["ambiguous"]]
    assert {(edge["client"]["pid"], edge["server"]["pid"]) for edge in named} == pids
    # When one of the two pairs is through, nothing is unclear any more.
    client, server = talkers[0]
    client.close_all()
    server.close_all()
    wait_for(
        running, {("tcp", *max(pids - {(client.pid, server.pid)}), "10.77.2.2", 8080, ("10.99.0.1", 80))}
    )
