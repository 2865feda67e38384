"""Snapshots to try the merge with: written by hand, or drawn by hypothesis from a world small enough to collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pipeline.model.connection import Connection, Family, Proto, SocketKey, State
from pipeline.model.container import Container
from pipeline.model.netns import RosterRow
from pipeline.model.process import Holding, Process, ProcessKey
from pipeline.model.snapshot import Health, Snapshot
from pipeline.model.traffic import Traffic

HOST, BLUE = 4026531840, 4026532001


def connection(
    key: SocketKey,
    *,
    inode: int | None = None,
    state: int = State.ESTABLISHED,
    local: tuple[bytes, int] = (b"\x0a\x00\x00\x01", 40000),
    remote: tuple[bytes, int] = (b"\x0a\x00\x00\x02", 443),
    family: int = Family.INET,
    proto: int = Proto.TCP,
    uid: int = 0,
    device: str | None = None,
) -> Connection:
    cookie = key if isinstance(key, int) and key > 0 else 0
    if inode is None:
        inode = abs(key) if isinstance(key, int) else 0
    return Connection(key, proto, family, state, *local, *remote, device, inode, cookie, uid)


def listener(key: SocketKey, port: int, address: bytes = bytes(4), **more: Any) -> Connection:
    family = Family.INET if len(address) == 4 else Family.INET6
    return connection(
        key, state=State.LISTEN, local=(address, port), remote=(bytes(len(address)), 0), family=family, **more
    )


def snapshot(
    netns: int = HOST,
    generation: int = 1,
    *,
    base: bool = True,
    life: int = 1,
    cookie: int | None = 7,
    taken_at_s: float = 100.0,
    walked_at_s: float | None = 99.0,
    denied: int = 0,
    health: Health | None = None,
    connections: Sequence[Connection] = (),
    gone_connections: Sequence[SocketKey] = (),
    processes: Sequence[Process] = (),
    gone_processes: Sequence[ProcessKey] = (),
    holdings: Sequence[Holding] = (),
    gone_holdings: Sequence[Holding] = (),
    searched_since_s: float | None = None,
    containers: Sequence[Container] = (),
    addresses: Sequence[bytes] | None = None,
    traffic: Sequence[Traffic] = (),
) -> Snapshot:
    return Snapshot(
        "netns", netns, cookie, life, generation, base, taken_at_s, walked_at_s, "sock_diag", denied,
        health or Health(), connections, gone_connections, processes, gone_processes, holdings, gone_holdings,
        containers, searched_since_s, addresses=addresses, traffic=traffic,
    )  # fmt: skip


def process(
    pid: int, comm: str, netns: int = HOST, *, start_ticks: int | None = None, uid: int = 0
) -> Process:
    return Process(pid, pid * 10 if start_ticks is None else start_ticks, comm, uid, netns, None)


def holding(pid: int, fd: int, inode: int, *, start_ticks: int | None = None) -> Holding:
    return Holding(pid, pid * 10 if start_ticks is None else start_ticks, fd, inode)


def roster_row(
    netns: int, names: Sequence[str] = (), *, state: str = "walking", checked_at_s: float = 0.0
) -> RosterRow:
    return RosterRow(netns, list(names), 4321, 1, state, f"netns-{netns}", checked_at_s)


# A small world: few inodes, ports and processes, so that everything meets everything.
NETNS = (1, 2, 3)
COMMS = ("nginx", "redis", "a b)")
_V4 = [b"\x0a\x00\x00\x01", b"\x0a\x00\x01\x02", b"\x7f\x00\x00\x01", bytes(4)]
_V6 = [bytes(15) + b"\x01", bytes(16), bytes(10) + b"\xff\xff" + _V4[0], b"\xfd" + bytes(14) + b"\x05"]
_STATES = [State.ESTABLISHED, State.LISTEN, State.SYN_SENT, State.TIME_WAIT, State.CLOSE]
_processes = st.sampled_from([(1, 10), (2, 20), (2, 25), (3, 20)])


@st.composite
def connections(draw: st.DrawFn) -> Connection:
    family = draw(st.sampled_from([Family.INET, Family.INET6]))
    addresses = st.sampled_from(_V4 if family == Family.INET else _V6)
    ports = st.sampled_from([80, 443, 8080, 40000])
    keys: list[SocketKey] = [1, 2, 3, 4, 5, -1, -2, b"\x06time-wait"]
    key = draw(st.sampled_from(keys))
    return connection(
        key, inode=draw(st.integers(0, 4)) if key != b"\x06time-wait" else 0, family=family,
        proto=draw(st.sampled_from([Proto.TCP, Proto.TCP, Proto.UDP])), state=draw(st.sampled_from(_STATES)),
        local=(draw(addresses), draw(ports)), remote=(draw(addresses), draw(ports)),
        uid=draw(st.sampled_from([0, 1000])),
    )  # fmt: skip


def _process_rows(netns: int) -> st.SearchStrategy[Process]:
    return st.builds(
        lambda key, comm, home: Process(key[0], key[1], comm, 0, home, None),
        _processes, st.sampled_from(COMMS), st.sampled_from([netns, 1]),
    )  # fmt: skip


_holdings = st.builds(
    lambda key, fd, inode: Holding(key[0], key[1], fd, inode),
    _processes,
    st.integers(3, 4),
    st.integers(1, 4),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    """Consecutive snapshots of a few namespaces, interleaved, each namespace beginning with a base."""
    generations = dict.fromkeys(NETNS, 0)
    history: list[Snapshot] = []
    for netns in draw(st.lists(st.sampled_from(NETNS), min_size=1, max_size=8)):
        base = generations[netns] == 0 or draw(st.booleans())
        generations[netns] += 1
        rows = draw(st.lists(connections(), max_size=4, unique_by=lambda row: row[0]))
        held = draw(st.lists(_holdings, max_size=4, unique=True))
        people = draw(st.lists(_process_rows(netns), max_size=3, unique_by=lambda row: row[:2]))
        gone: dict[str, Any] = {}
        if not base:
            gone["gone_connections"] = draw(st.lists(st.sampled_from([1, 2, 3, -1]), max_size=2))
            gone["gone_holdings"] = draw(st.lists(_holdings, max_size=2))
            gone["gone_processes"] = [ProcessKey(*key) for key in draw(st.lists(_processes, max_size=1))]
        history.append(snapshot(
            netns, generations[netns], base=base, cookie=None, taken_at_s=float(len(history)),
            connections=rows, holdings=held, processes=people, **gone,
        ))  # fmt: skip
    return history
