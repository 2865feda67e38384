"""scripts/bench: that it lists and runs, never how fast."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from tests.live import needs_root

BENCH = Path(__file__).parent.parent / "scripts" / "bench"
CASES = [
    "one-shot",
    "one-pass",
    "background",
    "many-namespaces",
    "freshness",
    "query",
    "crowd",
    "growth",
    "extremes",
    "endurance",
    "owners",
    "conntrack",
    "ebpf-pass",
    "ebpf-events",
    "ebpf-background",
    "ebpf-freshness",
    "recall",
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=120
    )


def names_of_loads() -> list[str]:
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.glob("bench*")) if folder.is_dir() else []


def test_bench_lists_its_cases_with_a_sentence_each() -> None:
    listed = bench("--list")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == CASES
    assert all(len(line.split()) > 3 and line.endswith(".") for line in listed.stdout.splitlines())


def test_bench_refuses_a_case_that_it_does_not_know() -> None:
    refused = bench("one-shoe")
    assert refused.returncode == 2
    assert "one-shoe" in refused.stderr


@needs_root
def test_bench_measures_a_small_pass_beside_procspy_and_writes_it_as_json(tmp_path: Path) -> None:
    before = names_of_loads()
    path = tmp_path / "results.json"
    measured = bench("one-pass", "--quick", "--json", str(path))
    assert measured.returncode == 0, measured.stderr
    report = json.loads(path.read_text())
    assert (report["schema"], report["quick"], report["runs"]) == (1, True, 1)
    assert [(row["case"], row["unit"]) for row in report["rows"]] == [
        ("one-pass", "s CPU"),
        ("one-pass", "s CPU"),
        ("one-pass", "MB"),
    ]
    for row in report["rows"]:
        figures = (row["sockscope"], row["peer"], row["ratio"])
        assert all(math.isfinite(figure) for figure in figures), row
        assert row["runs"] == [row["sockscope"]]
    assert "one-pass" in measured.stdout
    assert names_of_loads() == before


def test_bench_says_in_one_sentence_that_it_needs_root() -> None:
    command = [sys.executable, str(BENCH), "one-pass", "--quick"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: the loads need network namespaces")
    assert "Traceback" not in refused.stderr
