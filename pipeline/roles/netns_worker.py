"""The netns worker: looks when told, walks at its own pace, publishes. One process, one or a few namespaces.

It lives in the host's namespace and enters another only for the length of one dump.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.board import ANSWERED, BLOCKS, CPU_NS, DEBT_NS, DUMP_STARTED_NS, LOOKS, Slot
from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.errors import Denied, SockscopeError, Unsupported, Vanished
from pipeline.kernel.enter import home_inode, open_netns
from pipeline.model.process import Task
from pipeline.netlink.sock_diag import open_diag
from pipeline.procfs.ns import netns_path
from pipeline.procfs.root import ProcRoot
from pipeline.roles.control import Control, assignment, held_messages
from pipeline.roles.publication import Publication
from pipeline.segment import SegmentWriter
from pipeline.walk.budget import CpuBudget
from pipeline.walk.elsewhere import Elsewhere
from pipeline.walk.namespace import NamespaceWalk
from pipeline.walk.pacer import Pacing
from pipeline.walk.reading import TableReader

_log = logging.getLogger(__name__)

# A first look at a great namespace stops after so much CPU time and goes on later: others wait behind it.
_LOOK_LIMIT_CPU_S = 0.25
_OVERDUE_S = 1.0
# So much sooner, of the length of a pass, a short one may begin to be one of a round.
_TOGETHER = 0.1
# That passes found nothing new is worth telling so often: it is what says of owners when they were last seen.
_CONFIRM_AFTER_S = 60.0
# CPython specialises code after it ran eight times.
_REHEARSALS = 10


@dataclass(slots=True)
class _Assigned:
    walk: NamespaceWalk
    publication: Publication
    life: int
    is_seen: bool = False
    is_amid_pass: bool = False
    published_s: float = 0.0
    told_denied: bool = False
    told_held: list[Elsewhere] = field(default_factory=list)


class NetnsWorker:
    """One worker. Made before the fork, with a walk for its first namespace: what making them touches stays
    memory that all workers share."""

    _control: Control
    _slot: Slot
    _send: Callable[[bytes], bool]

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._root = ProcRoot(config.agent.proc_root)
        self._budget = CpuBudget(config.budget.cpu_percent / 100, clock.monotonic_s())
        self._assigned: dict[int, _Assigned] = {}
        # Namespaces to be looked at, in turn, and the oldest order to do so that is not carried out.
        self._pending_looks: dict[int, int] = {}
        # Those never looked at: they come first, also over the budget.
        self._unseen: set[int] = set()
        self._order = 0
        # When a round of short passes begins, one of many.
        self._round_s = 0.0
        self._charged_cpu_s = 0.0
        self._stopped = self._walked_last = False
        self._spare: _Assigned | None = self._make_walk()

    def attach(self, control: Control, slot: Slot, send: Callable[[bytes], bool]) -> None:
        """In the child: its line to the supervisor, its slot, and what publishes (False: dropped)."""
        self._control = control
        self._slot = slot
        self._send = send
        self._charged_cpu_s = self._clock.cpu_s()

    def run(self) -> None:
        """Returns when told to stop or when the supervisor has gone."""
        while not self._stopped:
            if self._control.wait(self._sleep_s()):
                self._obey_all()
            self._work()

    def _sleep_s(self) -> float | None:
        """How long there is nothing to do; None: until told."""
        now_s = self._clock.monotonic_s()
        if self._unseen:
            return 0.0
        if self._pending_looks:
            return self._budget.ready_s(now_s) - now_s
        if not self._assigned:
            return None
        due_s = min(entry.walk.pacer.due_s for entry in self._assigned.values())
        return max(due_s, self._budget.ready_s(now_s)) - now_s

    def _work(self) -> None:
        """One look or one block, whichever is due, if the budget allows. A first look is taken in any case, and its
        price is a debt to everything after it: an answer that is a little late is better than none."""
        now_s = self._clock.monotonic_s()
        if not self._unseen and self._budget.ready_s(now_s) > now_s:
            return
        # Over the budget a look is always waiting: then they take turns, or no pass would ever end, and what a search
        # can miss would stay missed.
        self._walked_last = not self._unseen and not self._walked_last and self._is_overdue(now_s)
        if self._pending_looks and not self._walked_last:
            netns = next(iter(self._unseen or self._pending_looks))
            self._unseen.discard(netns)
            order = self._pending_looks.pop(netns)
            if not self._look(netns):
                self._pending_looks[netns] = order
            self._slot[ANSWERED] = min(self._pending_looks.values(), default=self._order + 1) - 1
        else:
            self._walk_due_block(now_s)
        used_cpu_s = self._clock.cpu_s()
        now_s = self._clock.monotonic_s()
        # With what orders and libzmq's thread took since the last time.
        self._budget.charge(used_cpu_s - self._charged_cpu_s, now_s)
        self._charged_cpu_s = used_cpu_s
        self._slot[CPU_NS] = int(used_cpu_s * 1e9)
        self._slot[DEBT_NS] = int(self._budget.debt_cpu_s(now_s) * 1e9)

    def _is_overdue(self, now_s: float) -> bool:
        """Whether a block of a pass should have been read a while ago."""
        return any(now_s - entry.walk.pacer.due_s > _OVERDUE_S for entry in self._assigned.values())

    def _look(self, netns: int) -> bool:
        """Whether that was all there is to look at."""
        entry = self._assigned.get(netns)
        if entry is None:
            return True
        walk, is_all = entry.walk, True
        entry.is_seen = True
        try:
            walk.look(_LOOK_LIMIT_CPU_S)
        except Vanished:
            # On its way out: the supervisor will say so.
            walk.health.dumps_vanished += 1
        except (Denied, Unsupported) as error:
            walk.health.dumps_denied += 1
            if not entry.told_denied:
                _log.warning("the tables may not be read: %s", error, extra={"netns": netns})
            entry.told_denied = True
        else:
            self._slot[LOOKS] += 1
            is_all = not walk.look_again
            if is_all and walk.health.passes == 0 and walk.files:
                self._tell_held(netns, entry)  # every task was visited by this first look
        self._publish(entry)
        return is_all

    def _walk_due_block(self, now_s: float) -> None:
        netns, entry = min(
            self._assigned.items(), key=lambda item: item[1].walk.pacer.due_s, default=(0, None)
        )
        if entry is None or entry.walk.pacer.due_s > now_s:
            return
        ended = entry.walk.walk_block()
        self._slot[BLOCKS] += 1
        if ended and not entry.is_amid_pass and len(self._assigned) > 1:
            # Short passes stay together, see Fleet: those that had to wait for the budget meet again.
            target_s, pacer = self._config.walk.target_s, entry.walk.pacer
            rounds = math.ceil((pacer.due_s - self._round_s) / target_s - _TOGETHER)
            pacer.begin(self._round_s + rounds * target_s)
        entry.is_amid_pass = not ended
        # Asked here, as what a function touches is memory of each idle worker.
        if ended and (entry.walk.files or entry.told_held):
            self._tell_held(netns, entry)
        due = ended or now_s - entry.published_s >= self._config.tables.interval_s
        # A look that waits will publish it with the tables of its moment. Told alone, a descriptor that was closed
        # since the last look takes its holder from a connection that the tables still show.
        news = entry.walk.has_changes or (ended and now_s - entry.published_s >= _CONFIRM_AFTER_S)
        if news and due and netns not in self._pending_looks:
            self._publish(entry)

    def _tell_held(self, netns: int, entry: _Assigned) -> None:
        """Tells the supervisor of other namespaces that may live only by what the processes of this one hold."""
        held = entry.walk.held_elsewhere()
        messages = held_messages(netns, held) if held != entry.told_held else []
        entry.told_held = held
        now_s = self._clock.monotonic_s()
        for message in messages:
            self._control.send(message, now_s)
        self._control.flush(now_s)  # what a busy supervisor did not take the last time

    def _publish(self, entry: _Assigned) -> None:
        """Commits the next generation to the segment, then sends it."""
        now_s = self._clock.monotonic_s()
        entry.published_s = now_s
        walk = entry.walk
        if not entry.publication.publish(walk.take_snapshot(), walk.base, now_s):
            walk.want_base()

    def _obey_all(self) -> None:
        messages = self._control.receive()
        if messages is None:
            self._stopped = True
        for message in messages or ():
            getattr(self, "_obey_" + message["op"])(message)

    def _make_walk(self) -> _Assigned:
        """A walk of no namespace yet."""
        tables, walk = self._config.tables, self._config.walk
        pacing = Pacing(
            walk.fd_block,
            walk.period_initial_ms / 1000,
            walk.period_min_ms / 1000,
            walk.period_max_ms / 1000,
            walk.target_s,
            walk.late_factor,
        )
        reader = TableReader(
            self._root, 0, tables.source, self._clock, self._mark_dump, traffic=tables.tcp_info
        )
        walk_of_none = NamespaceWalk(
            0,
            self._root,
            reader,
            pacing,
            self._clock,
            traffic_interval_s=tables.full_interval_s if tables.tcp_info else None,
        )
        # Who sends is known once there is something to send.
        nowhere = Publication(SegmentWriter(""), lambda payload: False, walk_of_none.health)
        return _Assigned(walk_of_none, nowhere, 0)

    def _obey_assign(self, message: dict[str, Any]) -> None:
        entry, self._spare = self._spare or self._make_walk(), None
        entry.life = message["life"]
        entry.publication.segment.path, entry.publication.send = message["segment"], self._send
        start_s = self._round_s = self._clock.monotonic_s() + message["delay_s"]
        entry.walk.begin(message["netns"], message["life"], start_s)
        entry.walk.paths = tuple(message["paths"])
        entry.walk.set_members([Task(*task) for task in message["tasks"]], ())
        self._assigned[message["netns"]] = entry

    def _obey_members(self, message: dict[str, Any]) -> None:
        entry = self._assigned[message["netns"]]
        entry.walk.set_members(
            [Task(*task) for task in message["added"]], [Task(*task) for task in message["removed"]]
        )

    def _obey_paths(self, message: dict[str, Any]) -> None:
        self._assigned[message["netns"]].walk.paths = tuple(message["paths"])

    def _obey_look(self, message: dict[str, Any]) -> None:
        self._order = message["order"]
        for netns in message["netns"]:
            entry = self._assigned.get(netns)
            if entry is None or (netns in message["still"] and entry.walk.is_as_seen):
                continue
            self._pending_looks.setdefault(netns, self._order)
            if not entry.is_seen:
                self._unseen.add(netns)

    def _obey_share(self, message: dict[str, Any]) -> None:
        self._budget.set_share(message["cpu"], self._clock.monotonic_s())

    def _obey_drop(self, message: dict[str, Any]) -> None:
        entry = self._assigned.pop(message["netns"], None)
        self._pending_looks.pop(message["netns"], None)
        self._unseen.discard(message["netns"])
        if entry is not None:
            entry.publication.segment.close()
        if message["tell"]:
            now_s = self._clock.monotonic_s()
            self._control.send({"op": "dropped", "netns": message["netns"]}, now_s)
            self._control.flush(now_s)

    def _obey_stop(self, message: dict[str, Any]) -> None:
        self._stopped = True

    def _mark_dump(self, inside: bool) -> None:
        """Notes on the board that a socket of a namespace is open: the supervisor kills who stays there."""
        self._slot[DUMP_STARTED_NS] = int(self._clock.monotonic_s() * 1e9) if inside else 0


def rehearse(config: Config, clock: Clock, slot: Slot, segment: str) -> None:
    """Does a few times in the supervisor what its workers will do for ever: looks at and walks our own process.

    What CPython writes the first times (specialised bytecode, caches) is then shared by all workers instead of
    copied into each: 0.25 MB of it. Leaves nothing behind but a segment at `segment`.
    """
    ours, theirs = Control.pair()
    worker = NetnsWorker(config, clock)
    worker.attach(theirs, slot, lambda payload: True)
    root, netns, task = ProcRoot(), home_inode(), Task(os.getpid(), os.getpid())
    for order in assignment(netns, 1, segment, (), [task], 0, 0.0):
        ours.send(order, clock.monotonic_s())
    for number in range(_REHEARSALS):
        ours.send({"op": "share", "cpu": 1.0}, clock.monotonic_s())
        ours.send({"op": "members", "netns": netns, "added": [task], "removed": []}, clock.monotonic_s())
        ours.send({"op": "look", "netns": [netns], "still": [], "order": number}, clock.monotonic_s())
        if worker._control.wait(worker._sleep_s()):
            worker._obey_all()
        worker._work()
        while not worker._assigned[netns].walk.walk_block():
            pass
        with suppress(SockscopeError):  # where entering is denied, no worker will do it either
            _enter_and_leave(netns_path(root, task), netns)
    ours.send({"op": "drop", "netns": netns, "tell": False}, clock.monotonic_s())
    worker._obey_all()
    ours.close()
    theirs.close()


def _enter_and_leave(path: str, netns: int) -> None:
    netns_fd = open_netns(path, netns)
    try:
        open_diag(netns_fd).close()
    finally:
        os.close(netns_fd)
