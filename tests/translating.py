"""Namespaces that translate addresses, with traffic through them, and `conntrack -L` as the oracle."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.model.flow import Flow
from tests.live import LiveNetns

# What a client of the router asks for, and what answers. Ports: TCP 80 for 8080, UDP 53 for 5353.
ASKED4, ASKED6 = "10.77.0.100", "fd77::100"
REAL4, REAL6 = "10.77.1.2", "fd77:0:0:1::2"

_ROUTER_RULES = f"""
table inet translation {{
  chain in {{
    type nat hook prerouting priority dstnat
    ip daddr {ASKED4} tcp dport 80 dnat ip to {REAL4}:8080
    ip daddr {ASKED4} udp dport 53 dnat ip to {REAL4}:5353
    ip6 daddr {ASKED6} tcp dport 80 dnat ip6 to [{REAL6}]:8080
    ip6 daddr {ASKED6} udp dport 53 dnat ip6 to [{REAL6}]:5353
  }}
  chain out {{
    type nat hook postrouting priority srcnat
    oifname "to-server" masquerade
  }}
}}
"""
# As kube-proxy does it in a namespace of its own: what a process here sends to 192.0.2.1 goes to ourselves, but for
# port 9, which is tracked and not translated.
_OWN_RULES = """
table ip translation {
  chain out {
    type nat hook output priority -100
    ip daddr 192.0.2.1 tcp dport != 9 dnat to 127.0.0.1
    ip daddr 192.0.2.1 udp dport != 9 dnat to 127.0.0.1
  }
}
"""

_SERVER = f"""
import contextlib, socket, sys, threading
def serve_tcp(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()
def answer(connection):
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"x")
        connection.recv(1)
def serve_udp(sock):
    while True:
        data, peer = sock.recvfrom(64)
        sock.sendto(data, peer)
for family, address in ((socket.AF_INET, "{REAL4}"), (socket.AF_INET6, "{REAL6}")):
    listener = socket.create_server((address, 8080), family=family, backlog=4096)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, 5353))
    threading.Thread(target=serve_tcp, args=(listener,), daemon=True).start()
    threading.Thread(target=serve_udp, args=(sock,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
# Opens as many flows of each kind, says so, closes them (TCP by a reset, which ends the entry) when it is told.
_CLIENT = f"""
import socket, struct, sys, time
held = []
def patiently(attempt):
    end_s = time.monotonic() + 30
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)
def connect(family, address):
    sock = socket.socket(family)
    sock.settimeout(5)
    try:
        sock.connect((address, 80))
        assert sock.recv(1) == b"x"
    except OSError:
        sock.close()
        raise
    return sock
def ask(family, address):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(2)
    try:
        sock.sendto(b"x", (address, 53))
        assert sock.recv(64) == b"x"
    except OSError:
        sock.close()
        raise
    return sock
for _ in range(int(sys.argv[1])):
    for family, address in ((socket.AF_INET, "{ASKED4}"), (socket.AF_INET6, "{ASKED6}")):
        held.append(patiently(lambda: connect(family, address)))
        held.append(patiently(lambda: ask(family, address)))
print("ready", flush=True)
sys.stdin.readline()
for sock in held:
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
print("closed", flush=True)
sys.stdin.read()
"""

Seen = tuple[str, str, str, int, int, str, str, int, int]
_ENTRY = re.compile(
    r"(tcp|udp) .*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+).* src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
)


class Router(NamedTuple):
    """client - router - server, IPv4 and IPv6; none of them has a device in our own namespace."""

    client: LiveNetns
    router: LiveNetns
    server: LiveNetns


@contextlib.contextmanager
def routed() -> Iterator[Router]:
    with LiveNetns() as client, LiveNetns() as router, LiveNetns() as server:
        for one in (client, router, server):
            # No waiting for duplicates of addresses that nobody else has.
            _write(one, "ipv6/conf/all/accept_dad", 0)
            _write(one, "ipv6/conf/default/accept_dad", 0)
        _link(
            client,
            "to-router",
            "10.77.0.2/24",
            "fd77::2/64",
            router,
            "to-client",
            "10.77.0.1/24",
            "fd77::1/64",
        )
        _link(
            server, "to-router", f"{REAL4}/24", f"{REAL6}/64",
            router, "to-server", "10.77.1.1/24", "fd77:0:0:1::1/64",
        )  # fmt: skip
        for gateway in ("10.77.0.1", "fd77::1"):
            client.run("ip", "route", "add", "default", "via", gateway)
        client.run("ip", "route", "add", ASKED4, "via", "10.77.0.1")
        client.run("ip", "route", "add", ASKED6, "via", "fd77::1")
        _keep_flows(router)
        _write(router, "ipv4/ip_forward", 1)
        _write(router, "ipv6/conf/all/forwarding", 1)
        router.run("nft", _ROUTER_RULES)
        with program(server, _SERVER):
            yield Router(client, router, server)


@contextlib.contextmanager
def own_translation() -> Iterator[LiveNetns]:
    """One namespace that translates what its own processes send."""
    with LiveNetns() as live:
        _keep_flows(live)
        live.run("ip", "route", "add", "192.0.2.0/24", "dev", "lo", "src", "127.0.0.1")
        live.run("nft", _OWN_RULES)
        yield live


@contextlib.contextmanager
def flows_through(router: Router, count: int) -> Iterator[subprocess.Popen[str]]:
    """`count` flows of each kind (TCP and UDP, IPv4 and IPv6) are open; the client's process, see `close_flows`."""
    with program(router.client, _CLIENT, str(count)) as process:
        yield process


def close_flows(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("close\n")
    process.stdin.flush()
    assert process.stdout.readline() == "closed\n"


@contextlib.contextmanager
def program(live: LiveNetns, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Python code that runs inside until its input ends; it has said that it is ready."""
    process = subprocess.Popen(
        ["nsenter", f"--net={live.path}", sys.executable, "-S", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate(timeout=60)


def listed(live: LiveNetns) -> set[Seen]:
    """What `conntrack -L` shows of TCP and UDP: protocol; source, destination and ports, of both sides."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in live.run("conntrack", "-L", "-f", family).splitlines():
            entry = _ENTRY.match(line)
            if entry is not None:
                proto, src, dst, sport, dport, reply_src, reply_dst, reply_sport, reply_dport = entry.groups()
                found.add((
                    proto, src, dst, int(sport), int(dport),
                    reply_src, reply_dst, int(reply_sport), int(reply_dport),
                ))  # fmt: skip
    return found


def seen(flow: Flow) -> Seen:
    """A flow of ours as `listed` has it."""
    family = socket.AF_INET if flow.family == 2 else socket.AF_INET6
    source, target, reply_source, reply_target = (
        socket.inet_ntop(family, address)
        for address in (flow.original_src, flow.original_dst, flow.reply_src, flow.reply_dst)
    )
    return (
        "tcp" if flow.proto == 6 else "udp",
        source, target, flow.original_sport, flow.original_dport,
        reply_source, reply_target, flow.reply_sport, flow.reply_dport,
    )  # fmt: skip


def end_entries(live: LiveNetns) -> None:
    """Ends all entries at once; by themselves they take seconds to minutes after their sockets."""
    for family in ("ipv4", "ipv6"):
        live.run("conntrack", "-F", "-f", family)


def join_with_host(live: LiveNetns) -> str:
    """Gives it a device whose peer is in our own namespace, and with that an nsid here; returns that one's name."""
    # One name for all would meet the device of the namespace before, which goes a moment later.
    name = "nat-" + secrets.token_hex(4)
    peer = ["peer", "name", "to-host", "netns", str(live.pid)]
    subprocess.run(["ip", "link", "add", name, "type", "veth", *peer], check=True)
    # The kernel gives a namespace its number when it first tells of such a device.
    subprocess.run(["ip", "link", "show", name], check=True, stdout=subprocess.DEVNULL)
    return name


def _link(
    one: LiveNetns, name: str, address4: str, address6: str,
    other: LiveNetns, other_name: str, other4: str, other6: str,
) -> None:  # fmt: skip
    peer = ["peer", "name", other_name, "netns", str(other.pid)]
    one.run("ip", "link", "add", name, "type", "veth", *peer)
    for live, device, addresses in ((one, name, (address4, address6)), (other, other_name, (other4, other6))):
        for address in addresses:
            live.run("ip", "address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        live.run("ip", "link", "set", device, "up")


def _keep_flows(live: LiveNetns) -> None:
    """UDP flows stay for longer than any test, not 30 s."""
    for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
        _write(live, f"netfilter/{name}", 600)


def _write(live: LiveNetns, name: str, value: int) -> None:
    live.run("sh", "-c", f"echo {value} > /proc/sys/net/{name}")
