"""One namespace as a pass of the eBPF iterator shows it: who holds which of its sockets, without reading a process.

Sockets that nobody holds (TIME_WAIT, not accepted yet, the kernel's own) are in no pass. The kernel counts what is in
a namespace's tables: only where there is more than was shown are they read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from pipeline.clock import Clock
from pipeline.errors import Denied, Malformed, Vanished
from pipeline.model.connection import Family, Proto, State
from pipeline.model.container import Container
from pipeline.model.held_socket import HeldSocket
from pipeline.model.netns import Netns
from pipeline.model.process import Process, Task
from pipeline.model.snapshot import Health, Snapshot
from pipeline.model.socket_row import SocketRow, socket_key
from pipeline.model.traffic import NO_FIGURES, Figures, Traffic
from pipeline.procfs.cgroup import read_container
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.sockstat import read_sockstat, read_sockstat6
from pipeline.walk.holdings import TaskFiles
from pipeline.walk.namespace import ROLE
from pipeline.walk.once import ReadOnce, connections_of
from pipeline.walk.reading import TableReader

_TRIES = 4


class HeldLook:
    """The same face as once.OneLook. Nobody is `denied`: the kernel tells of every process. `traffic`: whether the
    tables are asked in any case, for what the connections have carried."""

    denied = 0

    def __init__(
        self, netns: Netns, root: ProcRoot, source: str, clock: Clock, *, traffic: bool = False
    ) -> None:
        self.netns = netns
        self.health = Health()
        self.cookie: int | None = None
        self.source = "ebpf"
        self.rows: dict[int, Collection[SocketRow]] = {}
        self.devices: Mapping[int, str] = {}
        self.traffic: Mapping[int, Figures] = NO_FIGURES
        self.files: list[TaskFiles] = []
        self.containers: dict[str, Container] = {}
        self.taken_at_s = clock.monotonic_s()
        self.walked_at_s: float | None = None
        self._held: dict[int, dict[int, SocketRow]] = {}
        self._shows_all = not traffic
        self._root = root
        self._reader = TableReader(root, netns.inode, source, clock, traffic=traffic)
        self._clock = clock

    def take_sockets(self, held: Iterable[HeldSocket], began_s: float) -> None:
        """The descriptors on sockets of this namespace, of a pass that began at `began_s`."""
        tables: dict[int, dict[int, SocketRow]] = {Proto.TCP: {}, Proto.UDP: {}}
        for one in held:
            row = one[7]
            tables[one[8]][row[7]] = row
            if row[6] or (row[1] == State.LISTEN and one[12]):
                self._shows_all = (
                    False  # bound to a device, whose name only the namespace knows; or some wait
                )
            self.cookie = one[10]
        self._held = tables
        self.rows = {proto: rows.values() for proto, rows in tables.items()}
        self.taken_at_s = self.walked_at_s = began_s

    def take_holders(self, processes: Iterable[tuple[Process, dict[int, int]]], began_s: float) -> None:
        """Processes to be shown with this namespace, and their descriptors on sockets, from a pass."""
        self.files = [TaskFiles(process, fds, len(fds)) for process, fds in processes]
        self.walked_at_s = began_s

    def shows_all(self) -> bool:
        """Whether the pass showed as much as the kernel counts: then the tables would show no more. Handshakes under
        way are in no count of the kernel's but that of their listener."""
        if not self._shows_all:
            return False
        shown = Counter((proto, row[0]) for proto, rows in self.rows.items() for row in rows)
        tcp, tcp6, udp, udp6 = (
            shown[proto, family] for proto in (Proto.TCP, Proto.UDP) for family in (Family.INET, Family.INET6)
        )
        for task in sorted(self.netns.tasks)[:_TRIES]:
            try:
                four, six = read_sockstat(self._root, task), read_sockstat6(self._root, task)
            except (Vanished, Denied, Malformed):
                continue  # another member shows the same
            counted = (four.tcp_inuse, six.tcp_inuse, four.udp_inuse, six.udp_inuse, four.tcp_tw)
            return counted == (tcp, tcp6, udp, udp6, 0)
        return False

    def dump(self) -> None:
        """Reads the tables, which know of every socket. Raises: Vanished, Denied, Unsupported; then those remain
        that somebody holds."""
        reading = self._reader.read(self.netns.paths, sorted(self.netns.tasks))
        self.taken_at_s = self._clock.monotonic_s()
        self.devices, self.traffic = reading.devices, reading.traffic
        self.cookie = reading.cookie or self.cookie
        self.health.looks += 1
        self.health.dumps_interrupted += reading.interrupted
        self.health.rows_malformed += reading.malformed
        if reading.source == "sock_diag":
            self.rows = {
                proto: {row[7] or socket_key(row, proto): row for row in rows}.values()
                for proto, rows in reading.rows.items()
            }
            return
        # Text has no cookies: what somebody holds is better known from the pass.
        for proto, rows in reading.rows.items():
            known = self._held.get(proto, {})
            inodes = {row[9] for row in known.values()}
            others = {socket_key(row, proto): row for row in rows if row[9] not in inodes}
            self.rows[proto] = [*known.values(), *others.values()]

    def inodes(self) -> Set[int]:
        """Of all sockets here that have one."""
        return {row[9] for rows in self.rows.values() for row in rows if row[9]}

    def snapshot(self) -> Snapshot:
        """All of it as a base."""
        holdings = ReadOnce()
        for files in self.files:
            holdings.put(Task(files.process.pid, files.process.pid), files.process, files.fds, files.listed)
        held = holdings.everything()
        return Snapshot(
            ROLE, self.netns.inode, self.cookie, 0, 1, True, self.taken_at_s, self.walked_at_s, self.source,
            self.denied, self.health, connections_of(self.rows, self.devices), [], held.processes, [],
            held.holdings, [], [self.containers[name] for name in sorted(self.containers)],
            traffic=[Traffic(cookie, *figures) for cookie, figures in self.traffic.items()],
        )  # fmt: skip


def processes_of(
    held: Sequence[HeldSocket], root: ProcRoot, containers: dict[str, Container]
) -> dict[int, tuple[Process, dict[int, int]]]:
    """By pid: each process of a pass, and its descriptors (fd -> socket inode). Adds to `containers` those that the
    processes are in."""
    found: dict[int, tuple[Process, dict[int, int]]] = {}
    pid, fds = 0, {}
    for one in held:
        if one[0] != pid:  # a process's descriptors stand together
            pid = one[0]
            if pid not in found:
                found[pid] = (_process(one, root, containers), {})
            fds = found[pid][1]
        fds[one[2]] = one[7][9]
    return found


def _process(one: HeldSocket, root: ProcRoot, containers: dict[str, Container]) -> Process:
    pid, start_ticks, _, comm, netns, _, uid = one[:7]
    name = comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    try:
        container = read_container(root, pid)
    except (Denied, Malformed):
        container = None
    if container is not None:
        containers[container.name] = container
    return Process(pid, start_ticks, name, uid, netns, container.name if container else None)
