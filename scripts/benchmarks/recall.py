"""The case `recall`: of connections that live 0.02 to 2 s, how many the whole pipeline remembers with the right pid."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.client import Client
from scripts.benchmarks.load import Pipeline, helper, load, pipeline, ready_message
from scripts.benchmarks.measure import ROOT, Effort, Row, TreeMeter, clean_environment

_MISSED_GOAL_PERCENT = 0.1
_CONFIG = "[closed]\nretention_s = 600\nmax_rows = 1000000\n"
# How long after the last close the table may take to tell of all of them.
_TOLD_WITHIN_S = 20.0
_POLL_S = 0.5
_INBOUND, _OUTBOUND = "inbound", "outbound"
_FAMILIES = {4: "inet", 6: "inet6"}

# (family, direction, port of the client's end, pid)
End = tuple[str, str, int, int]


class _Recalled(NamedTuple):
    """One run: what was made, and what of it the table shows with its pid. `known`: ends shown with any pid."""

    made: int
    right: int
    known: int
    rate: float
    cpu_percent: float
    restarts: int

    @property
    def missed_percent(self) -> float:
        return 100 * (1 - self.right / self.made)


def recall(effort: Effort) -> list[Row]:
    """Connections living 0.02 to 2 s, v4 and v6: how many ends the table of closed ones lacks, or gives another pid."""
    by_processes, by_one = (80, 1_000) if effort.quick else (1_200, 20_000)
    return [
        _row("one process each, 40 a second", "processes", 40, by_processes, effort),
        _row("one long-lived client, 5,000 a second", "one", 500 if effort.quick else 5_000, by_one, effort),
    ]


def _row(what: str, how: str, rate: int, count: int, effort: Effort) -> Row:
    runs = [_run(how, rate, count) for _ in range(effort.runs)]
    last = runs[-1]
    missed = [run.missed_percent for run in runs]
    return Row(
        "recall", f"{count} connections living 0.02 to 2 s, v4 and v6, {what}: ends missed, or with another pid", "%",
        max(missed), goal=_MISSED_GOAL_PERCENT, runs=missed,
        note=f"{last.right} of {last.made} ends right, {last.known} with a pid; {last.rate:.0f} a second made; events "
        f"lost {sum(run.restarts for run in runs)} times; sockscope used {last.cpu_percent:.0f} % of a core meanwhile",
    )  # fmt: skip


def _run(how: str, rate: int, count: int) -> _Recalled:
    with tempfile.TemporaryDirectory(prefix="sockscope-bench-") as folder, load(1, 1, 3) as made:
        config = Path(folder) / "config.toml"
        config.write_text(_CONFIG)
        enter = ["ip", "netns", "exec", made.names[0]]
        inside = [*enter, sys.executable, "-m", "scripts.benchmarks.short_lived"]
        with (
            pipeline(made.pattern, 1, config, "require") as running,
            helper([*inside, "serve"]) as server,
        ):
            ports = ready_message(server)["ports"]
            meter, began_s = TreeMeter(running.pid), time.monotonic()
            shown = subprocess.run(
                [*inside, "connect", how, str(rate), str(count), *map(str, ports)],
                check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment(),
            )  # fmt: skip
            cpu_percent = 100 * meter.used_cpu_s() / (time.monotonic() - began_s)
            told: dict[str, Any] = json.loads(shown.stdout)
            expected = _ends(told["ends"], server.pid)
            found = _found(running, made.inodes[0], ports, 2 * count)
            return _Recalled(
                expected.total(), (expected & found).total(), sum(found[end] for end in found if end[3]),
                count / told["took_s"], cpu_percent, _restarts(running),
            )  # fmt: skip


def _ends(client_ends: list[list[int]], server_pid: int) -> Counter[End]:
    ends: Counter[End] = Counter()
    for family, port, pid in client_ends:
        ends[_FAMILIES[family], _OUTBOUND, port, pid] += 1
        ends[_FAMILIES[family], _INBOUND, port, server_pid] += 1
    return ends


def _found(running: Pipeline, netns: int, ports: list[int], wanted: int) -> Counter[End]:
    """What the table shows of the server's connections, once it shows `wanted` ends or has had time enough."""
    deadline_s = time.monotonic() + _TOLD_WITHIN_S
    fields = ["family", "direction", "local_port", "remote_port", "pid"]
    with Client(running.runtime_dir, timeout_s=60.0) as client:
        while True:
            rows = client.connections(closed=True, netns=netns, fields=fields).rows
            ends: Counter[End] = Counter()
            for row in rows:
                if row["local_port"] in ports or row["remote_port"] in ports:
                    client_port = row["remote_port"] if row["direction"] == _INBOUND else row["local_port"]
                    ends[row["family"], row["direction"], client_port, row["pid"] or 0] += 1
            if ends.total() >= wanted or time.monotonic() > deadline_s:
                return ends
            time.sleep(_POLL_S)


def _restarts(running: Pipeline) -> int:
    """How often the eBPF worker began anew, as it does when one event is lost. Raises: LookupError where it gave up."""
    with Client(running.runtime_dir) as client:
        rows = [row for row in client.status()["workers"] if row["role"] == "ebpf"]
    if not rows:
        raise LookupError("the eBPF worker gave up")
    return int(rows[0]["restarts"])
