"""One reading of a namespace's socket tables: by sock_diag, or by /proc text where that is denied."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from pipeline.clock import Clock
from pipeline.errors import Denied, Malformed, Unsupported, Vanished
from pipeline.kernel.enter import home_inode, open_netns
from pipeline.model.connection import Family, Proto
from pipeline.model.process import Task
from pipeline.model.socket_row import SocketRow
from pipeline.netlink import sock_diag
from pipeline.netlink.addresses import read_addresses
from pipeline.procfs.net_tcp import read_net_table
from pipeline.procfs.ns import netns_path, read_netns_inode
from pipeline.procfs.root import ProcRoot
from pipeline.walk.table import Reading

_log = logging.getLogger(__name__)

_TEXT_TABLES: tuple[tuple[Proto, Family, str], ...] = (
    (Proto.TCP, Family.INET, "tcp"),
    (Proto.TCP, Family.INET6, "tcp6"),
    (Proto.UDP, Family.INET, "udp"),
    (Proto.UDP, Family.INET6, "udp6"),
)
# How many members are tried as the way into a namespace, or to its text, before it counts as vanished.
_TRIES = 4
# After a refusal sock_diag is tried again only this much later: rights seldom change.
_DENIED_RETRY_S = 60.0
# Addresses change seldom, and to read them costs as much as to look at an idle namespace.
_ADDRESSES_EVERY_S = 5.0


class TableReader:
    """Reads the tables of one namespace. `source`: auto, sock_diag or proc, as `tables.source` says.

    `traffic`: whether to ask what the connections have carried, too; the text does not tell.

    `mark_dump` is told when a socket of the namespace is about to be open, which pins it, and when it is closed.
    """

    def __init__(
        self,
        root: ProcRoot,
        netns_inode: int,
        source: str,
        clock: Clock,
        mark_dump: Callable[[bool], None] = lambda inside: None,
        *,
        traffic: bool = False,
    ) -> None:
        self._root = root
        self.netns_inode = netns_inode
        self._source = source
        self._clock = clock
        self._mark_dump = mark_dump
        self._traffic = traffic
        self._denied_until_s = 0.0
        self._addresses_due_s = float("-inf")
        self._live: bool | None = None

    def read(self, paths: Sequence[str], tasks: Sequence[Task]) -> Reading:
        """All tables. `paths`: ways into the namespace that need no task, for open_netns. Raises: Vanished when no way
        into it is left; Denied if none is allowed."""
        if self._source != "proc" and self._clock.monotonic_s() >= self._denied_until_s and self._is_live():
            try:
                return self._read_sock_diag(paths, tasks)
            except (Denied, Unsupported) as error:
                if self._source == "sock_diag":
                    raise
                if not self._denied_until_s:
                    _log.debug("sock_diag is refused (%s): reading /proc text instead", error)
                self._denied_until_s = self._clock.monotonic_s() + _DENIED_RETRY_S
        return self._read_text(tasks)

    def _is_live(self) -> bool:
        """Of a recorded tree only text can be read, even where a living namespace has the same number."""
        if self._live is None:
            self._live = self._root.is_live()
        return self._live

    def _read_sock_diag(self, paths: Sequence[str], tasks: Sequence[Task]) -> Reading:
        self._mark_dump(True)
        try:
            diag, own = self._open_diag(paths, tasks)
            try:
                tcp, udp = sock_diag.dump_tcp(diag, traffic=self._traffic), sock_diag.dump_udp(diag)
                rows: dict[int, list[SocketRow]] = {Proto.TCP: tcp.rows, Proto.UDP: udp.rows}
                devices = _device_names(diag, rows.values())
                cookie = sock_diag.netns_cookie(diag)
            finally:
                diag.close()
        finally:
            self._mark_dump(False)
        interrupted = int(tcp.interrupted) + int(udp.interrupted)
        return Reading("sock_diag", cookie, rows, devices, interrupted, 0, tcp.traffic, own)

    def _open_diag(
        self, paths: Sequence[str], tasks: Sequence[Task]
    ) -> tuple[socket.socket, frozenset[bytes] | None]:
        """A sock_diag socket of the namespace, which needs no entering where it is our own, and its addresses where it
        is time to read them again."""
        if self.netns_inode == home_inode():
            own = self._read_addresses(None)
            return sock_diag.open_diag(), own
        netns_fd = self._open_netns(paths, tasks)
        try:
            own = self._read_addresses(netns_fd)
            return sock_diag.open_diag(netns_fd), own
        finally:
            os.close(netns_fd)

    def _read_addresses(self, netns_fd: int | None) -> frozenset[bytes] | None:
        now_s = self._clock.monotonic_s()
        if now_s < self._addresses_due_s:
            return None
        self._addresses_due_s = now_s + _ADDRESSES_EVERY_S
        return read_addresses(netns_fd)

    def _open_netns(self, paths: Sequence[str], tasks: Sequence[Task]) -> int:
        # Those that need no task first: a pid may be recycled.
        ways_in = [*paths, *(netns_path(self._root, task) for task in islice(tasks, _TRIES))]
        refusal: Denied | None = None
        for path in ways_in:
            try:
                return open_netns(path, self.netns_inode)
            except Vanished:
                continue  # this way in is gone; the last one decides
            except Denied as error:
                refusal = error
        raise refusal or Vanished(f"namespace {self.netns_inode} has no way in any more")

    def _read_text(self, tasks: Sequence[Task]) -> Reading:
        malformed: list[Malformed] = []
        refusal: Denied | None = None
        for task in islice(tasks, _TRIES):
            try:
                rows: dict[int, list[SocketRow]] = {Proto.TCP: [], Proto.UDP: []}
                for proto, family, name in _TEXT_TABLES:
                    rows[proto] += read_net_table(self._root, task, name, family, malformed.append)
                if read_netns_inode(self._root, task) != self.netns_inode:
                    continue  # its pid was recycled: these are the tables of another namespace
                return Reading("proc", None, rows, {}, 0, len(malformed))
            except Vanished:
                malformed.clear()  # another member shows the same tables
            except Denied as error:
                malformed.clear()
                refusal = error
        raise refusal or Vanished(f"namespace {self.netns_inode} has no member whose tables can be read")


def _device_names(diag: socket.socket, tables: Iterable[Iterable[SocketRow]]) -> dict[int, str]:
    """Names of the devices that sockets are bound to, by ifindex; one that is gone has none."""
    indexes = {row[6] for rows in tables for row in rows}
    indexes.discard(0)
    names = {ifindex: sock_diag.interface_name(diag, ifindex) for ifindex in indexes}
    return {ifindex: name for ifindex, name in names.items() if name is not None}
