"""Which namespace a connection is shown in, and who is named as its holder, wherever that one lives."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from tests.e2e.conftest import Host
from tests.e2e.host import NamedNetns, named_netns, seconds_until
from tests.live import needs_root

pytestmark = needs_root

# Opens a listener in one namespace and then lives in another, or in the one it came from.
OPENER = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def enter(path):
    fd = os.open(path, os.O_RDONLY)
    assert libc.setns(fd, 0x40000000) == 0
    os.close(fd)
enter(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
enter(sys.argv[2])
print(listener.getsockname()[1], os.fstat(listener.fileno()).st_ino, flush=True)
if len(sys.argv) > 3 and os.fork():
    os.wait()
sys.stdin.read()
"""


@contextlib.contextmanager
def opener(opened_in: str, lives_in: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """(process, the port it listens on, the socket's inode)."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", OPENER, opened_in, lives_in, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port, inode = process.stdout.readline().split()
        yield process, int(port), int(inode)
    finally:
        process.communicate(timeout=60)


def test_a_socket_is_shown_in_its_own_namespace_with_a_holder_that_lives_in_another(host: Host) -> None:
    with opener(str(host.gamma.path), str(host.beta.path)) as (process, port, inode):
        seconds_until(
            lambda: bool(host.running.connections(netns=host.gamma.inode, local_port=port, pid=process.pid)),
            10.0,
            "attributed across namespaces",
        )
        (row,) = host.running.connections(local_port=port, inode=inode)
        (owner,) = row["owners"]
        assert (row["netns"], row["netns_name"], row["state"]) == (host.gamma.inode, "e2e-gamma", "LISTEN")
        assert (owner["pid"], owner["netns"]) == (process.pid, host.beta.inode)
        assert os.readlink(f"/proc/{process.pid}/fd/{owner['fd']}") == f"socket:[{inode}]"
    seconds_until(lambda: not host.running.connections(netns=host.gamma.inode), 10.0, "closed")


def test_a_namespace_without_processes_is_read_by_its_name_alone(host: Host) -> None:
    home = f"/proc/{os.getpid()}/ns/net"
    with named_netns(host.mounts, "e2e-empty") as netns, opener(str(netns.path), home) as (_, port, inode):
        seconds_until(lambda: _rows(host, netns) == [(port, inode)], 10.0, "read by its name")
        # Its holder lives in a namespace that this pipeline was told to leave out.
        (row,) = host.running.connections(netns="e2e-empty")
        assert (row["owners"], row["netns_name"]) == ([], "e2e-empty")
        namespace = host.running.namespace(netns.inode)
        assert namespace is not None
        assert (namespace["processes"], namespace["source"]) == (0, "sock_diag")


def _rows(host: Host, netns: NamedNetns) -> list[tuple[int, int]]:
    return [(row["local_port"], row["inode"]) for row in host.running.connections(netns=netns.inode)]


def test_every_process_that_shares_a_listener_is_a_holder(host: Host) -> None:
    with opener(str(host.beta.path), str(host.beta.path), "fork") as (process, port, inode):

        def holders() -> list[int]:
            rows = host.running.connections(netns=host.beta.inode, local_port=port)
            return [owner["pid"] for row in rows for owner in row["owners"] if row["inode"] == inode]

        seconds_until(lambda: len(holders()) == 2, 10.0, "both")
        assert process.pid in holders()
    seconds_until(lambda: holders() == [], 10.0, "none")


def test_a_namespace_that_gets_a_second_name_is_one_namespace_with_both(host: Host) -> None:
    other_name = host.mounts / "e2e-also-gamma"
    other_name.touch()
    subprocess.run(["mount", "--bind", str(host.gamma.path), str(other_name)], check=True)
    try:

        def names() -> list[str]:
            namespace = host.running.namespace(host.gamma.inode)
            assert namespace is not None
            found: list[str] = namespace["names"]
            return found

        seconds_until(lambda: names() == ["e2e-also-gamma", "e2e-gamma"], 10.0, "both names")
    finally:
        subprocess.run(["umount", str(other_name)], check=True)
        other_name.unlink()
    seconds_until(lambda: names() == ["e2e-gamma"], 10.0, "one name")
