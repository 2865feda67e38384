"""Namespaces joined by virtual cables, that route and translate, and processes that talk through them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.e2e.host import NamedNetns

# Does what each line of JSON on stdin says, and then prints a line. Servers answer in a thread.
_TALKER = """
import json, socket, sys, threading
held = []
def make(proto, address):
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.append(made)
    return made
def answer_tcp(listener):
    while True:
        accepted, _ = listener.accept()
        held.append(accepted)
        accepted.sendall(accepted.recv(1))
def answer_udp(bound):
    while True:
        data, sender = bound.recvfrom(64)
        bound.sendto(data, sender)
def serve(proto, address, port):
    made = make(proto, address)
    made.bind((address, port))
    if proto == "tcp":
        made.listen(16)
    threading.Thread(target=answer_tcp if proto == "tcp" else answer_udp, args=(made,), daemon=True).start()
def connect(proto, address, port, local_port=0):
    made = make(proto, address)
    made.settimeout(60)
    made.bind(("::" if ":" in address else "0.0.0.0", local_port))
    made.connect((address, port))
    made.send(b"x")
    assert made.recv(64) == b"x"
def close_all():
    for one in held:
        one.close()
    held.clear()
for line in sys.stdin:
    name, arguments = json.loads(line)
    globals()[name](*arguments)
    print("done", flush=True)
"""


class Talker:
    """A process in a namespace that serves and connects as it is told; ends with the `with` block."""

    def __init__(self, netns: NamedNetns) -> None:
        self.netns = netns
        self._process = subprocess.Popen(
            ["nsenter", f"--net={netns.path}", sys.executable, "-S", "-c", _TALKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def serve(self, proto: str, address: str, port: int) -> None:
        """Listens, or binds, and sends back what comes."""
        self._tell("serve", proto, address, port)

    def connect(self, proto: str, address: str, port: int, local_port: int = 0) -> None:
        """Connects, and keeps the socket once an answer came through it."""
        self._tell("connect", proto, address, port, local_port)

    def close_all(self) -> None:
        self._tell("close_all")

    def _tell(self, name: str, *arguments: Any) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


def cable(
    one: NamedNetns, addresses: Sequence[str], other: NamedNetns, other_addresses: Sequence[str]
) -> None:
    """Joins two namespaces by a pair of devices, each named after the namespace at its other end."""
    names = (_device(other), _device(one))
    command = ["ip", "link", "add", "name", names[0], "netns", str(one.path), "type", "veth", "peer"]
    subprocess.run([*command, "name", names[1], "netns", str(other.path)], check=True)
    for netns, name, found in ((one, names[0], addresses), (other, names[1], other_addresses)):
        for address in found:
            # Usable at once: nobody else has it.
            netns.run("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        netns.run("ip", "link", "set", name, "up")


def route(netns: NamedNetns, *gateways: str) -> None:
    """Its default routes."""
    for gateway in gateways:
        netns.run("ip", "-6" if ":" in gateway else "-4", "route", "add", "default", "via", gateway)


def forward(netns: NamedNetns) -> None:
    """Makes it a router."""
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        netns.run("sysctl", "-qw", f"{key}=1")


def translate(netns: NamedNetns, hook: str, *rules: str, masquerade: bool = True) -> None:
    """Destination rules at a hook (prerouting, output), and with `masquerade` its own address as the source."""
    ruleset = f"""
table inet translation {{
  chain targets {{ type nat hook {hook} priority -100; {"; ".join(rules)}; }}
  chain sources {{ type nat hook postrouting priority 100; {"masquerade;" if masquerade else ""} }}
}}"""
    subprocess.run(["nsenter", f"--net={netns.path}", "nft", "-f", "-"], input=ruleset, text=True, check=True)


def _device(netns: NamedNetns) -> str:
    """The kernel allows 15 characters."""
    return f"to-{netns.name[-12:]}"
