"""The host that docs/protocol.md and docs/sql.md show: a web shop on one machine, with its usual troubles.

`web` has nginx (two workers that share a listener) and an application, `db` PostgreSQL, `batch` a job that forgets to
close and a process of a neighbour's socket; the host itself has sshd. Times stand still.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.clock import ManualClock
from pipeline.model.connection import Connection, Family, Proto, State
from pipeline.model.netns import RosterRow, WorkerRow
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Health, Snapshot
from pipeline.store import Store

HOST, WEB, DB, BATCH = 4026531840, 4026532301, 4026532389, 4026532477
EPOCH = "5d1c0f7a92be4638"

_PROCESSES = {
    "sshd": Process(811, 2105, "sshd", 0, HOST, None),
    "nginx": Process(2001, 9410, "nginx", 33, WEB, None),
    "nginx-2": Process(2002, 9411, "nginx", 33, WEB, None),
    "shop": Process(2050, 9702, "shop", 1000, WEB, None),
    "postgres": Process(3001, 8127, "postgres", 70, DB, None),
    "report": Process(4001, 12044, "report", 1000, BATCH, None),
    "exporter": Process(4090, 12950, "exporter", 998, BATCH, None),
}
_Row = tuple[int, int, State, str, str, tuple[str, ...]]
# (netns, number, state, local, remote, holders). The number is the cookie; with 80000 added, the inode.
_TCP: list[_Row] = [
    (HOST, 11, State.LISTEN, "0.0.0.0:22", "0.0.0.0:0", ("sshd",)),
    (HOST, 12, State.ESTABLISHED, "192.0.2.10:22", "198.51.100.7:52144", ("sshd",)),
    (WEB, 21, State.LISTEN, "0.0.0.0:443", "0.0.0.0:0", ("nginx", "nginx-2")),
    (WEB, 22, State.LISTEN, "127.0.0.1:8000", "0.0.0.0:0", ("shop",)),
    (WEB, 23, State.LISTEN, "[::]:443", "[::]:0", ("nginx", "nginx-2")),
    (WEB, 31, State.ESTABLISHED, "10.1.0.2:443", "203.0.113.5:41822", ("nginx",)),
    (WEB, 32, State.ESTABLISHED, "10.1.0.2:443", "203.0.113.5:41830", ("nginx-2",)),
    (WEB, 33, State.ESTABLISHED, "[2001:db8:1::2]:443", "[2001:db8:9::41]:60112", ("nginx-2",)),
    (WEB, 34, State.ESTABLISHED, "127.0.0.1:38810", "127.0.0.1:8000", ("nginx",)),
    (WEB, 35, State.ESTABLISHED, "127.0.0.1:8000", "127.0.0.1:38810", ("shop",)),
    (WEB, 36, State.ESTABLISHED, "10.1.0.2:51002", "10.1.0.3:5432", ("shop",)),
    (WEB, 37, State.ESTABLISHED, "10.1.0.2:51004", "10.1.0.3:5432", ("shop",)),
    (WEB, 38, State.SYN_SENT, "10.1.0.2:51100", "192.0.2.99:6379", ("shop",)),
    (WEB, 39, State.TIME_WAIT, "10.1.0.2:443", "203.0.113.8:50312", ()),
    (DB, 41, State.LISTEN, "10.1.0.3:5432", "0.0.0.0:0", ("postgres",)),
    (DB, 42, State.ESTABLISHED, "10.1.0.3:5432", "10.1.0.2:51002", ("postgres",)),
    (DB, 43, State.ESTABLISHED, "10.1.0.3:5432", "10.1.0.2:51004", ("postgres",)),
    (DB, 44, State.ESTABLISHED, "10.1.0.3:5432", "10.1.0.4:44120", ("postgres",)),
    (BATCH, 51, State.ESTABLISHED, "10.1.0.4:44120", "10.1.0.3:5432", ("report",)),
    (BATCH, 52, State.CLOSE_WAIT, "10.1.0.4:40112", "198.51.100.20:443", ("report",)),
    (BATCH, 53, State.CLOSE_WAIT, "10.1.0.4:40114", "198.51.100.20:443", ("report",)),
    (BATCH, 54, State.CLOSE_WAIT, "10.1.0.4:40120", "198.51.100.21:443", ("report",)),
    (BATCH, 55, State.ESTABLISHED, "10.1.0.4:43300", "198.51.100.30:9090", ()),
    (HOST, 13, State.LISTEN, "127.0.0.1:9100", "0.0.0.0:0", ("exporter",)),
]
_UDP: list[_Row] = [
    (WEB, 61, State.ESTABLISHED, "10.1.0.2:47001", "10.1.0.1:53", ("shop",)),
]
_NAMES = {HOST: [], WEB: ["web"], DB: ["db"], BATCH: ["batch"]}


def _end(text: str) -> tuple[bytes, int]:
    address, _, port = text.rpartition(":")
    return ipaddress.ip_address(address.strip("[]")).packed, int(port)


def row(number: int, proto: Proto, state: State, local: str, remote: str, owned: bool = True) -> Connection:
    """One table row; `owned` False: its inode is gone, as in TIME_WAIT."""
    family = Family.INET6 if local.startswith("[") else Family.INET
    inode = 0 if state is State.TIME_WAIT else 80_000 + number
    return Connection(
        number, proto, family, state, *_end(local), *_end(remote), None, inode, number, 1000 if owned else 0
    )


def whole(netns: int, now_s: float) -> Snapshot:
    """The first generation of a namespace: all its rows, its processes and what those hold, wherever it is."""
    connections, holdings = [], []
    for proto, rows in ((Proto.TCP, _TCP), (Proto.UDP, _UDP)):
        for home, number, state, local, remote, holders in rows:
            if home == netns:
                connections.append(row(number, proto, state, local, remote, bool(holders)))
            for name in holders:
                process = _PROCESSES[name]
                if process.netns == netns:
                    holdings.append(
                        Holding(process.pid, process.start_ticks, number % 10 + 5, 80_000 + number)
                    )
    return Snapshot(
        role="netns", netns=netns, cookie=netns - HOST + 1, life=1, generation=1, base=True, taken_at_s=now_s,
        walked_at_s=now_s, source="sock_diag", denied=1 if netns == BATCH else 0, health=Health(),
        connections=connections, processes=[one for one in _PROCESSES.values() if one.netns == netns],
        holdings=holdings,
    )  # fmt: skip


@contextmanager
def world(folder: Path) -> Iterator[tuple[Store, ManualClock]]:
    """The store after each namespace has been seen once, a quarter of a second ago."""
    clock = ManualClock(now_s=5000.0)
    store = Store(str(folder / "state.db"), EPOCH, "node-1", clock, stale_after_s=15.0)
    roster = [
        RosterRow(netns, names, 700 + number, 1, "walking", f"netns-{netns}", clock.now_s)
        for number, (netns, names) in enumerate(_NAMES.items())
    ]
    store.apply([whole(netns, clock.now_s) for netns in _NAMES], roster)
    store.set_workers(
        [WorkerRow("netns", 700 + number, [netns], "walking", 0, 0.25) for number, netns in enumerate(_NAMES)]
    )
    clock.advance(0.25)
    store.tick()
    try:
        yield store, clock
    finally:
        store.close()
