"""The sockets of one namespace by three witnesses: events, passes of the iterator, and dumps. Pure.

Events tell at once who opened and closed what; a pass shows what processes hold; a dump, what the kernel's tables
have, also where nobody holds it. What a witness says is of the moment at which it began to look: it is not believed
against an event after that. A socket goes by its own close, or when a dump shows it no more, never because a pass
does not show it: its process may have let go of it while the kernel still works at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import EventsLost
from pipeline.model.closed import ClosedConnection
from pipeline.model.connection import Family, Proto, SocketKey, State
from pipeline.model.event import EventKind, SocketEvent
from pipeline.model.held_socket import HeldSocket
from pipeline.model.socket_row import SocketRow, socket_key

# Old states of a close after which the kernel keeps the tuple for a while: tcp_time_wait(), net/ipv4/tcp_minisocks.c.
# An orphan may stay in FIN_WAIT2 there, which the next dump shows.
_WAITING_S = 60.0
_WAITING_AFTER = frozenset((State.FIN_WAIT2, State.CLOSING))
# What ends in another state (a listener, a UDP socket without a peer) was no connection.
_CONNECTED: dict[int, frozenset[State]] = {
    Proto.TCP: frozenset(State) - {State.LISTEN},
    Proto.UDP: frozenset((State.ESTABLISHED,)),
}


@dataclass(slots=True)
class Socket:
    """What is known of one socket. `inbound` None: not seen when it began. All times CLOCK_MONOTONIC, 0 for never:
    `event_s` of its newest event, `state_s` of the newest that its lock puts in order, which those of kind OWNER are
    not. `held`: whether a process is known to hold it now; `pid`, `start_ticks` and `comm` (0 and empty where nobody
    is known) stay those of who did last. `told`: whether it was among the changes taken; `ended`: whether its end was
    told."""

    row: SocketRow
    proto: int
    pid: int = 0
    start_ticks: int = 0
    comm: str = ""
    inbound: bool | None = None
    opened_at_s: float | None = None
    event_s: float = 0.0
    state_s: float = 0.0
    held: bool = False
    told: bool = False
    ended: bool = False


class Changes(NamedTuple):
    """Since they were taken last. `closed`: what ended, each told once."""

    changed: list[SocketKey]
    gone: list[SocketKey]
    closed: list[ClosedConnection]


class Sockets:
    """One namespace. Give it everything in the order in which it was read: events, whole passes, whole dumps.

    `open`: by identity. `doubtful`: those that a process held and the last pass did not show; a dump settles them.
    `unplaced`: those of which an event named the owner, and no pass showed the descriptor yet. `has_unheld`: whether
    some have no inode: only a dump tells when those go.
    """

    def __init__(self) -> None:
        self.open: dict[SocketKey, Socket] = {}
        self.doubtful: set[SocketKey] = set()
        self.unplaced: set[SocketKey] = set()
        self.has_unheld = False
        # When sockets closed by an event did so: what was read before must not bring them back.
        self._ended: dict[SocketKey, float] = {}
        self._closed: list[ClosedConnection] = []
        self._changed: set[SocketKey] = set()
        self._gone: set[SocketKey] = set()

    def apply(self, event: SocketEvent) -> None:
        """Takes an event. Raises: EventsLost for one that comes before another of its socket."""
        key = event.cookie
        known = self.open.get(key)
        if event.kind == EventKind.CLOSED:
            self._close(key, known, event)
            return
        if key in self._ended:
            if event.kind == EventKind.OWNER:
                return  # whoever used it did so while it was closed from elsewhere
            # Only connect() and listen() begin a closed socket's life anew.
            if event.kind == EventKind.ESTABLISHED or event.time_s < self._ended[key]:
                raise EventsLost(f"socket {event.cookie} came to life after its close")
            del self._ended[key]
        if event.kind != EventKind.OWNER:
            if known is not None and event.time_s < known.state_s:
                raise EventsLost(f"an event of socket {event.cookie} came after a later one")
            if event.kind != EventKind.ESTABLISHED:
                known = self._begin_anew(key, known, event)
        if known is None:
            known = self.open[key] = Socket(_row_of(event, 0), event.proto)
        elif event.time_s >= known.event_s:
            known.row = _row_of(event, known.row[6])
        self._take_facts(known, event)
        self.has_unheld = self.has_unheld or not event.inode
        if event.pid:
            self.unplaced.add(key)
        self.doubtful.discard(key)
        self._note(key)

    @staticmethod
    def _take_facts(known: Socket, event: SocketEvent) -> None:
        if event.age_s is not None:
            known.opened_at_s = event.time_s - event.age_s
            if event.proto == Proto.TCP and event.state != State.LISTEN:
                known.inbound = event.inbound
        if event.pid:
            known.pid, known.start_ticks, known.comm = event.pid, event.start_ticks, event.comm
            known.held = True
        known.event_s = max(known.event_s, event.time_s)
        if event.kind != EventKind.OWNER:
            known.state_s = event.time_s

    def _begin_anew(self, key: SocketKey, known: Socket | None, event: SocketEvent) -> Socket:
        """A socket may connect again, under the same cookie: nothing of before counts but that its row is known."""
        fresh = Socket(_row_of(event, known.row[6] if known else 0), event.proto)
        fresh.told = known is not None and known.told
        self.open[key] = fresh
        return fresh

    def take_pass(self, held: Iterable[HeldSocket], began_s: float) -> None:
        """Takes a whole pass that began at `began_s`: the descriptors on this namespace's sockets."""
        # Every row of every pass comes by here: no more is done with one that is as it was than has to be.
        open_sockets, ended = self.open, self._ended
        # Held by somebody else than is known.
        others: dict[SocketKey, HeldSocket] = {}
        held = held if isinstance(held, list) else list(held)
        for one in held:
            row = one[7]
            key: SocketKey = row[7]
            if ended and key in ended:
                continue
            known = open_sockets.get(key)
            if known is None:
                known = Socket(row, one[8])
                self._put(key, known)
            elif known.row != row:
                self._see(key, known, row, began_s)
            known.held = True
            if known.pid != one[0] or known.start_ticks != one[1]:
                best = others.get(key)
                others[key] = one if best is None or _rank(one) > _rank(best) else best
        shown = {one[7][7] for one in held} - ended.keys()
        if others:
            self._hand_over_all(others, held, began_s)
        for key in self.open.keys() - shown:
            known = self.open[key]
            if known.held and known.event_s < began_s:
                known.held = False
                self.doubtful.add(key)
        self.doubtful -= shown
        self.unplaced = {key for key in self.unplaced - shown if self.open[key].event_s >= began_s}
        self._ended = {key: ended_s for key, ended_s in self._ended.items() if ended_s >= began_s}

    def _hand_over_all(
        self, others: Mapping[SocketKey, HeldSocket], held: Iterable[HeldSocket], began_s: float
    ) -> None:
        """Where a pass showed holders (`others`: the best of them) and not the known one."""
        holders = {(one[7][7], one[0], one[1]) for one in held if one[7][7] in others}
        for key, best in others.items():
            known = self.open[key]
            if (key, known.pid, known.start_ticks) not in holders:
                self._hand_over(known, best, began_s)

    def take_process(self, pid: int, held: Iterable[HeldSocket], began_s: float) -> None:
        """Takes what one process holds of this namespace's sockets. What it does not hold may be somebody else's."""
        self.unplaced = {
            key for key in self.unplaced if self.open[key].pid != pid or self.open[key].event_s >= began_s
        }
        for one in held:
            key: SocketKey = one[7][7]
            if key in self._ended:
                continue
            known = self.open.get(key)
            if known is None:
                known = Socket(one[7], one[8])
                self._put(key, known)
            else:
                self._see(key, known, one[7], began_s)
            known.held = True
            self.doubtful.discard(key)
            self.unplaced.discard(key)
            if not known.pid:
                self._hand_over(known, one, began_s)

    def take_dump(
        self, tables: Mapping[int, Iterable[SocketRow]], began_s: float, *, whole: bool = True
    ) -> None:
        """Takes a dump that began at `began_s`: rows by protocol. `whole` False: of text, which has no cookies, so only
        its rows without inode can be told apart from what is known already."""
        shown: set[SocketKey] = set()
        for proto, rows in tables.items():
            for row in rows:
                if not whole and row[9]:
                    continue
                key = socket_key(row, proto)
                shown.add(key)
                known = self.open.get(key)
                if known is None:
                    if self._ended.get(key, 0.0) < began_s:
                        self._put(key, Socket(row, proto))
                else:
                    self._see(key, known, row, began_s)
        for key in self.open.keys() - shown:
            known = self.open[key]
            # One that is held is in doubt after the next pass; a dump under churn may leave rows out.
            if not known.held and known.event_s < began_s:
                self._let_go(key, known, began_s)
        self.doubtful = {key for key in self.doubtful - shown if key in self.open}
        self.has_unheld = any(not known.row[9] for known in self.open.values())

    def drop_doubtful(self, now_s: float) -> None:
        """Believes the last pass where no dump can be had, and that what has no inode is gone after a minute."""
        unheld = (
            {key for key, known in self.open.items() if not (known.held or known.row[9])}
            if self.has_unheld
            else set()
        )
        for key in self.doubtful | {key for key in unheld if self.open[key].event_s < now_s - _WAITING_S}:
            self._let_go(key, self.open[key], now_s)
        self.doubtful = set()

    def report(self) -> tuple[list[Socket], list[ClosedConnection]]:
        """What is open, and what closed since the last report: that exactly once."""
        closed, self._closed = self._closed, []
        return list(self.open.values()), closed

    def key_of(self, cookie: int) -> SocketKey:
        """What the socket of this cookie is published under: of whoever has one, the cookie."""
        return cookie

    def changed_cookies(self) -> list[int]:
        """Of the sockets that changed since changes were taken last, of those that have one."""
        return [key for key in self._changed if isinstance(key, int)]

    @property
    def has_changes(self) -> bool:
        return bool(self._changed or self._gone or self._closed)

    def take_changes(self) -> Changes:
        """What changed since the last call."""
        for key in self._changed:
            self.open[key].told = True
        changes = Changes(list(self._changed), list(self._gone), self._closed)
        self._changed, self._gone, self._closed = set(), set(), []
        return changes

    def _close(self, key: SocketKey, known: Socket | None, event: SocketEvent) -> None:
        if known is not None and event.time_s < known.state_s:
            raise EventsLost(f"the close of socket {event.cookie} came after a later event")
        twice = key in self._ended
        self._ended[key] = event.time_s
        if known is None or twice:
            return
        if event.state in _CONNECTED[event.proto] and not known.ended:
            known.ended = True
            pid, start_ticks, comm = (
                (event.pid, event.start_ticks, event.comm)
                if event.pid
                else (known.pid, known.start_ticks, known.comm)
            )
            opened_at_s = known.opened_at_s if event.age_s is None else event.time_s - event.age_s
            inbound = event.inbound if event.age_s is not None else known.inbound
            self._closed.append(ClosedConnection(
                event.cookie, event.proto, event.family, event.local_addr, event.local_port,
                event.remote_addr, event.remote_port, event.uid, _direction(inbound),
                pid or None, start_ticks or None, comm or None, None, opened_at_s, event.time_s,
                event.bytes_sent, event.bytes_received, event.refused,
            ))  # fmt: skip
        if event.state in _WAITING_AFTER:
            # The kernel keeps it, and a dump will show it: as long as that takes it is not gone.
            known.row = (known.row[0], State.TIME_WAIT, *known.row[2:9], 0)
            known.event_s = known.state_s = event.time_s
            known.held = False
            self.has_unheld = True
            self.doubtful.discard(key)
            self.unplaced.discard(key)
            self._note(key)
        else:
            self.doubtful.discard(key)
            self._remove(key)

    def _let_go(self, key: SocketKey, known: Socket, now_s: float) -> None:
        """A socket that is in no table any more and of whose end no event told: events may not for UDP."""
        if known.proto == Proto.UDP and known.row[1] == State.ESTABLISHED:
            self._end_untold(known, now_s)
        self._remove(key)

    def _end_untold(self, known: Socket, now_s: float) -> None:
        """A connection with a known owner has ended by `now_s`, and no event told of it."""
        if not known.pid:
            return
        known.ended = True
        row = known.row
        width = 4 if row[0] == Family.INET else 16
        self._closed.append(ClosedConnection(
            row[7], known.proto, row[0], row[4][:width], int.from_bytes(row[2], "big"), row[5][:width],
            int.from_bytes(row[3], "big"), row[8], _direction(known.inbound), known.pid, known.start_ticks,
            known.comm or None, None, known.opened_at_s, now_s, None, None, False,
        ))  # fmt: skip

    def _hand_over(self, known: Socket, holder: HeldSocket, began_s: float) -> None:
        if known.event_s >= began_s and known.pid:
            return  # who uses it is known from after the pass began
        known.pid, known.start_ticks, known.comm = holder[0], holder[1], _name(holder[3])

    def _see(self, key: SocketKey, known: Socket, row: SocketRow, began_s: float) -> None:
        """A row of a known socket, by a witness that began to look at `began_s`."""
        if known.row == row:
            return
        if known.event_s < began_s:
            known.row = row
            if row[1] == State.TIME_WAIT and not known.ended:
                # Under load no event tells of some such closes: 5 of 11,000, on Linux 6.18.
                self._end_untold(known, began_s)
        elif row[9] and not known.row[9] and known.row[1] != State.TIME_WAIT:
            known.row = (*known.row[:8], *row[8:])  # accepted meanwhile: no event told of its inode
        else:
            return
        self._note(key)

    def _put(self, key: SocketKey, known: Socket) -> None:
        self.open[key] = known
        self._note(key)

    def _note(self, key: SocketKey) -> None:
        self._changed.add(key)
        if key in self._gone:
            self._gone.discard(key)
            self.open[key].told = True

    def _remove(self, key: SocketKey) -> None:
        known = self.open.pop(key)
        self._changed.discard(key)
        self.unplaced.discard(key)
        if known.told:
            self._gone.add(key)


def _row_of(event: SocketEvent, ifindex: int) -> SocketRow:
    padding = bytes(16 - len(event.local_addr))
    return (
        event.family, event.state, event.local_port.to_bytes(2, "big"), event.remote_port.to_bytes(2, "big"),
        event.local_addr + padding, event.remote_addr + padding, ifindex, event.cookie, event.uid, event.inode,
    )  # fmt: skip


def _direction(inbound: bool | None) -> str:
    return "unknown" if inbound is None else "inbound" if inbound else "outbound"


def _rank(holder: HeldSocket) -> tuple[bool, int, int]:
    """The greater, the more likely the one that uses it, as merge/owners.py orders holders."""
    return holder[0] != 1, holder[1], -holder[0]


def _name(comm: bytes) -> str:
    return comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
