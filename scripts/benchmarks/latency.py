"""Cases of how soon: `freshness` of what is answered, and `query`, the answering itself."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipeline.client import Client
from scripts.benchmarks.load import helper, load, pipeline, ready_message
from scripts.benchmarks.measure import Effort, Row, cpu_s, percentile, row_of_runs

_FRESH_GOAL_S = 1.5
_EBPF_FRESH_GOAL_S = 0.2
_QUIET_GOAL_S = 5.0
_QUIET_AFTER_S = 65.0
_GIVE_UP_S = 30.0
_POLL_S = 0.02
_LOOKUP_GOAL_MS = 0.3
_LOOKUP_LATE_GOAL_MS = 2.0
_AGGREGATOR_GOAL_PERCENT = 5.0


class Prober:
    """A process in a namespace that opens connections when told and keeps them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.opened: list[dict[str, Any]] = []

    def open(self) -> dict[str, Any]:
        """One more: {"at_s", "port", "inode", "pid"} of its client end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("open\n")
        self._process.stdin.flush()
        probe: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.opened.append(probe)
        return probe


@contextlib.contextmanager
def _prober(netns_name: str) -> Iterator[Prober]:
    command = ["ip", "netns", "exec", netns_name, sys.executable, "-m", "scripts.benchmarks.prober"]
    with helper(command) as process:
        ready_message(process)
        yield Prober(process)


def _age_when_seen(client: Client, netns: int, probe: dict[str, Any]) -> float:
    """Seconds from the connection's opening until an answer shows it with its owner; `_GIVE_UP_S` at most."""
    opened_s: float = probe["at_s"]
    while (age_s := time.monotonic() - opened_s) < _GIVE_UP_S:
        rows = client.connections(netns=netns, inode=probe["inode"], fields=["owners"]).rows
        if any(owner["pid"] == probe["pid"] for row in rows for owner in row["owners"]):
            return time.monotonic() - opened_s
        time.sleep(_POLL_S)
    return age_s


class _Passes:
    """What procspy's background reader shows after each pass, collected while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen: list[tuple[float, set[int]]] = []
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while reading: the end
            for line in self._process.stdout:
                shown = json.loads(line)
                self.seen.append((shown["at_s"], set(shown["inodes"])))

    def ages_s(self, probes: list[dict[str, Any]]) -> list[float]:
        """Of the probes that were shown, their ages when they first were."""
        ages = []
        for probe in probes:
            shown = (at_s - probe["at_s"] for at_s, inodes in self.seen if probe["inode"] in inodes)
            ages += [first] if (first := next(shown, None)) is not None else []
        return ages


def ebpf_freshness(effort: Effort) -> list[Row]:
    """How old a new connection is when an answer shows it with its owner, with eBPF."""
    namespaces, probes = (2, 5) if effort.quick else (5, 100 * effort.runs)
    what = f"{namespaces} namespaces x 2 processes x 51 sockets, 4 pairs a second replaced in each"
    with (
        load(namespaces, 2, 51, 50, churn=2.0) as made,
        pipeline(made.pattern, namespaces, ebpf="require") as running,
        _prober(made.names[0]) as prober,
        Client(running.runtime_dir) as client,
    ):
        time.sleep(effort.settle_s)
        ages = []
        for _ in range(probes):
            time.sleep(random.uniform(0.0, 0.3))
            ages.append(_age_when_seen(client, made.inodes[0], prober.open()))
    return [
        _age_row(what, percent, ages, [], _EBPF_FRESH_GOAL_S if percent == 95 else None, "ebpf-freshness")
        for percent in (50, 95)
    ]


def freshness(effort: Effort) -> list[Row]:
    """How old a new connection is when an answer shows it with its owner."""
    namespaces, probes = (2, 5) if effort.quick else (5, 40 * effort.runs)
    what = f"{namespaces} namespaces x 2 processes x 51 sockets, 4 pairs a second replaced in each"
    with load(namespaces, 2, 51, 50, churn=2.0) as made, pipeline(made.pattern, namespaces) as running:
        procspy_command = [
            sys.executable,
            "-m",
            "scripts.benchmarks.procspy",
            "--background",
            "--inodes",
            *map(str, made.inodes),
        ]
        with (
            helper(procspy_command) as procspy,
            _prober(made.names[0]) as prober,
            Client(running.runtime_dir) as client,
        ):
            passes = _Passes(procspy)
            time.sleep(effort.settle_s)
            ages = []
            for _ in range(probes):
                time.sleep(random.uniform(0.0, 0.3))
                ages.append(_age_when_seen(client, made.inodes[0], prober.open()))
            if not effort.quick:
                time.sleep(21.0)  # two passes of procspy: the last probes are shown too
            procspy_ages = passes.ages_s(prober.opened)
    rows = [
        _age_row(what, percent, ages, procspy_ages, _FRESH_GOAL_S if percent == 95 else None)
        for percent in (50, 95)
    ]
    return rows + (_quiet(effort) if effort.full else [])


def _age_row(
    what: str, percent: int, ages: list[float], procspy_ages: list[float], goal: float | None,
    case: str = "freshness",
) -> Row:  # fmt: skip
    return Row(
        case, f"{what}: p{percent}", "s", percentile(ages, percent),
        percentile(procspy_ages, percent) if procspy_ages else None, "procspy", goal, sorted(ages),
        f"{len(ages)} connections, one after the other; {_POLL_S * 1000:.0f} ms between two questions",
    )  # fmt: skip


def _quiet(effort: Effort) -> list[Row]:
    """The same where nothing had happened for a minute."""
    ages = []
    with load(12, 1, 3) as made, pipeline(made.pattern, 12) as running, Client(running.runtime_dir) as client:
        time.sleep(_QUIET_AFTER_S)
        with contextlib.ExitStack() as probers:
            for name, inode in zip(made.names, made.inodes, strict=True):
                # The prober's own arrival is not what is measured, and has to be an old story.
                prober = probers.enter_context(_prober(name))
                ages.append((prober, inode))
            time.sleep(_QUIET_AFTER_S)
            seen = [_age_when_seen(client, inode, prober.open()) for prober, inode in ages]
    return [_age_row("in a namespace quiet for a minute", 95, seen, [], _QUIET_GOAL_S)]


def query(effort: Effort) -> list[Row]:
    """Answers and costs of an aggregator that holds 100,000 connections, 1 % of which change every second."""
    namespaces, each, lookups = (4, 500, 200) if effort.quick else (20, 5000, 2000)
    command = [sys.executable, "-m", "scripts.benchmarks.synthetic", str(namespaces), str(each)]
    aggregator: list[float] = []
    middle: list[float] = []
    late: list[float] = []
    with helper(command) as process:
        made = ready_message(process)
        with Client(made["runtime_dir"]) as client:
            for _ in range(effort.runs):
                aggregator.append(_aggregator_percent(made["aggregator_pid"], effort))
                times_ms = _lookup_times_ms(client, made["keys"], lookups)
                middle.append(percentile(times_ms, 50))
                late.append(percentile(times_ms, 99))
            lag_s = _merge_lag_s(client)
    what = f"{namespaces * each:,} connections in {namespaces} namespaces, 1 % a second replaced"
    note = f"{lookups} lookups by cookie, all fields, one after the other; real aggregator, made-up snapshots"
    return [
        row_of_runs("query", f"{what}: lookup, p50", "ms", middle, goal=_LOOKUP_GOAL_MS, note=note),
        row_of_runs("query", f"{what}: lookup, p99", "ms", late, goal=_LOOKUP_LATE_GOAL_MS, note=note),
        row_of_runs(
            "query", f"{what}: aggregator", "% of a core", aggregator, goal=_AGGREGATOR_GOAL_PERCENT,
            note=f"oldest namespace {lag_s:.2f} s behind at the end",
        ),
        Row("query", f"{what}: first load", "s CPU", made["load_cpu_s"]),
        Row("query", f"{what}: aggregator's memory", "MB", made["pss_bytes"] / 1e6),
    ]  # fmt: skip


def _aggregator_percent(pid: int, effort: Effort) -> float:
    """While nobody asks."""
    began_s, began_cpu_s = time.monotonic(), cpu_s(pid)
    time.sleep(effort.measure_s / 2)
    return 100 * (cpu_s(pid) - began_cpu_s) / (time.monotonic() - began_s)


def _lookup_times_ms(client: Client, keys: list[int], count: int) -> list[float]:
    """How long each of `count` lookups of one row took. Raises: LookupError where one did not find it."""
    times_ms = []
    for key in random.choices(keys, k=count):
        began_s = time.perf_counter()
        rows = client.connections(cookie=key).rows
        times_ms.append((time.perf_counter() - began_s) * 1000)
        if len(rows) != 1:
            raise LookupError(f"{len(rows)} rows for cookie {key}")
    return times_ms


def _merge_lag_s(client: Client) -> float:
    """The age of the namespace that is furthest behind."""
    return max(float(row["age_s"]) for row in client.namespaces(fields=["age_s"]))
