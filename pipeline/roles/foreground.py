"""One unpaced walk of every namespace in this very process, merged: no daemon, nothing left running."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.clock import Clock, SystemClock
from pipeline.config import Config, Tables
from pipeline.discover import Discovery
from pipeline.ebpf import SocketIterator
from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.kernel.support import host_name
from pipeline.merge.join import Join, Seen
from pipeline.model.flow_snapshot import FlowSnapshot
from pipeline.model.netns import Netns, NetnsInode, RosterRow
from pipeline.model.snapshot import Snapshot
from pipeline.model.socket_row import SocketRow
from pipeline.model.traffic import Figures
from pipeline.procfs.conntrack import has_conntrack
from pipeline.procfs.root import ProcRoot
from pipeline.roles.flows_once import read_flows
from pipeline.roles.kernel_pass import look_at_all, open_iterator
from pipeline.store import Store
from pipeline.walk.holdings import TaskFiles
from pipeline.walk.once import OneLook

_log = logging.getLogger(__name__)


class Look(Protocol):
    """What was seen of one namespace: once.OneLook, or held.HeldLook."""

    @property
    def netns(self) -> Netns: ...
    @property
    def cookie(self) -> int | None: ...
    @property
    def taken_at_s(self) -> float: ...
    @property
    def walked_at_s(self) -> float | None: ...
    @property
    def denied(self) -> int: ...
    @property
    def rows(self) -> Mapping[int, Collection[SocketRow]]: ...
    @property
    def devices(self) -> Mapping[int, str]: ...
    @property
    def traffic(self) -> Mapping[int, Figures]: ...
    @property
    def files(self) -> Collection[TaskFiles]: ...
    def snapshot(self) -> Snapshot: ...


@dataclass(frozen=True)
class Taken:
    """What one walk showed. `denied`: processes of which not even the namespace may be known. `by_kernel`: eBPF told,
    and no process was read. `left_out`: namespaces that were not looked at, see discover.py. `flows`: bases, of those
    that translate."""

    looks: Sequence[Look]
    denied: int
    by_kernel: bool
    config: Config
    clock: Clock
    left_out: int = 0
    flows: Sequence[FlowSnapshot] = ()

    def join(self) -> Join:
        """The connections with their owners, for everything that needs no filter, and no other end through `flows`: a
        third of what the store costs."""
        return Join(
            [self._seen(look) for look in self.looks],
            self.clock.wall_s() - self.clock.monotonic_s(),
            complete=not self.denied and not self.left_out,
        )

    def store(self) -> Store:
        """All of it in a store in memory, whose loss counter `processes_denied` is `denied`."""
        host = self.config.agent.host_name or host_name()
        store = Store(":memory:", secrets.token_hex(8), host, self.clock, self.config.workers.stale_after_s)
        roster = [
            RosterRow(look.netns.inode, list(look.netns.names), os.getpid(), 0, "walking", "", 0.0)
            for look in self.looks
        ]
        # First: nobody is sure to hold a socket where some processes are hidden.
        store.set_losses({"processes_denied": self.denied, "namespaces_left_out": self.left_out})
        store.apply([look.snapshot() for look in self.looks], roster, self.flows)
        return store

    def _seen(self, look: Look) -> Seen:
        netns = look.netns
        late_s = self.clock.monotonic_s() - self.config.workers.stale_after_s
        # eBPF shows no socket that an io_uring holds: what it shows nobody to hold need not be the kernel's.
        searched_since_s = None if self.by_kernel else look.walked_at_s
        return Seen(
            netns.inode, netns.names[0] if netns.names else None, look.cookie, look.taken_at_s, look.walked_at_s,
            searched_since_s, look.denied, look.taken_at_s < late_s, look.rows, look.devices, look.files,
            look.traffic,
        )  # fmt: skip


def take(
    config: Config,
    only_netns: tuple[str, ...] = (),
    opening: Callable[[], SocketIterator] = SocketIterator.open,
) -> Taken:
    """The state of now. `only_netns`: patterns on names or inodes, empty for all. `opening`: how eBPF is begun with.

    Raises: Denied where eBPF is required and cannot be used.
    """
    clock = SystemClock()
    root = ProcRoot(config.agent.proc_root)
    discovery = Discovery(
        root, config.discovery.mount_dirs, only_netns or config.discovery.include, config.discovery.exclude
    )
    iterator = open_iterator(config.ebpf.mode, root, opening)
    if iterator is not None:
        with iterator:
            held = look_at_all(iterator, discovery, root, config.tables, clock)
        # The kernel told of every process, also of those whose namespace may not be read.
        return Taken(held, 0, True, config, clock, flows=_flows(held, root, config, clock))
    looks: dict[NetnsInode, OneLook] = {}
    # Who holds a namespace that nobody lives in is known only when the holder was read, and it may hold another.
    while new := [one for one in discovery.scan(clock.monotonic_s()).values() if one.inode not in looks]:
        for netns in new:
            look = looks[netns.inode] = _look(netns, root, config.tables, clock)
            discovery.note_held(netns.inode, look.held_elsewhere())
    found = list(looks.values())
    flows = _flows(found, root, config, clock)
    return Taken(found, discovery.denied, False, config, clock, discovery.left_out, flows)


def _flows(looks: Sequence[Look], root: ProcRoot, config: Config, clock: Clock) -> list[FlowSnapshot]:
    # Sockets first: what a flow joins is there before it, and stays for as long as it.
    if config.conntrack.mode == "off" or not root.is_live() or not has_conntrack(ProcRoot()):
        return []
    namespaces = [(look.netns, look.cookie) for look in looks]
    return read_flows(namespaces, root, clock, config.conntrack.max_flows)


def _look(netns: Netns, root: ProcRoot, tables: Tables, clock: Clock) -> OneLook:
    look = OneLook(netns, root, tables.source, clock, traffic=tables.tcp_info)
    try:
        look.run()
    except Vanished:
        look.health.dumps_vanished += 1
    except (Denied, Unsupported) as error:
        look.health.dumps_denied += 1
        _log.warning("the tables may not be read: %s", error, extra={"netns": netns.inode})
    return look
