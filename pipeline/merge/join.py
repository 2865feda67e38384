"""The contract's rows of everything that was seen at one moment, joined without a store.

By the same rules as the store's, whose answers a test compares with these. Of what was there before nothing is known,
so nobody is a `last` owner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

from pipeline.merge.direction import Listeners, decide
from pipeline.merge.owners import Holder, Listener, listeners_of, ordered, waits_at
from pipeline.model.address import address_text, mapped
from pipeline.model.connection import FAMILY_NAMES, PROTO_NAMES, Family, Proto, State, state_name
from pipeline.model.process import Process, shown_fd
from pipeline.model.socket_row import SocketRow, socket_key
from pipeline.model.traffic import NO_FIGURES, Figures

# In the order of the rows' values.
COLUMNS = (
    "netns", "netns_cookie", "netns_name", "proto", "family", "state", "local_addr", "local_port", "remote_addr",
    "remote_port", "device", "inode", "cookie", "uid", "direction", "owner_role", "owners", "nat", "seen_at",
    "owner_seen_at", "stale",
)  # fmt: skip
# Those that come only when asked for by their names: of the primary owner, the row's identity, what it has carried.
BY_NAME = ("pid", "comm", "container", "key", *Figures._fields)
_WAITING = frozenset((State.ESTABLISHED, State.SYN_RECV, State.NEW_SYN_RECV, State.CLOSE_WAIT))
_Row = tuple[Any, ...]


class Files(Protocol):
    """One task's process, and its descriptors: fd -> socket inode, 0 for what is no socket."""

    @property
    def process(self) -> Process: ...
    @property
    def fds(self) -> Mapping[int, int]: ...


class Seen(NamedTuple):
    """One namespace. `rows`: by protocol number. Times as in Snapshot. `stale`: too old to be called new."""

    netns: int
    name: str | None
    cookie: int | None
    taken_at_s: float
    walked_at_s: float | None
    searched_since_s: float | None
    denied: int
    stale: bool
    rows: Mapping[int, Collection[SocketRow]]
    devices: Mapping[int, str]
    files: Iterable[Files]
    traffic: Mapping[int, Figures] = NO_FIGURES


class _Owned(NamedTuple):
    """The part of a row that tells of its owners."""

    role: str | None
    owners: list[dict[str, Any]]
    seen_s: float | None = None


@dataclass(slots=True)
class Join:
    """`wall_offset_s`: Unix time minus CLOCK_MONOTONIC. `complete`: no process was left out of `seen`."""

    seen: Sequence[Seen]
    wall_offset_s: float
    complete: bool
    # Socket inode -> its holders: one nearly always, which then stands there alone.
    _holders: dict[int, Holder | list[Holder]] = field(default_factory=dict)
    _processes: dict[tuple[int, int], Process] = field(default_factory=dict)
    _searched_since_s: float | None = None

    def __post_init__(self) -> None:
        # A process whose threads live elsewhere is believed where it says to be.
        away: dict[tuple[int, int], Process] = {}
        for one in sorted(self.seen, key=lambda seen: seen.netns):
            for files in one.files:
                process = files.process
                known_here = self._processes if process.netns == one.netns else away
                known_here.setdefault(process[:2], process)
            self._note_files(one)
        self._processes = away | self._processes
        known = [one.searched_since_s for one in self.seen if one.searched_since_s is not None]
        if self.complete and len(known) == len(self.seen) and not any(one.denied for one in self.seen):
            self._searched_since_s = min(known, default=None)

    @property
    def total(self) -> int:
        """How many rows there are."""
        return sum(len(rows) for one in self.seen for rows in one.rows.values())

    def rows(self, *, by_name: bool) -> Iterator[_Row]:
        """The values of COLUMNS, and with `by_name` of BY_NAME, of each connection, namespace by namespace."""
        return chain.from_iterable(self._rows_of(one, by_name) for one in self.seen)

    def _note_files(self, one: Seen) -> None:
        holders, netns, seen_s = self._holders, one.netns, one.taken_at_s
        for files in one.files:
            pid, start_ticks = files.process[:2]
            for fd, inode in files.fds.items():
                if inode:
                    # What Holder._make calls: there is one for each socket, and to call the class takes twice as long.
                    holder = tuple.__new__(
                        Holder, (pid, start_ticks, fd if fd >= 0 else shown_fd(fd), netns, seen_s)
                    )
                    others = holders.setdefault(inode, holder)
                    if others is not holder:
                        holders[inode] = [*(others if isinstance(others, list) else [others]), holder]

    def _rows_of(self, one: Seen, by_name: bool) -> Iterator[_Row]:
        offset_s, devices = self.wall_offset_s, one.devices
        head, at = (one.netns, one.cookie, one.name), one.taken_at_s + offset_s
        listening = _listening(one)
        listeners: Listeners = {
            (port, found.local_ip) for port, all_at in listening.items() for found in all_at
        }
        inet, listen, waiting = int(Family.INET), int(State.LISTEN), _WAITING
        for proto, rows in one.rows.items():
            proto_name, is_tcp = PROTO_NAMES.get(proto) or str(proto), proto == Proto.TCP
            state_names = {state: state_name(proto, state) for state in {row[1] for row in rows}}
            for row in rows:
                family, state, sport, dport, src, dst, ifindex, cookie, uid, inode = row
                if family == inet:
                    src, dst = src[:4], dst[:4]
                local_port = sport[0] << 8 | sport[1]
                # Most ports have no listener: then nothing more is to be asked of it.
                at_port = listening.get(local_port)
                local_ip = mapped(src) if at_port else src
                device = devices.get(ifindex) if ifindex else None
                role, owners, seen_s = self._owned(one, inode, is_tcp and state == listen)
                if role is None and not inode and is_tcp and state in waiting:
                    role, owners, seen_s = self._pending(local_ip, device, at_port or ())
                values = (
                    *head, proto_name, FAMILY_NAMES.get(family) or str(family), state_names[state],
                    address_text(src), local_port, address_text(dst), dport[0] << 8 | dport[1],
                    device, inode, cookie or None, uid,
                    decide(proto, state, local_ip, local_port, listeners if at_port else _NONE),
                    role, owners, None, at,
                    None if seen_s is None else seen_s + offset_s, one.stale,
                )  # fmt: skip
                yield (
                    (*values, *_by_name(owners, row, proto), *one.traffic.get(cookie, _NO_TRAFFIC))
                    if by_name
                    else values
                )

    def _owned(
        self, one: Seen, inode: int, listening: bool, role: str = "holder"
    ) -> tuple[str | None, list[dict[str, Any]], float | None]:
        """As _Owned; a plain tuple where there is one holder, as there nearly always is."""
        held = self._holders.get(inode) if inode else None
        if held is None:
            since_s = self._searched_since_s
            # What was there before any process was read, and nobody holds, is the kernel's.
            return _KERNELS if inode and since_s is not None and one.taken_at_s <= since_s else _UNKNOWN
        if not isinstance(held, list):
            return role, [self._owner(held)], held[4]
        holders = ordered(held, listening)
        return _Owned(role, [self._owner(holder) for holder in holders], holders[0].seen_s)

    def _pending(
        self, local_ip: bytes, device: str | None, at_port: Iterable[Listener]
    ) -> tuple[str | None, list[dict[str, Any]], float | None]:
        listening = listeners_of(local_ip, device, (one for one in at_port if one.inode))
        inode = waits_at(listening, self._processes_holding)
        if inode is None or inode not in self._holders:
            return _UNKNOWN
        return self._owned(self.seen[0], inode, True, "pending")

    def _processes_holding(self, inode: int) -> set[tuple[int, int]]:
        held = self._holders.get(inode, [])
        return {holder[:2] for holder in (held if isinstance(held, list) else [held])}

    def _owner(self, holder: Holder) -> dict[str, Any]:
        pid, start_ticks, fd = holder[:3]
        process = self._processes[pid, start_ticks]
        return {
            "pid": pid, "start_ticks": start_ticks, "comm": process.comm, "fd": fd, "netns": process.netns,
            "container": process.container,
        }  # fmt: skip


_NONE: Listeners = set()
_UNKNOWN = _Owned(None, [])
_KERNELS = _Owned("kernel", [])
_NO_TRAFFIC = (None,) * len(Figures._fields)
_NOBODY: Mapping[str, Any] = {"pid": None, "comm": None, "container": None}


def _listening(one: Seen) -> Mapping[int, Sequence[Listener]]:
    """The TCP listeners of a namespace by port."""
    found: dict[int, list[Listener]] = defaultdict(list)
    for row in one.rows.get(Proto.TCP, ()):
        if row[1] == State.LISTEN:
            address = mapped(row[4][:4] if row[0] == Family.INET else row[4])
            device = one.devices.get(row[6]) if row[6] else None
            found[int.from_bytes(row[2], "big")].append(Listener(row[9], address, device))
    return found


def _by_name(owners: Sequence[dict[str, Any]], row: SocketRow, proto: int) -> _Row:
    first = owners[0] if owners else _NOBODY
    key = row[7] or socket_key(row, proto)
    return (
        first["pid"], first["comm"], first["container"], key.hex() if isinstance(key, bytes) else str(key)
    )  # fmt: skip
