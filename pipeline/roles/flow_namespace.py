"""One namespace as the conntrack worker sees it: what it translates, how that is learnt, when to ask again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config import Conntrack
from pipeline.kernel.enter import home_inode, inside, way_into
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FLOW_ROLE, FlowHealth, FlowSnapshot
from pipeline.netlink.conntrack import FlowDump, count_entries, dump_translated, open_conntrack
from pipeline.netlink.conntrack_events import FlowEvent, FlowGroup
from pipeline.netlink.conntrack_message import FlowDecoder
from pipeline.netlink.nsid import read_nsid
from pipeline.netlink.sock_diag import netns_cookie
from pipeline.procfs.conntrack import sends_events
from pipeline.procfs.root import ProcRoot
from pipeline.roles.publication import Publication
from pipeline.segment import SegmentWriter
from pipeline.track.flows import FlowTable

# How much of the worker's share the checks of one namespace may use: others wait behind them.
_CHECK_PART = 0.5
# A namespace that tracks nothing, and where no connection came or went, is asked after so many idle intervals at most.
_SILENT_INTERVALS = 6
_NEVER_S = float("-inf")


@dataclass(slots=True)
class Asking:
    """What a check needs of the worker. `route`: a rtnetlink socket of our own namespace. `subscribe`: has our own
    socket hear events, and tells whether it does. `mark`: told when a socket is open inside a namespace."""

    route: socket.socket
    decoder: FlowDecoder
    subscribe: Callable[[], bool]
    mark: Callable[[bool], None]


class FlowNamespace:
    """`ways`: paths to enter by, to be tried in order. `due_s`: when to check it next. `hears`: we are told of its
    flows by events, so checks only put right what they may have missed."""

    def __init__(
        self,
        netns: int,
        life: int,
        segment: SegmentWriter,
        send: Callable[[bytes], bool],
        ways: Sequence[str],
        settings: Conntrack,
        now_s: float,
    ) -> None:
        self.netns = netns
        self.life = life
        self.ways = list(ways)
        self.due_s = now_s
        self.hears = False
        self.nsid: int | None = None
        self.health = FlowHealth()
        self.publication = Publication(segment, send, self.health)
        self.table = FlowTable(settings.max_flows)
        self._settings = settings
        self._is_home = netns == home_inode()
        self._root = ProcRoot()
        # Events do not come although they should: a dump found flows that none had told of.
        self._deaf = False
        self._unexplained: set[bytes] = set()
        self._entries = 0
        self._dumped_s = _NEVER_S
        self._taken_at_s = now_s
        self._wants_dump = True
        self._idle_s = settings.interval_s
        self._silent_s = _SILENT_INTERVALS * settings.idle_interval_s
        self._earliest_s = now_s
        self._cookie: int | None = None
        self._generation = 0
        self._told_missing = self._missing()
        # Of a namespace that never translated there is nothing to say, unless an earlier life did.
        self._needs_base = os.path.exists(segment.path)

    @property
    def is_home(self) -> bool:
        """Whether it is the worker's own, whose events name no nsid."""
        return self._is_home

    @property
    def is_worth_telling(self) -> bool:
        """Whether there is anything new to be published."""
        misses = self._generation > 0 and self._missing() != self._told_missing
        return self._needs_base or self.table.has_changes or misses

    def check(self, asking: Asking, now_s: float) -> None:
        """Asks how much it tracks and reads what of that is translated, if it may have changed without our being told.

        Before and after it the caller reads all events that have come, see `apply`.
        Raises: Vanished, Denied, Unsupported, Malformed.
        """
        self._settle()
        with way_into(self.ways, self.netns) as netns_fd:
            self.nsid = read_nsid(asking.route, netns_fd) if netns_fd is not None else None
            asking.mark(True)
            try:
                with open_conntrack(netns_fd) as sock:
                    self._note_cookie(netns_cookie(sock))
                    entries = count_entries(sock)
                    # Before the dump: what begins between the two would be lost.
                    self._listen(asking, netns_fd)
                    if not entries:
                        self._take(FlowDump([], False), now_s)
                    elif self._must_dump(entries, now_s):
                        self._take(self._dump(sock, asking.decoder, entries), now_s)
            finally:
                asking.mark(False)
        self._entries = entries
        self._taken_at_s = now_s

    def plan(self, now_s: float, cost_cpu_s: float, share: float) -> None:
        """After a check that cost so much: when the next one is due."""
        settings = self._settings
        if self.hears:
            # An event is sent a moment after its entry can be found: what is unexplained now may not be so then.
            wait_s = settings.interval_s if self._unexplained else settings.full_interval_s
        elif self.table:
            wait_s = self._idle_s = settings.interval_s
        else:
            wait_s = self._idle_s
            longest_s = settings.full_interval_s if self._entries else self._silent_s
            self._idle_s = min(2 * self._idle_s, longest_s)
        self._earliest_s = now_s + cost_cpu_s / share / _CHECK_PART
        self.due_s = max(now_s + wait_s, self._earliest_s)

    def stir(self) -> None:
        """Connections came or went there: if it tracked nothing when asked last, it may by now."""
        if not self._entries and not self.hears:
            self.due_s = min(
                self.due_s, max(self._taken_at_s + self._settings.idle_interval_s, self._earliest_s)
            )

    def want_dump(self, at_s: float) -> None:
        """Events were lost: what is translated is read again, at `at_s`."""
        self._wants_dump = True
        self.due_s = min(self.due_s, at_s)
        self._unexplained = set()

    def apply(self, event: FlowEvent) -> None:
        """One event of this namespace, in their order; those that came during a dump after it."""
        self.health.events += 1
        self._deaf = False
        if event.kind is FlowGroup.DESTROY:
            self.table.remove(event.flow.key)
        else:
            self.table.add(event.flow)
            self.health.flows_over_limit = self.table.over_limit
        self._unexplained.discard(event.flow.key)

    def take_snapshot(self) -> FlowSnapshot:
        """The next generation: a base at first and after `want_base`, else the changes to the last one."""
        self._generation += 1
        self._told_missing = self._missing()
        change = self.table.take_change()
        base, self._needs_base = self._needs_base or self._generation == 1, False
        return self._snapshot(True, self.table.flows(), []) if base else self._snapshot(False, *change)

    def want_base(self) -> None:
        """Makes the next snapshot whole: a generation was lost on the way."""
        self._needs_base = True

    def base(self) -> FlowSnapshot:
        """The current generation as a whole."""
        return self._snapshot(True, self.table.flows(), [])

    def _snapshot(self, base: bool, flows: Sequence[Flow], gone: Sequence[bytes]) -> FlowSnapshot:
        return FlowSnapshot(
            FLOW_ROLE, self.netns, self._cookie, self.life, self._generation, base, self._taken_at_s,
            self.health.copy(), flows, gone,
        )  # fmt: skip

    def _missing(self) -> int:
        """Counts what may be missing from the table: to be told even where it stays as it is."""
        health = self.health
        return health.events_lost + health.flows_missed + health.flows_over_limit + health.rows_malformed

    def _settle(self) -> None:
        """What the last check found, and no event has told of until now, was never told of."""
        if self._unexplained:
            self.health.flows_missed += len(self._unexplained)
            self._deaf = True
        self._unexplained = set()

    def _listen(self, asking: Asking, netns_fd: int | None) -> None:
        """Decides whether it `hears`. What begins to be heard is read once more after that."""
        heard, self.hears = self.hears, False
        if (self._is_home or self.nsid is not None) and not self._deaf:
            self.hears = self._sends_events(netns_fd) and asking.subscribe()
        if self.hears and not heard:
            self._wants_dump = True

    def _must_dump(self, entries: int, now_s: float) -> bool:
        if self._wants_dump:
            return True
        settings = self._settings
        # A flow that ends while another begins leaves the number as it was.
        known_for_s = settings.idle_interval_s if self.table and not self.hears else settings.full_interval_s
        changed = entries != self._entries and not self.hears
        return changed or now_s - self._dumped_s >= known_for_s

    def _dump(self, sock: socket.socket, decoder: FlowDecoder, entries: int) -> FlowDump:
        malformed = decoder.malformed
        dump = dump_translated(sock, decoder, entries - len(self.table))
        self.health.rows_malformed += decoder.malformed - malformed
        self.health.dumps += 1
        self.health.dumps_interrupted += dump.interrupted
        return dump

    def _take(self, dump: FlowDump, now_s: float) -> None:
        unknown = self.table.resync(dump.flows, whole=not dump.interrupted)
        # At the first dump, and after a loss, nothing was to be known before.
        self._unexplained = unknown if self.hears and not self._wants_dump else set()
        self.health.flows_over_limit = self.table.over_limit
        self._dumped_s = now_s
        self._wants_dump = False

    def _note_cookie(self, cookie: int | None) -> None:
        if cookie != self._cookie and None not in (cookie, self._cookie):
            # The inode was given to another namespace: nothing of the old one may live on.
            self.table = FlowTable(self._settings.max_flows)
            self._deaf = self.hears = False
            self._needs_base = self._wants_dump = True
        self._cookie = cookie or self._cookie

    def _sends_events(self, netns_fd: int | None) -> bool:
        if netns_fd is None:
            return sends_events(self._root)
        with inside(netns_fd):
            # net/ below sys/ shows the namespace of the thread that opens it.
            return sends_events(self._root)
