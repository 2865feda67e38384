"""One namespace read once, as fast as it goes: its tables, then every descriptor of its processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pipeline.clock import Clock
from pipeline.model.connection import Connection
from pipeline.model.netns import Netns
from pipeline.model.process import Process, Task
from pipeline.model.snapshot import Health, Snapshot
from pipeline.model.socket_row import SocketRow, socket_key, to_connection
from pipeline.model.traffic import NO_FIGURES, Figures, Traffic
from pipeline.procfs.root import ProcRoot
from pipeline.walk.elsewhere import Elsewhere, ElsewhereSearch
from pipeline.walk.holdings import Holdings, TaskFiles
from pipeline.walk.namespace import ROLE
from pipeline.walk.reading import TableReader
from pipeline.walk.walker import Walker


class ReadOnce(Holdings):
    """Descriptors without the account of what changed: nothing is read a second time."""

    def put(self, task: Task, process: Process, fds: dict[int, int], listed: int) -> None:
        self.files[task] = TaskFiles(process, fds, listed)
        self.holders.update(dict.fromkeys(fds.values(), (task,)))
        self.holders.pop(0, None)

    def drop(self, task: Task) -> None:
        self.files.pop(task, None)


class OneLook:
    """What one reading of a namespace showed. `rows`: by protocol number, each socket once. `traffic`: by cookie, if
    it was to be asked for.

    `walked_at_s` is when the tables were read, since every descriptor was read after it; None where they could not
    be: then no process was, either.
    """

    def __init__(
        self, netns: Netns, root: ProcRoot, source: str, clock: Clock, *, traffic: bool = False
    ) -> None:
        self.netns = netns
        self.health = Health()
        self.cookie: int | None = None
        self.source = "sock_diag"
        self.rows: dict[int, Collection[SocketRow]] = {}
        self.devices: Mapping[int, str] = {}
        self.taken_at_s = clock.monotonic_s()
        self.walked_at_s: float | None = None
        self.traffic: Mapping[int, Figures] = NO_FIGURES
        self._reader = TableReader(root, netns.inode, source, clock, traffic=traffic)
        self._holdings = ReadOnce()
        self._walker = Walker(root, netns.inode, self._holdings, self.health)
        self._elsewhere = ElsewhereSearch(root, self._walker)
        self._clock = clock

    @property
    def files(self) -> Collection[TaskFiles]:
        """Of each task that could be read, its process and descriptors."""
        return self._holdings.files.values()

    @property
    def denied(self) -> int:
        """How many processes may not be read."""
        return len(self._walker.denied)

    def run(self) -> None:
        """Raises: Vanished, Denied, Unsupported: the tables cannot be read."""
        tasks = sorted(self.netns.tasks)
        reading = self._reader.read(self.netns.paths, tasks)
        self.taken_at_s = self._clock.monotonic_s()
        self.source, self.cookie, self.devices = reading.source, reading.cookie, reading.devices
        self.traffic = reading.traffic
        self.health.looks += 1
        self.health.dumps_interrupted += reading.interrupted
        self.health.rows_malformed += reading.malformed
        for proto, rows in reading.rows.items():
            # An interrupted dump may show a socket twice.
            self.rows[proto] = {row[7] or socket_key(row, proto): row for row in rows}.values()
        for task in tasks:
            self._walker.visit(task)
        self.walked_at_s = self.taken_at_s

    def held_elsewhere(self) -> list[Elsewhere]:
        """Other namespaces that the processes of this one hold."""
        return self._elsewhere.find({row[9] for rows in self.rows.values() for row in rows})

    def snapshot(self) -> Snapshot:
        """All of it as a base."""
        held, containers = self._holdings.everything(), self._walker.containers
        return Snapshot(
            ROLE, self.netns.inode, self.cookie, 0, 1, True, self.taken_at_s, self.walked_at_s, self.source,
            self.denied, self.health, connections_of(self.rows, self.devices), [], held.processes, [],
            held.holdings, [], [containers[name] for name in sorted(containers)],
            searched_since_s=self.walked_at_s,
            traffic=[Traffic(cookie, *figures) for cookie, figures in self.traffic.items()],
        )  # fmt: skip


def connections_of(
    tables: Mapping[int, Collection[SocketRow]], devices: Mapping[int, str]
) -> list[Connection]:
    """The rows of `tables`, by protocol number, as they are published."""
    return [
        to_connection(row, proto, socket_key(row, proto), devices.get(row[6]) if row[6] else None)
        for proto, rows in tables.items()
        for row in rows
    ]
