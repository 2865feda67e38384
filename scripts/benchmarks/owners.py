"""The case `owners`: is each connection's owner the right one, while connections come and go.

The judge is `ss`: of one namespace it is asked just before and just after we are, and the sockets on which both of its
answers agree are compared with ours, by cookie.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.client import Client
from pipeline.config import Budget
from scripts.benchmarks.load import load, pipeline
from scripts.benchmarks.measure import Effort, Row

SETTLED_S = 2.0
_GOAL_MISSING_PERCENT = 1.0
# What a look at each namespace every second costs on this load, merging included, and some.
_ENOUGH_PERCENT = 25.0
_COOKIE = re.compile(r"\bsk:([0-9a-f]+)")
_PID = re.compile(r"\bpid=(\d+)")
_INODE = re.compile(r"\bino:([1-9]\d*)")


class Shown(NamedTuple):
    """A socket as ss shows it. `held`: it has an inode, so somebody has a descriptor of it, or is to get one."""

    held: bool
    pids: frozenset[int]


@dataclass
class Verdict:
    """What was compared. `wrong`: with the row, where somebody was named who has not held the socket for 2 s, or never
    did; `late`: how many others named one who has closed it since, `late_first`: those where that was the first owner.

    `old`: sockets with a process that were there 2 s before; `old_unowned`: those of them without owner, `old_absent`:
    those that were not in our answer at all. `partly`: not all of several holders were named.
    """

    compared: int = 0
    old: int = 0
    old_unowned: int = 0
    old_absent: int = 0
    closed: int = 0
    closed_unowned: int = 0
    partly: int = 0
    late: int = 0
    late_first: int = 0
    wrong: list[str] = field(default_factory=list)
    rounds: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def missing_percent(self) -> float:
        """Of the old sockets with a process, those for which none was named."""
        return 100 * (self.old_unowned + self.old_absent) / self.old if self.old else 0.0


def seen_by_ss(netns_path: str) -> dict[int, Shown]:
    """By cookie, all TCP and UDP sockets of a namespace."""
    command = ["nsenter", f"--net={netns_path}", "ss", "-HtuanpeO"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    shown = {}
    for line in lines.splitlines():
        cookie = _COOKIE.search(line)
        if cookie is not None:
            pids = frozenset(map(int, _PID.findall(line)))
            shown[int(cookie[1], 16)] = Shown(_INODE.search(line) is not None, pids)
    return shown


class Judge:
    """Compares answers about some namespaces with ss, round by round, and remembers who held what."""

    def __init__(self, client: Client, namespaces: Mapping[int, str], settled_s: float = SETTLED_S) -> None:
        """`namespaces`: inode -> a path that leads into it. `settled_s`: how old is old, for the verdict."""
        self._settled_s = settled_s
        self.verdict = Verdict()
        self._client = client
        self._namespaces = namespaces
        self._first_seen_s: dict[int, float] = {}
        # Cookie -> pid of every process that held it -> since when it was seen not to, if so.
        self._held: dict[int, dict[int, float | None]] = {}

    def round(self) -> None:
        """Asks about each namespace once."""
        old, missing = self.verdict.old, self.verdict.old_unowned + self.verdict.old_absent
        began_s = time.monotonic()
        for netns, path in self._namespaces.items():
            before = self._ask_ss(path)
            began_ask_s = time.monotonic()
            rows = self._client.connections(
                netns=netns, fields=["cookie", "owner_role", "owners", "state"]
            ).rows
            after = self._ask_ss(path)
            agreed = {cookie: shown for cookie, shown in before.items() if after.get(cookie) == shown}
            self._compare(agreed, rows, began_ask_s)
        found = self.verdict.old_unowned + self.verdict.old_absent - missing
        self.verdict.rounds.append((began_s, self.verdict.old - old, found))

    def _ask_ss(self, path: str) -> dict[int, Shown]:
        seen_s = time.monotonic()
        shown = seen_by_ss(path)
        for cookie, one in shown.items():
            self._first_seen_s.setdefault(cookie, seen_s)
            held = self._held.setdefault(cookie, {})
            for pid in held.keys() - one.pids:
                held[pid] = held[pid] or seen_s
            held.update(dict.fromkeys(one.pids))
        return shown

    def _compare(
        self, agreed: Mapping[int, Shown], rows: Iterable[Mapping[str, Any]], asked_s: float
    ) -> None:
        ours = {row["cookie"]: row for row in rows}
        verdict = self.verdict
        for cookie, shown in agreed.items():
            row = ours.get(cookie)
            named = [owner["pid"] for owner in row["owners"]] if row is not None else []
            verdict.compared += 1
            self._check_named(cookie, shown, named, asked_s)
            if shown.held and shown.pids:
                verdict.partly += bool(named) and set(named) < shown.pids
                if asked_s - self._first_seen_s[cookie] > self._settled_s:
                    verdict.old += 1
                    verdict.old_absent += row is None
                    verdict.old_unowned += row is not None and not named
            elif not shown.held:
                verdict.closed += 1
                verdict.closed_unowned += not named

    def _check_named(self, cookie: int, shown: Shown, named: list[int], asked_s: float) -> None:
        """A held socket has its holders of now; a closed one, whoever held it last."""
        held = self._held[cookie]
        strangers = set(named) - (shown.pids if shown.held else held.keys())
        if not strangers or not (shown.held or held):
            return
        since_s = min(held.get(pid) or self._first_seen_s[cookie] for pid in strangers)
        if asked_s - since_s > self._settled_s:
            self.verdict.wrong.append(f"{shown} was shown with {named} {asked_s - since_s:.1f} s later")
        else:
            self.verdict.late += 1
            self.verdict.late_first += named[0] in strangers


def owners(effort: Effort) -> list[Row]:
    """Right owners under churn: 20 namespaces with shared descriptors, against ss before and after each answer."""
    namespaces, sockets, seconds = (3, 21, 8.0) if effort.quick else (20, 51, 180.0 if effort.full else 60.0)
    rows = []
    with load(namespaces, 4, sockets, churn=2.0, shared_fds=5) as made:
        what = f"{namespaces} namespaces x 4 processes x {sockets} sockets, 5 pairs shared, 2 pairs a second replaced"
        paths = dict(zip(made.inodes, made.paths, strict=True))
        for percent in (_ENOUGH_PERCENT,) if effort.quick else (_ENOUGH_PERCENT, Budget().cpu_percent):
            with (
                tempfile.NamedTemporaryFile("w", suffix=".toml") as config,
                contextlib.ExitStack() as running,
            ):
                config.write(f"[budget]\ncpu_percent = {percent}\n")
                config.flush()
                started = running.enter_context(pipeline(made.pattern, namespaces, Path(config.name)))
                verdict = watch(started.runtime_dir, paths, seconds)
            rows += _rows(f"{what}, budget {percent:g} %", verdict, seconds, percent == _ENOUGH_PERCENT)
    return rows


def _rows(what: str, verdict: Verdict, seconds: float, has_goal: bool) -> list[Row]:
    worst = max((100 * missing / old for _, old, missing in verdict.rounds if old), default=0.0)
    compared = (
        f"{verdict.compared} comparisons in {len(verdict.rounds)} rounds over {seconds:.0f} s; not all of several"
        f" holders: {verdict.partly}; closed less than 2 s before: {verdict.late}, of these as the first owner"
        f" {verdict.late_first}; of {verdict.closed} closed ones {verdict.closed_unowned} without last owner"
    )
    missing = (
        f"{verdict.old_unowned} without, {verdict.old_absent} not yet listed, of {verdict.old};"
        f" worst round {worst:.2f} %"
    )
    for line in verdict.wrong[:5]:
        print(f"bench: wrong owner: {line}", file=sys.stderr)
    return [
        Row("owners", f"{what}: wrong owners", "rows", len(verdict.wrong), goal=0 if has_goal else None, note=compared),
        Row("owners", f"{what}: older than 2 s and without owner", "%", verdict.missing_percent,
            goal=_GOAL_MISSING_PERCENT if has_goal else None, note=missing),
    ]  # fmt: skip


def watch(
    runtime_dir: str, namespaces: Mapping[int, str], seconds: float, settled_s: float = SETTLED_S
) -> Verdict:
    """The verdict on a running pipeline after so long. `namespaces`: inode -> a path that leads into it."""
    with Client(runtime_dir, timeout_s=10.0) as client:
        judge = Judge(client, namespaces, settled_s)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            judge.round()
        return judge.verdict
