"""Cases where everything is read once: `one-shot` and `one-pass`."""

from __future__ import annotations

import json
import subprocess
import sys

from scripts.benchmarks.load import Load, load
from scripts.benchmarks.measure import (
    ROOT,
    SOCKSCOPE,
    Effort,
    Row,
    clean_environment,
    row_of_runs,
    run_command,
)

_ONE_SHOT_GOAL = 1 / 20
_ONE_PASS_GOAL_S = 0.25
# `ss -p` reads the descriptors of all processes of the host, whatever namespace it is run in: every run costs the
# same, so a few stand for all.
_SAMPLED_NAMESPACES = 3


def one_shot(effort: Effort) -> list[Row]:
    """One attributed table of everything, by a command that starts, prints and ends."""
    namespaces, processes, each = (5, 2, 50) if effort.quick else (50, 4, 250)
    ours: list[float] = []
    with_ss: list[float] = []
    plain: list[float] = []
    with load(namespaces, processes, each, each) as made:
        wanted = namespaces * processes * each
        note = _completeness(made, wanted)
        sampled = made.names if effort.full else made.names[:_SAMPLED_NAMESPACES]
        for _ in range(effort.runs):
            ours.append(run_command([*SOCKSCOPE, "snapshot", "--json"]).cpu_s)
            plain.append(run_command([sys.executable, "-m", "scripts.benchmarks.plain_walk"]).cpu_s)
            spent = [run_command(["ip", "netns", "exec", name, "ss", "-tanp"]).cpu_s for name in sampled]
            with_ss.append(sum(spent) / len(sampled) * namespaces)
    what = f"{namespaces} namespaces x {processes} processes x ({each} sockets + {each} other fds)"
    sampling = f"ss was run in {len(sampled)} namespaces"
    if len(sampled) < namespaces:
        sampling += f", and its CPU time multiplied up to {namespaces}"
    ss_row = row_of_runs(
        "one-shot", what, "s CPU", ours, with_ss, peer_name="ss -tanp in each namespace", note=f"{note}; {sampling}"
    )  # fmt: skip
    assert ss_row.peer is not None
    ss_row.goal = ss_row.peer * _ONE_SHOT_GOAL
    return [
        ss_row,
        row_of_runs("one-shot", what, "s CPU", ours, plain, peer_name="plain Python walk", note=note),
    ]


def _completeness(made: Load, wanted: int) -> str:
    """How much of the load `snapshot` shows with an owner: a fast answer that lacks half is none."""
    command = [*SOCKSCOPE, "snapshot", "--json", "--netns", made.pattern]
    shown = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=clean_environment())
    pids = {pid for group in made.pids for pid in group}
    rows = json.loads(shown.stdout)
    right = sum(1 for row in rows if any(owner["pid"] in pids for owner in row["owners"]))
    return f"{right} of {wanted} sockets shown with their owner"


def one_pass(effort: Effort) -> list[Row]:
    """All tables and descriptors of one namespace, read once as fast as it goes."""
    processes, sockets = (4, 50) if effort.quick else (20, 500)
    with load(1, processes, sockets) as made:
        inode = str(made.inodes[0])
        procspy = [sys.executable, "-m", "scripts.benchmarks.procspy", inode]
        walk = [sys.executable, "-m", "scripts.benchmarks.walk_alone", inode]
        command = [*SOCKSCOPE, "snapshot", "--netns", inode, "--json"]
        # Starting an interpreter is not part of the pass, and the same for both.
        start = [run_command([sys.executable, "-c", "pass"]).cpu_s for _ in range(3)]
        started_s = sorted(start)[1]
        procspy_runs = [run_command(procspy) for _ in range(effort.runs)]
        walk_runs = [_inner_cpu_s(walk) for _ in range(effort.runs)]
        whole_runs = [run_command(command) for _ in range(effort.runs)]
    what = f"{processes} processes x {sockets} sockets in one namespace"
    peer = [ran.cpu_s - started_s for ran in procspy_runs]
    return [
        row_of_runs(
            "one-pass", f"{what}: tables, owners, join", "s CPU", walk_runs, peer, peer_name="procspy's pass",
            goal=_ONE_PASS_GOAL_S, note="the interpreter's start left out on both sides",
        ),
        row_of_runs(
            "one-pass", f"{what}: the command, JSON included", "s CPU", [ran.cpu_s for ran in whole_runs],
            [ran.cpu_s for ran in procspy_runs], peer_name="procspy's pass",
        ),
        row_of_runs(
            "one-pass", f"{what}: peak memory of the command", "MB", [ran.peak_bytes / 1e6 for ran in whole_runs],
            [ran.peak_bytes / 1e6 for ran in procspy_runs], peer_name="procspy's pass",
        ),
    ]  # fmt: skip


def _inner_cpu_s(command: list[str]) -> float:
    """What the command says that its work took."""
    shown = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=clean_environment()
    )
    return float(json.loads(shown.stdout)["cpu_s"])
