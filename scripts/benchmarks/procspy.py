"""A peer: the /proc reader of Weave Scope's probe (procspy), the same algorithm in Python.

For each namespace it reads tcp and tcp6, then stats every descriptor of every process, one block of 300 per tick, and
reads both tables again after every block into the same growing buffer; the rows are parsed when the pass is over.
In the background a tick is 50 to 500 ms, set so that a pass takes 10 s. It is given its namespaces, and does without
the probe's once-a-second listing of all processes and copies of the buffer: it costs less here than in its own house.
Run as `python -m scripts.benchmarks.procspy [--background] [--inodes] NETNS_INODE...`; prints a JSON line
after each pass, with --inodes that of every socket that has an owner.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

_BLOCK = 300
_PERIOD_MIN_S = 0.05
_PERIOD_MAX_S = 0.5
_TARGET_S = 10.0
# ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: the states that it keeps.
_STATES = (b"01", b"04", b"05", b"08")

Owners = dict[int, tuple[int, str]]
Tick = Callable[[], None]


def walk(inodes: set[int], tick: Tick) -> tuple[bytearray, Owners]:
    """One pass: the text of all tables, as often as they were read, and the processes by socket inode."""
    text = bytearray()
    owners: Owners = {}
    for members in _members(inodes).values():
        _walk_namespace(members, text, owners, tick)
    return text, owners


def _members(inodes: set[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                inode = os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:
                continue
            if inode in inodes:
                groups.setdefault(inode, []).append(int(name))
    return groups


def _walk_namespace(members: list[int], text: bytearray, owners: Owners, tick: Tick) -> None:
    tick()
    if not _read_tables(members, text):
        return
    in_block = 0
    for position, pid in enumerate(members):
        folder = f"/proc/{pid}/fd"
        try:
            with open(f"/proc/{pid}/comm") as file:
                comm = file.read().rstrip("\n")
            descriptors = os.listdir(folder)
        except OSError:
            continue
        for descriptor in descriptors:
            in_block += 1
            if in_block > _BLOCK:
                tick()
                in_block = 0
                if not _read_tables(members[position:], text):
                    return
            try:
                info = os.stat(f"{folder}/{descriptor}")
            except OSError:
                continue
            if stat.S_ISSOCK(info.st_mode):
                owners[info.st_ino] = (pid, comm)


def _read_tables(members: list[int], text: bytearray) -> bool:
    """Appends both tables of the first process that can be read; False where none can."""
    for pid in members:
        try:
            with open(f"/proc/{pid}/net/tcp", "rb") as v4, open(f"/proc/{pid}/net/tcp6", "rb") as v6:
                text += v4.read()
                text += v6.read()
        except OSError:
            continue
        return True
    return False


def parse(text: bytearray, owners: Owners) -> set[tuple[bytes, bytes, int, tuple[int, str] | None]]:
    """(local, remote, inode, owner) of every row."""
    found = set()
    for line in bytes(text).splitlines():
        cells = line.split()
        if len(cells) > 9 and cells[3] in _STATES:
            inode = int(cells[9])
            found.add((cells[1], cells[2], inode, owners.get(inode)))
    return found


def next_pass(period_s: float, took_s: float) -> tuple[float, float]:
    """(period, rest) after a pass."""
    period_s = min(max(_TARGET_S / took_s * period_s, _PERIOD_MIN_S), _PERIOD_MAX_S)
    return period_s, max(0.0, _TARGET_S - took_s)


class _Ticker:
    """Ticks of `period_s`; a late one does not make the next ones come sooner."""

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._next_s = time.monotonic()

    def __call__(self) -> None:
        self._next_s = max(self._next_s + self.period_s, time.monotonic())
        _pause(self._next_s - time.monotonic())


def main(arguments: list[str]) -> None:
    options = {argument for argument in arguments if argument.startswith("--")}
    inodes = {int(argument) for argument in arguments if argument not in options}
    if not options:
        _show(inodes, lambda: None, False)
        return
    ticker = _Ticker(_PERIOD_MIN_S)
    while True:
        began_s = time.monotonic()
        _show(inodes, ticker, "--inodes" in options)
        ticker.period_s, rest_s = next_pass(ticker.period_s, time.monotonic() - began_s)
        _pause(rest_s)


def _show(inodes: set[int], tick: Tick, with_inodes: bool) -> None:
    """One pass, and its line of output."""
    text, owners = walk(inodes, tick)
    found = parse(text, owners)
    owned = sorted(inode for _, _, inode, owner in found if owner)
    shown: dict[str, Any] = {"at_s": time.monotonic(), "rows": len(found), "owned": len(owned)}
    print(json.dumps(shown | ({"inodes": owned} if with_inodes else {})), flush=True)


def _pause(seconds: float) -> None:
    """Sleeps, and ends this process when its input has ended."""
    if seconds > 0 and select.select([sys.stdin], [], [], seconds)[0] and not os.read(0, 4096):
        sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
