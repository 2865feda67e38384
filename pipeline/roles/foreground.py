"""One unpaced walk of every namespace in this very process, merged: no daemon, nothing left running."""

from __future__ import annotations

import logging
import os
import secrets

from pipeline.clock import SystemClock
from pipeline.config import Config
from pipeline.discover import Discovery
from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.kernel.support import host_name
from pipeline.model.netns import Netns, NetnsInode, RosterRow
from pipeline.procfs.root import ProcRoot
from pipeline.store import Store
from pipeline.walk.namespace import NamespaceWalk
from pipeline.walk.pacer import Pacing
from pipeline.walk.reading import TableReader

_log = logging.getLogger(__name__)


def take(config: Config, only_netns: tuple[str, ...] = ()) -> Store:
    """A store in memory with the state of now. `only_netns`: patterns on names or inodes, empty for all.

    Its loss counter `processes_denied` says of how many processes not even the namespace may be known.
    """
    clock = SystemClock()
    root = ProcRoot(config.agent.proc_root)
    discovery = Discovery(
        root, config.discovery.mount_dirs, only_netns or config.discovery.include, config.discovery.exclude
    )
    host = config.agent.host_name or host_name()
    store = Store(":memory:", secrets.token_hex(8), host, clock, config.workers.stale_after_s)
    found: dict[NetnsInode, Netns] = {}
    walks: list[NamespaceWalk] = []
    # Who holds a namespace that nobody lives in is known only when the holder was read, and it may hold another.
    while new := [one for one in discovery.scan(clock.monotonic_s()).values() if one.inode not in found]:
        for netns in new:
            found[netns.inode] = netns
            walks.append(_look(netns, root, config.tables.source, clock))
            discovery.note_held(netns.inode, walks[-1].held_elsewhere())
    roster = [
        RosterRow(netns.inode, list(netns.names), os.getpid(), 0, "walking", "", 0.0)
        for netns in found.values()
    ]
    store.apply([walk.take_snapshot() for walk in walks], roster)
    store.set_losses({"processes_denied": discovery.denied})
    return store


def _look(netns: Netns, root: ProcRoot, source: str, clock: SystemClock) -> NamespaceWalk:
    reader = TableReader(root, netns.inode, source, clock)
    walk = NamespaceWalk(netns.inode, root, reader, Pacing(), clock)
    walk.paths = netns.paths
    walk.set_members(netns.tasks, [])
    try:
        walk.look()
    except Vanished:
        walk.health.dumps_vanished += 1
    except (Denied, Unsupported) as error:
        walk.health.dumps_denied += 1
        _log.warning("the tables may not be read: %s", error, extra={"netns": netns.inode})
    return walk
