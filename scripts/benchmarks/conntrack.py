"""The case `conntrack`: a table of translated flows, dumped and decoded, and joined with both ends' sockets.

The peer is `conntrack -L` on the same table: a C program that reads and prints it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence

from pipeline.clock import SystemClock
from pipeline.kernel.enter import open_netns
from pipeline.model.connection import Connection, State
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FLOW_ROLE, FlowHealth, FlowSnapshot
from pipeline.model.snapshot import Health, Snapshot
from pipeline.netlink.conntrack import count_entries, dump_translated, open_conntrack
from pipeline.netlink.conntrack_message import FlowDecoder
from pipeline.store import Store
from scripts.benchmarks.measure import Effort, Row, row_of_runs, run_command

_CASE = "conntrack"
_ENTRIES = 20_000
_QUICK_ENTRIES = 1_000
_COMMANDS = ("nft", "conntrack")
_GOAL_US = 3.5
# As long as no benchmark runs.
_TIMEOUT_S = 3600
_STALE_AFTER_S = 3600.0


def conntrack(effort: Effort) -> list[Row]:
    """CPU time for each of 20,000 translated flows: dumped and decoded, beside conntrack -L; joined with its ends."""
    for command in _COMMANDS:
        if not any(os.access(os.path.join(folder, command), os.X_OK) for folder in os.get_exec_path()):
            raise LookupError(f"the command {command} is missing; try: apt install nftables conntrack")
    entries = _QUICK_ENTRIES if effort.quick else _ENTRIES
    ours, theirs, joined = [], [], []
    with _translating(entries) as path:
        for _ in range(effort.runs):
            flows, cpu_s = _dump(path, entries)
            if len(flows) != entries:
                raise LookupError(f"{len(flows)} of {entries} flows were read")
            ours.append(cpu_s / entries * 1e6)
            listed = run_command(["nsenter", f"--net={path}", "conntrack", "-L"])
            theirs.append(listed.cpu_s / entries * 1e6)
            joined.append(_join(flows) / entries * 1e6)
    what = f"{entries:,} translated flows"
    return [
        row_of_runs(
            _CASE, f"{what}: dumped and decoded, each", "µs CPU", ours, theirs,
            peer_name="conntrack -L", goal=_GOAL_US,
        ),
        row_of_runs(_CASE, f"{what}: joined with the sockets of both ends, each", "µs CPU", joined),
    ]  # fmt: skip


def _dump(path: str, entries: int) -> tuple[list[Flow], float]:
    """The flows, and the CPU seconds that counting, dumping and decoding took."""
    began_s = time.process_time()
    netns_fd = open_netns(path, os.stat(path).st_ino)
    try:
        with open_conntrack(netns_fd) as sock:
            # All of them are translated, as the worker knows after its first look.
            flows = dump_translated(sock, FlowDecoder(), count_entries(sock) - entries).flows
    finally:
        os.close(netns_fd)
    return flows, time.process_time() - began_s


def _join(flows: Sequence[Flow]) -> float:
    """CPU seconds until a store that knows the sockets of both ends knows what lies between them."""
    clock = SystemClock()
    now_s = clock.monotonic_s()
    client, server, router = 1, 2, 3
    store = Store(":memory:", "bench", "bench", clock, _STALE_AFTER_S)
    ends: dict[int, list[Connection]] = {client: [], server: []}
    for number, flow in enumerate(flows, 1):
        src, sport, dst, dport, reply_src, reply_sport, reply_dst, reply_dport = flow[3:11]
        for netns, tuple_ in (
            (client, (src, sport, dst, dport)),
            (server, (reply_src, reply_sport, reply_dst, reply_dport)),
        ):
            key = 2 * number + (netns == server)
            ends[netns].append(
                Connection(key, flow[1], flow[2], State.ESTABLISHED, *tuple_, None, key, key, 0)
            )
    store.apply(
        [
            Snapshot("netns", netns, netns, 1, 1, True, now_s, now_s, "sock_diag", 0, Health(), rows)
            for netns, rows in ends.items()
        ]
    )
    began_s = time.process_time()
    store.apply([], flows=[FlowSnapshot(FLOW_ROLE, router, router, 1, 1, True, now_s, FlowHealth(), flows)])
    used_cpu_s = time.process_time() - began_s
    store.close()
    return used_cpu_s


@contextlib.contextmanager
def _translating(entries: int) -> Iterator[str]:
    """The path of a namespace whose table has so many entries, each with its destination translated."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        path = f"/proc/{holder.pid}/ns/net"
        inside = ["nsenter", f"--net={path}"]
        # Makes the kernel track, and load what translates.
        rules = "add table ip bench; add chain ip bench in { type nat hook prerouting priority -100; }"
        subprocess.run([*inside, "nft", rules], check=True)
        lines = "\n".join(_line(number) for number in range(entries))
        subprocess.run(
            [*inside, "conntrack", "-R", "/dev/stdin"],
            input=lines + "\n",
            text=True,
            check=True,
            capture_output=True,
        )
        yield path
    finally:
        holder.communicate()


def _line(number: int) -> str:
    """Three of four are TCP."""
    proto, state = ("tcp", "--state ESTABLISHED") if number % 4 else ("udp", "")
    source = f"10.50.{number // 250}.{number % 250 + 1}"
    return (
        f"-I -p {proto} -s {source} -d 192.0.2.1 --sport {1024 + number} --dport 80 {state} "
        f"-t {_TIMEOUT_S} --dst-nat 10.9.9.9:8080"
    )
