"""Which network namespaces there are, and which tasks live in each: from /proc, from bind mounts, and from what
processes were seen to hold.

Only the supervisor does this: if every worker listed /proc, the cost would be quadratic.
"""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pipeline.errors import Denied, Malformed, SockscopeError, Unsupported, Vanished
from pipeline.kernel.enter import netns_inode_at, open_netns
from pipeline.kernel.libc import share_files
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.ns import INITIAL_PID_NAMESPACE, read_netns_inode, read_pid_namespace
from pipeline.procfs.processes import count_threads, list_pids, list_tids
from pipeline.procfs.root import ProcRoot

_log = logging.getLogger(__name__)

# A task's namespace is read in every scan while it is this young: a new process often changes its namespace
# (unshare or setns, then exec). Later it takes its turn.
_YOUNG_S = 3.0
# A settled process's namespace is read again in every second scan, after two minutes in every fifth; those of its
# threads, where they are many, in every tenth: with one scan a second, every 2 s, 5 s and 10 s.
_PROCESS_TURNS = 2
_OLD_S = 120.0
_OLD_PROCESS_TURNS = 5
# In how many scans each mount is looked at once, where its folder is as before.
_MOUNT_TURNS = 4
_THREAD_TURNS = 10
_MANY_THREADS = 50


class Membership(NamedTuple):
    """How the tasks of one namespace differ from the scan before."""

    added: list[Task]
    removed: list[Task]


class Changes(NamedTuple):
    """Differences between two scans. `members` has an entry for each namespace whose tasks changed, new ones
    included; `remounted` are those whose names or other ways in did."""

    appeared: list[NetnsInode]
    gone: list[NetnsInode]
    members: dict[NetnsInode, Membership]
    remounted: list[NetnsInode]


@dataclass(slots=True)
class _Seen:
    """What is known of one process. `tid`: its leader's, or that of the thread which stands for it where the leader has
    ended. `threads`: those in another namespace, or with another table of descriptors, than that one."""

    netns: NetnsInode
    first_seen_s: float
    tid: int
    thread_count: int = 1
    threads_changed_s: float = 0.0
    threads: dict[int, NetnsInode] = field(default_factory=dict)


class _Made(NamedTuple):
    mounts: list[tuple[str, str]]
    netns: Netns
    is_wanted: bool


class Discovery:
    """Finds namespaces, scan by scan. `denied` counts the processes whose namespace may not be read.

    `include`, `exclude`: shell patterns on a namespace's name or inode; empty `include` means all.
    """

    def __init__(
        self,
        root: ProcRoot,
        mount_dirs: Sequence[str],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self._root = root
        # What is mounted here has nothing to do with a recorded tree.
        self._mount_dirs = tuple(mount_dirs) if root.is_live() else ()
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._seen: dict[int, _Seen] = {}
        self._denied: set[int] = set()
        # Path -> the file that stands there (device, inode), and the namespace it is, if it is one.
        self._mounted: dict[str, tuple[tuple[int, int], int | None]] = {}
        self._turn = 0
        # What `_list_mounts` found last, when the folders changed, and until which turn it looks closely after that.
        self._mounts: dict[NetnsInode, list[tuple[str, str]]] = {}
        self._mount_stamps: list[int] = []
        self._mounts_young_until = 0
        # By inode: what a namespace was made of, itself, and whether it is wanted. Most are the same each time.
        self._made: dict[NetnsInode, _Made] = {}
        # Those of them that are wanted; the same object while no task and no mount changed.
        self._wanted: dict[NetnsInode, Netns] = {}
        self._tasks_changed = True
        # Namespace -> what its processes hold of others: inode -> paths of descriptors. As reported.
        self._held: dict[NetnsInode, dict[NetnsInode, tuple[str, ...]]] = {}
        # Whether pids are ours, as system calls take them; None: not asked yet.
        self._can_compare: bool | None = None
        # Namespaces found that are not looked at, as of the last scan; one more where processes are hidden from us, as
        # they may live anywhere.
        self.left_out = 0

    @property
    def denied(self) -> int:
        return len(self._denied)

    def note_held(
        self, reporter: NetnsInode, held: Iterable[tuple[int, Sequence[str]]], more: bool = False
    ) -> None:
        """What the processes of `reporter` hold of other namespaces: (inode, paths of descriptors). Replaces what was
        noted of them before, unless it is `more` of the same."""
        known = self._held.setdefault(reporter, {})
        if not more:
            known.clear()
        known.update((NetnsInode(inode), tuple(paths)) for inode, paths in held)

    def scan(self, now_s: float) -> dict[NetnsInode, Netns]:
        """All namespaces now, by inode. Never raises for what vanishes or is denied meanwhile."""
        self._turn += 1
        pids = set(list_pids(self._root))
        for pid in self._seen.keys() - pids:
            self._forget(pid)
        self._denied &= pids
        for pid in sorted(pids):
            if self._is_due(pid, now_s):
                self._read_process(pid, now_s)
        mounts_before = self._mounts
        mounts = self._list_mounts()
        if self._tasks_changed or mounts != mounts_before:
            self._tasks_changed = False
            self._group(mounts)
        living, wanted = self._made.keys(), self._wanted
        held = self._list_held(living) if self._held else {}
        for inode, paths in held.items():
            only_held = Netns(inode, (), (), frozenset(), paths)
            if self.is_wanted(only_held):
                wanted = {**wanted, inode: only_held}
        self.left_out = len(living) + len(held) - len(wanted) + (not self._sees_all(pids))
        return wanted

    def _group(self, mounts: Mapping[NetnsInode, list[tuple[str, str]]]) -> None:
        """Makes namespaces of tasks and mounts."""
        tasks: dict[NetnsInode, set[Task]] = {}
        for pid, seen in self._seen.items():
            tasks.setdefault(seen.netns, set()).add(Task(pid, seen.tid))
            for tid, netns in seen.threads.items():
                tasks.setdefault(netns, set()).add(Task(pid, tid))
        self._made = {
            inode: self._make(inode, mounts.get(inode, []), tasks.get(inode, set()))
            for inode in tasks.keys() | mounts.keys()
        }
        self._wanted = {inode: made.netns for inode, made in self._made.items() if made.is_wanted}

    def _forget(self, pid: int) -> None:
        """It is nobody's member any more."""
        if self._seen.pop(pid, None) is not None:
            self._tasks_changed = True

    def _make(self, inode: NetnsInode, mounts: list[tuple[str, str]], tasks: set[Task]) -> _Made:
        before = self._made.get(inode)
        if before is not None and before.mounts == mounts and before.netns.tasks == tasks:
            return before
        netns = _netns(inode, mounts, tasks)
        return _Made(mounts, netns, self.is_wanted(netns))

    def _sees_all(self, pids: Set[int]) -> bool:
        """Whether no process is hidden: by hidepid, which shows only one's own, or outside a pid namespace, from where
        processes may live in our network namespaces all the same."""
        if 1 not in pids:
            return False
        try:
            return read_pid_namespace(self._root, 1) == INITIAL_PID_NAMESPACE
        except (Vanished, Denied, Malformed):
            return True  # a kernel without pid namespaces; or pid 1 is counted as denied

    def _list_held(self, living: Set[NetnsInode]) -> dict[NetnsInode, tuple[str, ...]]:
        """Descriptors of the namespaces that nothing else keeps alive, by inode: those reported that are still so."""
        found: dict[NetnsInode, tuple[str, ...]] = {}
        for held in self._held.values():
            for inode, paths in held.items():
                if inode not in living and (paths := tuple(filter(partial(_leads_to, inode), paths))):
                    found[inode] = (*found.get(inode, ()), *paths)
        # One of them may be who reported the next.
        self._held = {netns: held for netns, held in self._held.items() if netns in living or netns in found}
        return found

    def _is_due(self, pid: int, now_s: float) -> bool:
        seen = self._seen.get(pid)
        if seen is None or now_s - seen.first_seen_s < _YOUNG_S:
            return True
        turns = _PROCESS_TURNS if now_s - seen.first_seen_s < _OLD_S else _OLD_PROCESS_TURNS
        return (pid + self._turn) % turns == 0

    def _read_process(self, pid: int, now_s: float) -> None:
        try:
            tid, netns = self._stand_in(pid)
            seen = self._seen.get(pid)
            if seen is None:
                seen = self._seen[pid] = _Seen(netns, now_s, tid, threads_changed_s=now_s)
                self._tasks_changed = True
            elif seen.netns != netns:
                seen.netns, seen.first_seen_s = netns, now_s
                self._tasks_changed = True
            if seen.tid != tid:
                seen.tid = tid
                self._tasks_changed = True
            self._read_threads(pid, seen, now_s)
            self._denied.discard(pid)
        except Vanished:
            # Also a zombie, which has left its namespaces: nobody's member any more.
            self._forget(pid)
        except (Denied, Malformed):
            self._forget(pid)
            self._denied.add(pid)

    def _stand_in(self, pid: int) -> tuple[int, NetnsInode]:
        """(tid, namespace) of the task that stands for a process: its leader, or, where that has ended, its first
        thread that lives: the leader is a zombie then, without namespaces or descriptors. Raises: Vanished, Denied,
        Malformed.
        """
        try:
            return pid, read_netns_inode(self._root, Task(pid, pid))
        except Vanished:
            if count_threads(self._root, pid) == 1:
                raise
        for tid in list_tids(self._root, pid):
            try:
                return tid, read_netns_inode(self._root, Task(pid, tid))
            except Vanished:
                continue
        raise Vanished(f"process {pid} has no thread that lives")

    def _read_threads(self, pid: int, seen: _Seen, now_s: float) -> None:
        """Threads that are tasks of their own. The number of threads comes first, in one call: most processes have
        one."""
        count = count_threads(self._root, pid)
        if count != seen.thread_count:
            seen.thread_count, seen.threads_changed_s = count, now_s
        if count == 1 and not seen.threads:
            return
        young = now_s - seen.threads_changed_s < _YOUNG_S
        in_turn = (pid + self._turn) % _THREAD_TURNS == 0
        if count > _MANY_THREADS and not young and not in_turn:
            return
        threads: dict[int, NetnsInode] = {}
        for tid in list_tids(self._root, pid):
            try:
                netns = read_netns_inode(self._root, Task(pid, tid))
            except Vanished:
                continue  # ended between listing and reading; the next scan sees another count
            if netns != seen.netns or self._has_own_files(tid, seen, young or in_turn):
                threads[tid] = netns
        if seen.threads != threads:
            seen.threads = threads
            self._tasks_changed = True

    def _has_own_files(self, tid: int, seen: _Seen, ask: bool) -> bool:
        """Whether a thread has descriptors of its own; without `ask`, as far as is known."""
        if tid == seen.tid or not ask:
            return tid in seen.threads
        if self._can_compare is None:
            self._can_compare = self._root.is_ours()
        if not self._can_compare:
            return False
        try:
            return not share_files(tid, seen.tid)
        except Unsupported:
            self._can_compare = False
        except (Vanished, Denied):
            pass  # ended meanwhile; or a process that the walk will count as denied
        return False

    def _list_mounts(self) -> dict[NetnsInode, list[tuple[str, str]]]:
        """(name, path) of each namespace bound in one of the mount folders, by inode.

        Making and removing a name changes its folder. What is done to a file that stays is found in one of four turns.
        """
        stamps = [_changed_ns(folder) for folder in self._mount_dirs]
        if stamps != self._mount_stamps:
            self._mount_stamps, self._mounts_young_until = stamps, self._turn + _MOUNT_TURNS
        if self._turn > self._mounts_young_until and self._turn % _MOUNT_TURNS:
            return self._mounts
        found: dict[NetnsInode, list[tuple[str, str]]] = {}
        paths: set[str] = set()
        for folder in self._mount_dirs:
            for name, path in _list_folder(folder):
                inode = self._inode_at(path)
                if inode is not None:
                    found.setdefault(inode, []).append((name, path))
                paths.add(path)
        # Names that are never used twice (one per container) would pile up.
        self._mounted = {path: known for path, known in self._mounted.items() if path in paths}
        self._mounts = found
        return found

    def _inode_at(self, path: str) -> NetnsInode | None:
        """The namespace bound at `path`, opened only when another file stands there than at the last scan."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None  # a link to itself is no namespace, and nothing to stop for
            raise
        file = (found.st_dev, found.st_ino)
        known = self._mounted.get(path)
        if known is None or known[0] != file:
            known = self._mounted[path] = (file, netns_inode_at(path))
        return NetnsInode(known[1]) if known[1] is not None else None

    def is_wanted(self, netns: Netns) -> bool:
        """Whether `include` and `exclude` leave it in."""
        words = (*netns.names, str(netns.inode))
        if any(fnmatch.fnmatchcase(word, pattern) for word in words for pattern in self._exclude):
            return False
        return not self._include or any(
            fnmatch.fnmatchcase(word, pattern) for word in words for pattern in self._include
        )


def diff(before: Mapping[NetnsInode, Netns], after: Mapping[NetnsInode, Netns]) -> Changes:
    """What changed from one scan to the next. Pure."""
    if before is after:
        return Changes([], [], {}, [])
    members: dict[NetnsInode, Membership] = {}
    for inode, netns in after.items():
        old = before[inode].tasks if inode in before else frozenset()
        if old != netns.tasks:
            members[inode] = Membership(sorted(netns.tasks - old), sorted(old - netns.tasks))
    return Changes(
        sorted(after.keys() - before.keys()),
        sorted(before.keys() - after.keys()),
        members,
        sorted(inode for inode in after.keys() & before.keys() if before[inode].paths != after[inode].paths),
    )


def _netns(inode: NetnsInode, mounts: list[tuple[str, str]], tasks: set[Task]) -> Netns:
    mounts = sorted(mounts)
    return Netns(
        inode, tuple(name for name, _ in mounts), tuple(path for _, path in mounts), frozenset(tasks)
    )


def _changed_ns(folder: str) -> int:
    """When an entry of the folder last came or went; 0 where there is no such folder."""
    try:
        return os.stat(folder).st_mtime_ns
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return 0


def _leads_to(inode: NetnsInode, path: str) -> bool:
    """Whether the descriptor at `path` holds that namespace now."""
    try:
        os.close(open_netns(path, inode))
    except SockscopeError:
        return False
    return True


def _list_folder(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # most hosts have only one of the folders, or none
    except PermissionError:
        _log.debug("%s may not be listed: its namespaces have no names", folder)
        return
    for name in names:
        yield name, os.path.join(folder, name)
