"""Cases with programs in the kernel: `ebpf-pass`, what one pass costs, and `ebpf-events`, what the events do."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from pipeline.ebpf import SocketIterator
from scripts.benchmarks.load import load
from scripts.benchmarks.measure import (
    ROOT,
    SOCKSCOPE,
    Effort,
    Row,
    clean_environment,
    row_of_runs,
    run_command,
)

_ONE_SHOT_GOAL = 1 / 60
_ONE_PASS_GOAL_S = 0.06
_CONNECTION_GOAL_US = 12.0
_MISSED_GOAL_PERCENT = 0.1
_SAMPLED_NAMESPACES = 3


def ebpf_pass(effort: Effort) -> list[Row]:
    """One attributed table of everything by the eBPF iterator, beside ss and beside reading processes."""
    namespaces, processes, each = (5, 2, 50) if effort.quick else (50, 4, 250)
    command = [*SOCKSCOPE, "snapshot", "--json", "--ebpf"]
    told, walked, with_ss, raw = [], [], [], []
    with load(namespaces, processes, each, each) as made:
        sampled = made.names if effort.full else made.names[:_SAMPLED_NAMESPACES]
        for _ in range(effort.runs):
            told.append(run_command([*command, "require"]).cpu_s)
            walked.append(run_command([*command, "off"]).cpu_s)
            spent = [run_command(["ip", "netns", "exec", name, "ss", "-tanp"]).cpu_s for name in sampled]
            with_ss.append(sum(spent) / len(sampled) * namespaces)
            raw.append(_pass_us(namespaces * processes * 2 * each))
    what = f"{namespaces} namespaces x {processes} processes x ({each} sockets + {each} other fds)"
    ss_row = row_of_runs("ebpf-pass", what, "s CPU", told, with_ss, peer_name="ss -tanp in each namespace")
    assert ss_row.peer is not None
    ss_row.goal = ss_row.peer * _ONE_SHOT_GOAL
    return [
        ss_row,
        row_of_runs("ebpf-pass", what, "s CPU", told, walked, peer_name="the same without eBPF"),
        row_of_runs("ebpf-pass", f"{what}: a descriptor, read and decoded", "us CPU", raw),
        _one_pass(effort),
    ]


def _pass_us(descriptors: int) -> float:
    """CPU time of one pass for each descriptor of the load."""
    with SocketIterator.open() as iterator:
        began_s = time.process_time()
        iterator.read_all()
        return (time.process_time() - began_s) / descriptors * 1e6


def _one_pass(effort: Effort) -> Row:
    processes, sockets = (4, 50) if effort.quick else (20, 500)
    with load(1, processes, sockets) as made:
        walk = [sys.executable, "-m", "scripts.benchmarks.walk_alone", str(made.inodes[0])]
        told = [_report(*walk, "require")["cpu_s"] for _ in range(effort.runs)]
        walked = [_report(*walk, "off")["cpu_s"] for _ in range(effort.runs)]
    return row_of_runs(
        "ebpf-pass", f"{processes} processes x {sockets} sockets in one namespace: sockets, owners, join", "s CPU",
        told, walked, peer_name="the same without eBPF", goal=_ONE_PASS_GOAL_S,
        note="the interpreter's start left out on both sides",
    )  # fmt: skip


def ebpf_events(effort: Effort) -> list[Row]:
    """What the event programs cost each connection of the host, and whether they miss any."""
    count = 1_000 if effort.quick else 20_000
    command = [sys.executable, "-m", "scripts.benchmarks.connecting", str(count)]
    without = [_report(*command) for _ in range(effort.runs)]
    running = [_report(*command, "ebpf") for _ in range(effort.runs)]
    # What one connection costs varies more than what is added to it: against the middle of those without.
    bare_us = statistics.median(one["connection_us"] for one in without)
    what = f"{count} connections of a process to itself, one after the other"
    return [
        row_of_runs(
            "ebpf-events", f"{what}: added to one, both ends", "us CPU",
            [one["connection_us"] - bare_us for one in running], goal=_CONNECTION_GOAL_US,
            note=f"without the programs one costs {bare_us:.1f} us",
        ),
        row_of_runs("ebpf-events", f"{what}: taking out one event", "us CPU", [one["event_us"] for one in running]),
        row_of_runs(
            "ebpf-events", f"{what}: ends missed, or with another process", "%",
            [100 * (1 - one["right"]) for one in running], goal=_MISSED_GOAL_PERCENT,
        ),
    ]  # fmt: skip


def _report(*command: str) -> dict[str, Any]:
    """What a program prints as JSON."""
    shown = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=clean_environment()
    )
    report: dict[str, Any] = json.loads(shown.stdout)
    return report
