"""Everything at once by the eBPF iterator, for who has no pipeline running: no process is walked.

A pass tells of every held socket of every namespace. What nobody holds is in the tables of its namespace, which are
read where the kernel counts more sockets than the pass showed; what is in the tables then and was held by nobody, a
second pass settles, which comes after them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.clock import Clock
from pipeline.config import Tables
from pipeline.discover import Discovery
from pipeline.ebpf import SocketIterator
from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.model.container import Container
from pipeline.model.held_socket import HeldSocket
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.fd import fd_path
from pipeline.procfs.root import ProcRoot
from pipeline.walk.held import HeldLook, processes_of

_log = logging.getLogger(__name__)

# Any one descriptor is a way into the namespace of its socket; some more, as each may be closed at any moment.
_WAYS = 4


def open_iterator(
    mode: str, root: ProcRoot, opening: Callable[[], SocketIterator] = SocketIterator.open
) -> SocketIterator | None:
    """The iterator as `ebpf.mode` has it; None for off, and for auto where it cannot be had, which is said once.

    Raises: Denied where it is required.
    """
    if mode == "off":
        return None
    try:
        if not root.is_ours():
            raise Unsupported(
                f"eBPF: the processes in {root.path} have other numbers than those the kernel tells"
            )
        return opening()
    except (Denied, Unsupported) as error:
        if mode == "require":
            capability = error.capability if isinstance(error, Denied) else ""
            raise Denied(f"{error}; and ebpf.mode is require", capability, error.hint) from None
        _log.info("%s; processes are read instead", error)
        return None


def look_at_all(
    iterator: SocketIterator, discovery: Discovery, root: ProcRoot, tables: Tables, clock: Clock
) -> list[HeldLook]:
    """Every namespace that is wanted."""
    wanted = discovery.scan(clock.monotonic_s())
    began_s = clock.monotonic_s()
    held = iterator.read_all()
    by_netns = _grouped(held, 9)
    for netns in _held_only(by_netns, wanted.keys(), root):
        if discovery.is_wanted(netns):
            wanted[netns.inode] = netns
    looks = {
        inode: HeldLook(wanted[inode], root, tables.source, clock, traffic=tables.tcp_info)
        for inode in sorted(wanted)
    }
    for inode, look in looks.items():
        look.take_sockets(by_netns.get(inode, ()), began_s)
        if not look.shows_all():
            _dump(look)
    if unheld := _inodes_unheld(looks.values(), held):
        began_s = clock.monotonic_s()
        held = iterator.read_all_if_held(unheld) or held
    _share_out(held, looks, root, began_s)
    return list(looks.values())


def _inodes_unheld(looks: Iterable[HeldLook], held: list[HeldSocket]) -> set[int]:
    """Of the sockets in the tables that nobody holds."""
    inodes = {one[7][9] for one in held}
    return set().union(*(look.inodes() - inodes for look in looks))


def _held_only(
    by_netns: dict[int, list[HeldSocket]], known: Iterable[int], root: ProcRoot
) -> Iterable[Netns]:
    """Namespaces that the pass told of and discovery did not: their sockets are all that shows them."""
    for inode in by_netns.keys() - known:
        ways = [fd_path(root, Task(one[0], one[0]), one[2]) for one in by_netns[inode][:_WAYS]]
        yield Netns(NetnsInode(inode), (), (), frozenset(), tuple(ways))


def _dump(look: HeldLook) -> None:
    try:
        look.dump()
    except Vanished:
        look.health.dumps_vanished += 1
    except (Denied, Unsupported) as error:
        look.health.dumps_denied += 1
        message = "sockets that nobody holds are left out: the tables may not be read: %s"
        _log.warning(message, error, extra={"netns": look.netns.inode})


def _share_out(
    held: list[HeldSocket], looks: dict[NetnsInode, HeldLook], root: ProcRoot, began_s: float
) -> None:
    """Gives each process to the namespace it lives in, or, where that is not looked at, to those of its sockets."""
    containers: dict[str, Container] = {}
    here: dict[int, list[HeldSocket]] = defaultdict(list)
    for one in held:
        netns = one[4] if one[4] in looks else one[9]
        if netns in looks:
            here[netns].append(one)
    for inode, look in looks.items():
        look.take_holders(processes_of(here[inode], root, containers).values(), began_s)
        look.containers = containers


def _grouped(held: Iterable[HeldSocket], column: int) -> dict[Any, list[HeldSocket]]:
    groups: dict[Any, list[HeldSocket]] = defaultdict(list)
    for one in held:
        groups[one[column]].append(one)
    return groups
