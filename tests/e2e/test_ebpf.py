"""`sockscope run --ebpf`: owners by the kernel's word, no connection too short, and what happens when that ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.kernel.support import cgroup2_dir
from tests.e2e.host import (
    CONNECTIONS,
    REPOSITORY,
    NamedNetns,
    Pipeline,
    Server,
    clean_environment,
    named_netns,
    pipeline,
    quick,
    seconds_until,
    sockscope,
)
from tests.live import needs_root

pytestmark = needs_root

DEADLINE_S = 60.0
# One process serves, another connects: so often by each family, for 20 ms each.
SHORT = 23
SERVE = """
import socket, sys
listeners = {"4": socket.create_server(("127.0.0.1", 0)), "6": socket.create_server(("::1", 0), family=socket.AF_INET6)}
print(*(one.getsockname()[1] for one in listeners.values()), flush=True)
for line in sys.stdin:
    peer, _ = listeners[line.strip()].accept()
    with peer:
        peer.sendall(b"x" * 100)
        peer.recv(1)
print("done", flush=True)
"""
CONNECT = """
import socket, sys, time
address, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((address, port)) as one:
    while one.recv(100):
        time.sleep(0.02)
        break
"""


def inside(netns: NamedNetns, *command: str) -> list[str]:
    return ["nsenter", f"--net={netns.path}", *command]


def closed_rows(running: Pipeline, **filters: Any) -> list[dict[str, Any]]:
    with running.client() as client:
        return client.connections(closed=True, **filters).rows


def source_of(running: Pipeline, netns: NamedNetns) -> str | None:
    row = running.namespace(netns.inode)
    return None if row is None or row["stale"] else row["source"]


@contextlib.contextmanager
def ebpf_host(
    folder: Path, *more: str, mode: str = "require"
) -> Iterator[tuple[Pipeline, NamedNetns, Server]]:
    """`red` with a server in it, all of which is known when the block begins. `more`: lines of configuration."""
    mounts = folder / "netns"
    mounts.mkdir()
    config = "\n".join((quick(mounts, "red"), *more))
    with (
        named_netns(mounts, "red") as red,
        contextlib.closing(Server(red)) as server,
        pipeline(folder, "--ebpf", mode, config=config) as running,
    ):
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        seconds_until(lambda: running.knows_all(red, server), DEADLINE_S, "complete")
        yield running, red, server


def test_one_process_reads_all_namespaces_and_everything_else_is_as_ever(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, red, server):
        seconds_until(lambda: source_of(running, red) == "ebpf", DEADLINE_S, "by eBPF")
        assert (len(running.pids("ebpf")), running.pids("netns")) == (1, {})
        (listener,) = running.connections(netns=red.inode, listening=True)
        assert [(owner["pid"], owner["fd"]) for owner in listener["owners"]] == [(server.pid, 3)]
        directions = Counter(
            row["direction"] for row in running.connections(netns=red.inode, established=True)
        )
        assert directions == {"inbound": CONNECTIONS, "outbound": CONNECTIONS}
        assert {row["cookie"] for row in running.connections(netns=red.inode)} == {
            cookie for line in red.run("ss", "-HtanOe").splitlines() for cookie in [cookie_of(line)]
        }
        server.tell("close all")
        seconds_until(lambda: not running.connections(netns=red.inode), DEADLINE_S, "all are gone")


def cookie_of(line: str) -> int:
    (word,) = [word for word in line.split() if word.startswith("sk:")]
    return int(word.removeprefix("sk:"), 16)


def test_connections_of_20_ms_are_remembered_with_both_their_owners(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, red, _):
        command = inside(red, sys.executable, "-S", "-c", SERVE)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
            assert serving.stdin is not None and serving.stdout is not None
            ports = [int(port) for port in serving.stdout.readline().split()]
            expected: set[tuple[str, int, int, str]] = set()
            for family, address, port in (("4", "127.0.0.1", ports[0]), ("6", "::1", ports[1])):
                for _number in range(SHORT):
                    serving.stdin.write(f"{family}\n")
                    serving.stdin.flush()
                    command = inside(red, sys.executable, "-S", "-c", CONNECT, address, str(port))
                    with subprocess.Popen(command) as connecting:
                        assert connecting.wait(timeout=DEADLINE_S) == 0
                    expected |= {
                        (address, port, connecting.pid, "outbound"),
                        (address, port, serving.pid, "inbound"),
                    }
            serving.stdin.close()
            assert serving.stdout.readline() == "done\n"

            def ended() -> list[dict[str, Any]]:
                return [
                    row
                    for row in closed_rows(running, netns="red")
                    if {row["local_port"], row["remote_port"]} & set(ports)
                ]

            seconds_until(lambda: len(ended()) >= 4 * SHORT, DEADLINE_S, "all of them")
            rows = ended()
            assert len(rows) == 4 * SHORT, running.log
            found = {
                (
                    row["local_addr"],
                    row["local_port"] if row["direction"] == "inbound" else row["remote_port"],
                    row["pid"],
                    row["direction"],
                )
                for row in rows
            }
            assert found == expected
            assert {row["bytes_sent"] for row in rows if row["direction"] == "inbound"} == {100}
            # Not known where a dump had to tell of the end.
            received = {row["bytes_received"] for row in rows if row["direction"] == "outbound"}
            assert received - {None} == {100}
            assert all(row["duration_s"] >= 0.02 and row["refused"] is False for row in rows)


UDP = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
for _ in range(int(sys.argv[1])):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(server.getsockname())
    client.send(b"question")
    _, peer = server.recvfrom(100)
    server.sendto(b"an answer", peer)
    client.recv(100)
    client.close()
print(server.getsockname()[1])
"""


@pytest.mark.skipif(cgroup2_dir() is None, reason="the kernel tells the end of a UDP socket by its cgroup")
def test_udp_connections_too_short_for_any_look_are_remembered(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, red, _):
        with subprocess.Popen(
            inside(red, sys.executable, "-S", "-c", UDP, str(SHORT)), stdout=subprocess.PIPE, text=True
        ) as asking:
            port = int(asking.communicate(timeout=DEADLINE_S)[0])
        seconds_until(
            lambda: len(closed_rows(running, netns="red", proto="udp")) >= SHORT, DEADLINE_S, "all of them"
        )
        rows = closed_rows(running, netns="red", proto="udp")
        assert len(rows) == SHORT
        assert {
            (row["pid"], row["remote_port"], row["bytes_sent"], row["bytes_received"]) for row in rows
        } == {(asking.pid, port, 8, 9)}


def test_a_refused_connection_is_remembered_as_one(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, red, _):
        program = 'import socket; print(socket.socket().connect_ex(("127.0.0.1", 1)))'
        assert red.run(sys.executable, "-S", "-c", program) == "111\n"
        seconds_until(
            lambda: bool(closed_rows(running, netns="red", remote_port=1)), DEADLINE_S, "the refusal"
        )
        (row,) = closed_rows(running, netns="red", remote_port=1)
        assert (row["refused"], row["direction"], row["bytes_sent"]) == (True, "outbound", 0)


def test_an_event_alone_shows_a_new_socket_with_its_owner(tmp_path: Path) -> None:
    slow = "[tables]\ninterval_s = 600\nidle_interval_s = 600\nfull_interval_s = 600\n"
    mounts = tmp_path / "netns"
    mounts.mkdir()
    settings = (
        quick(mounts, "red").split("[tables]")[0]
        + slow
        + "[budget]\ncpu_percent = 50\n[workers]\nstale_after_s = 900\n"
    )
    with (
        named_netns(mounts, "red") as red,
        contextlib.closing(Server(red)) as server,
        pipeline(tmp_path, "--ebpf", "require", config=settings) as running,
    ):
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        port = int(server.tell("listen"))
        filters = {"netns": red.inode, "local_port": port, "pid": server.pid}
        seconds_until(
            lambda: bool(running.connections(**filters)), DEADLINE_S, "the listener, which nobody looked for"
        )


def test_the_command_line_prints_what_ended(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, _, server):
        server.tell("close all")
        seconds_until(
            lambda: len(closed_rows(running, netns="red")) >= 2 * CONNECTIONS, DEADLINE_S, "all ended"
        )
        arguments = ["--closed", "--netns", "red", "--runtime-dir", str(running.runtime_dir)]

        def run(*more: str) -> str:
            command = sockscope("connections", *arguments, *more)
            done = subprocess.run(
                command, capture_output=True, text=True, env=clean_environment(), check=True
            )
            return done.stdout

        assert run("--count") == f"{2 * CONNECTIONS}\n"
        rows = json.loads(run("--json"))
        assert {(row["state"], row["pid"], row["owner_role"], row["source"]) for row in rows} == {
            ("CLOSE", server.pid, "last", "ebpf")
        }
        table = run().splitlines()
        assert table[0].split() == [
            "NETNS", "PROTO", "LOCAL", "REMOTE", "DIRECTION", "OWNER", "DURATION_S", "SENT", "RECEIVED",
        ]  # fmt: skip
        assert len(table) == 1 + 2 * CONNECTIONS


def test_a_worker_that_dies_is_started_once_more_and_after_that_proc_is_read(tmp_path: Path) -> None:
    with ebpf_host(tmp_path) as (running, red, server):

        def answers() -> bool:
            assert len(running.connections(netns=red.inode, established=True)) in (0, 2 * CONNECTIONS)
            return running.knows_all(red, server)

        (first,) = running.pids("ebpf")
        os.kill(first, signal.SIGKILL)
        seconds_until(
            lambda: running.log.count("one process reads all namespaces") == 2, DEADLINE_S, "started anew"
        )
        seconds_until(lambda: source_of(running, red) == "ebpf" and answers(), DEADLINE_S, "complete by eBPF")
        assert "starting it once more, from a fresh state" in running.log
        (second,) = running.pids("ebpf")
        assert second != first
        os.kill(second, signal.SIGKILL)
        seconds_until(
            lambda: source_of(running, red) == "sock_diag" and answers(), DEADLINE_S, "complete by /proc"
        )
        assert running.log.count("reading /proc from now on") == 1
        seconds_until(lambda: running.pids("ebpf") == {}, DEADLINE_S, "no such worker any more")


def test_a_ring_that_overflows_ends_in_reading_proc_and_connections_are_answered_all_the_while(
    tmp_path: Path,
) -> None:
    tiny = "[ebpf]\nring_bytes = 4096\ndrain_interval_ms = 1000\n"
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with (
        named_netns(mounts, "red") as red,
        contextlib.closing(Server(red)) as server,
        pipeline(tmp_path, "--ebpf", "require", config=quick(mounts, "red") + tiny) as running,
    ):
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        flood = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
while True:
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    one.close()
    other.close()
"""
        with subprocess.Popen(inside(red, sys.executable, "-S", "-c", flood)) as flooding:
            try:
                seconds_until(lambda: "reading /proc from now on" in running.log, DEADLINE_S, "given up")
            finally:
                flooding.kill()
        assert "events were lost" in running.log
        seconds_until(lambda: source_of(running, red) == "sock_diag", DEADLINE_S, "read by /proc")
        seconds_until(
            lambda: (
                {row["pid"] for row in running.connections(netns=red.inode, pid=server.pid, fields=["pid"])}
                == {server.pid}
            ),
            DEADLINE_S,
            "answered",
        )


WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-bpf,-perfmon,-sys_admin")
# The kernel's type information is an empty file.
_HIDE_BTF = 'mount --bind /dev/null /sys/kernel/btf/vmlinux && exec "$@"'
WITHOUT_BTF = ("unshare", "--mount", "sh", "-c", _HIDE_BTF, "sh")
# Events would name pids of outside.
OTHER_PIDS = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize(
    ("prefix", "source"), [(WITHOUT_RIGHTS, "proc"), (WITHOUT_BTF, "sock_diag")], ids=["rights", "BTF"]
)
def test_where_it_is_not_possible_auto_says_so_once_and_reads_proc(
    tmp_path: Path, prefix: tuple[str, ...], source: str
) -> None:
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with (
        named_netns(mounts, "red") as red,
        contextlib.closing(Server(red)) as server,
        pipeline(tmp_path, "--ebpf", "auto", config=quick(mounts, "red"), prefix=prefix) as running,
    ):
        seconds_until(running.is_ready, DEADLINE_S, "ready")
        seconds_until(lambda: running.knows_all(red, server), DEADLINE_S, "complete")
        assert source_of(running, red) == source
        about = [line for line in running.log.splitlines() if "eBPF" in line or "BPF" in line]
        assert len(about) == 1, about
        assert " INFO " in about[0] and about[0].endswith("; processes are read instead")


@pytest.mark.parametrize("verb", ["run", "snapshot"])
@pytest.mark.parametrize(
    ("prefix", "reason"),
    [(WITHOUT_RIGHTS, "CAP_BPF"), (WITHOUT_BTF, "type information is missing")],
    ids=["rights", "BTF"],
)
def test_where_it_is_not_possible_require_does_not_start(
    tmp_path: Path, prefix: tuple[str, ...], reason: str, verb: str
) -> None:
    code, said = require(tmp_path, prefix, verb)
    assert code == 4, said
    assert reason in said and "ebpf.mode is require" in said


def test_in_a_pid_namespace_events_would_name_other_processes_and_require_does_not_start(
    tmp_path: Path,
) -> None:
    code, said = require(tmp_path, OTHER_PIDS, "run")
    assert code == 4, said
    assert "this is a pid namespace of its own" in said


def require(folder: Path, prefix: tuple[str, ...], verb: str) -> tuple[int, str]:
    """Exit code and stderr of `sockscope VERB --ebpf require`."""
    more = ("--runtime-dir", str(folder / "run"), "--duration", "30") if verb == "run" else ()
    command = [*prefix, *sockscope(verb, "--ebpf", "require", *more)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), timeout=90, cwd=REPOSITORY
    )
    return done.returncode, done.stderr
