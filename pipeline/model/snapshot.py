"""What a worker publishes: one generation of one namespace, whole (a base) or as changes to the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.errors import Malformed
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Connection, SocketKey
from pipeline.model.container import Container
from pipeline.model.process import Holding, Process, ProcessKey
from pipeline.model.traffic import Traffic
from pipeline.model.wire import check_counts, check_keys, check_rows, read_scalars

SNAPSHOT_VERSION = 1


@dataclass(slots=True)
class Health:
    """Counts since the worker's start; they travel in every snapshot, so an empty answer differs from a blind one."""

    pids_vanished: int = 0
    pids_denied: int = 0
    rows_malformed: int = 0
    dumps_interrupted: int = 0
    dumps_denied: int = 0
    dumps_vanished: int = 0
    looks: int = 0
    passes: int = 0
    passes_late: int = 0
    messages_dropped: int = 0
    segment_full: int = 0

    def copy(self) -> Health:
        return Health(*[getattr(self, name) for name in _HEALTH_NAMES])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Generation `generation` of one namespace by the worker life `life`.

    `base`: the lists are the whole state. Otherwise they are the changes since `generation - 1`: rows added or
    changed, and the keys of those gone. Orders by (life, generation). Times are CLOCK_MONOTONIC seconds:
    `taken_at_s` of the table, `walked_at_s` of the end of the last complete fd pass, None before the first.
    `searched_since_s`: since then every descriptor of every process was read at least once, whether or not it was
    known; None: not yet. `denied`: processes that could not be read in the last pass. `source`: sock_diag, proc or
    ebpf. `containers`: what the containers that `processes` name are; a fact about each name, never taken back.
    `closed`: connections that ended since `generation - 1`, of a base all that are still remembered; only where the
    source tells (ebpf).
    `traffic`: what connections have carried so far, of those that changed since it was last told (tables.tcp_info).
    `addresses`: all of the namespace's own, 4 or 16 bytes each; None: as before, and in a base not known.
    """

    role: str
    netns: int
    cookie: int | None
    life: int
    generation: int
    base: bool
    taken_at_s: float
    walked_at_s: float | None
    source: str
    denied: int
    health: Health
    connections: Sequence[Connection] = ()
    gone_connections: Sequence[SocketKey] = ()
    processes: Sequence[Process] = ()
    gone_processes: Sequence[ProcessKey] = ()
    holdings: Sequence[Holding] = ()
    gone_holdings: Sequence[Holding] = ()
    containers: Sequence[Container] = ()
    searched_since_s: float | None = None
    closed: Sequence[ClosedConnection] = ()
    traffic: Sequence[Traffic] = ()
    addresses: Sequence[bytes] | None = None

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values for the codec."""
        wire = {name: getattr(self, name) for name in _FIELD_NAMES}
        wire["health"] = [getattr(self.health, name) for name in _HEALTH_NAMES]
        wire["v"] = SNAPSHOT_VERSION
        return wire


_FIELD_NAMES = tuple(f.name for f in fields(Snapshot))
_HEALTH_NAMES = tuple(f.name for f in fields(Health))
_ROW_TYPES: dict[str, type[tuple[Any, ...]]] = {
    "connections": Connection,
    "processes": Process,
    "gone_processes": ProcessKey,
    "holdings": Holding,
    "gone_holdings": Holding,
    "containers": Container,
    "closed": ClosedConnection,
    "traffic": Traffic,
}
# Absent in what was written before there were any.
_LATER_ROWS = ("containers", "closed", "traffic")
_SCALAR_TYPES: dict[str, tuple[type, ...]] = {
    "role": (str,), "netns": (int,), "cookie": (int, type(None)), "life": (int,), "generation": (int,),
    "base": (bool,), "taken_at_s": (float, int), "walked_at_s": (float, int, type(None)), "source": (str,),
    "denied": (int,),
}  # fmt: skip


def from_wire(wire: dict[str, Any]) -> Snapshot:
    """The snapshot in a decoded map; rows become plain tuples of the right width. Raises: Malformed."""
    if wire.get("v") != SNAPSHOT_VERSION:
        raise Malformed(f"snapshot version {wire.get('v')!r}, this program reads {SNAPSHOT_VERSION}")
    try:
        values = read_scalars(wire, _SCALAR_TYPES)
        values["searched_since_s"] = since_s = wire.get("searched_since_s")
        if not isinstance(since_s, (float, int, type(None))):
            raise Malformed(f"snapshot field searched_since_s is a {type(since_s).__name__}")
        own = wire.get("addresses")
        values["addresses"] = None if own is None else list(own)
        for name, row_type in _ROW_TYPES.items():
            rows = [tuple(row) for row in (wire.get(name, ()) if name in _LATER_ROWS else wire[name])]
            check_rows(name, row_type, rows)
            values[name] = rows
        values["gone_connections"] = list(wire["gone_connections"])
        check_keys("gone_connections", values["gone_connections"], (int, bytes))
        check_counts(wire["health"])
        values["health"] = Health(*wire["health"])
    except (KeyError, TypeError) as error:
        raise Malformed(f"snapshot field missing or of a wrong type: {error}") from None
    return Snapshot(**values)


@dataclass(slots=True)
class FoldedState:
    """The whole state of one namespace, built from a base and the deltas after it."""

    head: Snapshot
    connections: dict[SocketKey, Connection] = field(default_factory=dict)
    processes: dict[tuple[int, int], Process] = field(default_factory=dict)
    holdings: set[Holding] = field(default_factory=set)


def fold(snapshots: Sequence[Snapshot]) -> FoldedState:
    """A base and the consecutive deltas after it, as one state. Raises: Malformed on a gap or a missing base."""
    if not snapshots or not snapshots[0].base:
        raise Malformed("a fold starts with a base")
    state = FoldedState(snapshots[0])
    for snapshot in snapshots:
        if snapshot.base:
            state.connections.clear()
            state.processes.clear()
            state.holdings.clear()
        elif (snapshot.life, snapshot.generation) != (state.head.life, state.head.generation + 1):
            raise Malformed(f"generation {snapshot.generation} follows {state.head.generation}")
        for key in snapshot.gone_connections:
            state.connections.pop(key, None)
        for process_key in snapshot.gone_processes:
            state.processes.pop((process_key[0], process_key[1]), None)
        state.holdings.difference_update(snapshot.gone_holdings)
        state.connections.update((row[0], row) for row in snapshot.connections)
        state.processes.update(((row[0], row[1]), row) for row in snapshot.processes)
        state.holdings.update(snapshot.holdings)
        state.head = snapshot
    return state
