"""What this host allows, by trying it: one Feature per thing, for `sockscope probe`.

Versions are never compared: distributions backport, and rights decide as often as the kernel does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pipeline.ebpf import probe_ebpf
from pipeline.errors import Denied, SockscopeError, Unsupported, Vanished
from pipeline.kernel.enter import inside, open_netns
from pipeline.kernel.libc import effective_capabilities
from pipeline.kernel.support import Feature, has_capability, probe_btf, probe_shm
from pipeline.model.process import Task
from pipeline.netlink.conntrack import count_entries, open_conntrack
from pipeline.netlink.conntrack_events import FlowEvents
from pipeline.netlink.sock_diag import dump_tcp, dump_udp, netns_cookie, open_diag
from pipeline.procfs.conntrack import has_conntrack, sends_events
from pipeline.procfs.fd import FdDir, fd_count
from pipeline.procfs.ns import netns_path, read_netns_inode
from pipeline.procfs.processes import list_pids
from pipeline.procfs.root import ProcRoot

_DENIED_PROCESSES = "what such processes hold is shown without them; `sockscope status` counts them"


@dataclass(slots=True)
class _Trial:
    """How often something worked and how often it was refused; `foreign`: tried on another user's process."""

    worked: int = 0
    refused: int = 0
    foreign: int = 0

    def feature(self, name: str, what: str, capability: str, granted: bool, instead: str) -> Feature:
        """The verdict. A refusal in spite of the capability is somebody else's rule, and not a missing right."""
        tried = f"{self.worked} of {self.worked + self.refused} {what}"
        if self.refused and granted:
            why = "the others refuse in spite of the capability (outer user namespace, security module)"
            return Feature(name, "yes" if self.worked else "no", f"{tried}; {why}", instead)
        if self.refused:
            return Feature(name, "no", f"{tried}; {capability} is missing", instead)
        if granted or self.foreign:
            return Feature(name, "yes", tried, "")
        return Feature(name, "unknown", f"{tried}, none of another user; {capability} is missing", instead)


@dataclass(slots=True)
class _Survey:
    """What one round over all other processes found."""

    enter: _Trial = field(default_factory=_Trial)
    list_fds: _Trial = field(default_factory=_Trial)
    read_links: _Trial = field(default_factory=_Trial)


def probe_host(root: ProcRoot) -> list[Feature]:
    """The features in a fixed order. Enters every namespace found for a moment; changes nothing.

    What concerns ourselves is read from our own procfs: `root` may be another pid namespace's.
    Raises: Vanished, Denied where `root` cannot be listed.
    """
    own_root = root if root.is_ours() else ProcRoot()
    capabilities = effective_capabilities()
    survey = _survey(root)
    ptrace = has_capability(capabilities, "CAP_SYS_PTRACE")
    return [
        *_probe_sock_diag(),
        survey.enter.feature(
            "enter_namespaces",
            "namespaces entered",
            "CAP_SYS_ADMIN",
            has_capability(capabilities, "CAP_SYS_ADMIN"),
            "their tables are read as text, without cookies",
        ),
        survey.list_fds.feature(
            "list_descriptors",
            "processes listed",
            "CAP_DAC_READ_SEARCH",
            has_capability(capabilities, "CAP_DAC_READ_SEARCH"),
            _DENIED_PROCESSES,
        ),
        survey.read_links.feature(
            "read_descriptors", "processes read", "CAP_SYS_PTRACE", ptrace, _DENIED_PROCESSES
        ),
        _probe_fd_count(own_root),
        probe_btf(),
        *probe_ebpf(),
        *_probe_conntrack(own_root),
        probe_shm(),
    ]


def _probe_sock_diag() -> list[Feature]:
    """sock_diag for TCP and UDP, and the namespace cookie, on one socket in our own namespace."""
    text = "tables are read as text, without cookies"
    epoch = "a namespace's inode and when it was first seen stand for it"
    try:
        sock = open_diag(None)
    except (Denied, Unsupported) as error:
        return [
            Feature("sock_diag", "no", str(error), text),
            Feature("netns_cookie", "unknown", str(error), epoch),
        ]
    with sock:
        cookie = netns_cookie(sock)
        cookie_feature = (
            Feature("netns_cookie", "no", "SO_NETNS_COOKIE is unknown here", epoch)
            if cookie is None
            else Feature("netns_cookie", "yes", f"ours is {cookie}", "")
        )
        try:
            tcp, udp = dump_tcp(sock), dump_udp(sock)
        except SockscopeError as error:
            return [Feature("sock_diag", "no", str(error), text), cookie_feature]
        detail = f"{len(tcp.rows)} TCP and {len(udp.rows)} UDP sockets in our own namespace"
        return [Feature("sock_diag", "yes", detail, ""), cookie_feature]


def _probe_conntrack(own_root: ProcRoot) -> list[Feature]:
    """Whether translated flows can be read, and heard of, in our own namespace."""
    unresolved = "connections through NAT are not joined with their other end"
    asked = "namespaces that translate are asked every second"
    if not has_conntrack(own_root):
        # Asked, the kernel would load it.
        return [
            Feature("conntrack", "no", "nf_conntrack is not loaded: nothing is translated", unresolved),
            Feature("conntrack_events", "unknown", "nf_conntrack is not loaded", asked),
        ]
    try:
        with open_conntrack() as sock:
            flows = Feature("conntrack", "yes", f"{count_entries(sock)} entries in our own namespace", "")
    except SockscopeError as error:
        why = f"{error}; {error.capability} is missing" if isinstance(error, Denied) else str(error)
        return [
            Feature("conntrack", "no", why, unresolved),
            Feature("conntrack_events", "unknown", why, asked),
        ]
    try:
        FlowEvents().close()
    except SockscopeError as error:
        return [flows, Feature("conntrack_events", "no", str(error), asked)]
    if not sends_events(own_root):
        return [flows, Feature("conntrack_events", "no", "nf_conntrack_events is 0", asked)]
    return [
        flows,
        Feature("conntrack_events", "yes", "of our own namespace and those with a device to it", ""),
    ]


def _probe_fd_count(root: ProcRoot) -> Feature:
    """Whether st_size of an fd folder is the number of descriptors: we surely have some."""
    try:
        count = fd_count(root, Task(os.getpid(), os.getpid()))
    except Vanished as error:
        return Feature("descriptor_count", "unknown", str(error), "folders are listed to see a change")
    if count > 0:
        return Feature("descriptor_count", "yes", "st_size of the descriptor folder", "")
    return Feature(
        "descriptor_count",
        "no",
        "st_size of the descriptor folder is 0",
        "folders are listed to see a change",
    )


def _survey(root: ProcRoot) -> _Survey:
    """Tries every process but our own, and each of their namespaces once."""
    survey = _Survey()
    seen: set[int] = set()
    for pid in list_pids(root):
        task = Task(pid, pid)
        if pid == os.getpid():
            continue
        try:
            foreign = int(root.owner(str(pid)) != os.geteuid())
        except (Vanished, Denied):
            continue  # ended since, or not even its folder is shown: nothing to try
        _try_descriptors(root, task, foreign, survey)
        _try_namespace(root, task, foreign, survey.enter, seen)
    return survey


def _try_descriptors(root: ProcRoot, task: Task, foreign: int, survey: _Survey) -> None:
    """Lists the descriptors of a process, then reads the first of them."""
    try:
        with FdDir(root, task) as fd_dir:
            names = fd_dir.names()
            _count(survey.list_fds, True, foreign)
            try:
                if fd_dir.socket_inodes(names[:1]):
                    _count(survey.read_links, True, foreign)
            except Denied:
                _count(survey.read_links, False, foreign)
    except Vanished:
        return
    except Denied:
        _count(survey.list_fds, False, foreign)


def _try_namespace(root: ProcRoot, task: Task, foreign: int, trial: _Trial, seen: set[int]) -> None:
    """Enters the namespace of a process unless it was seen before."""
    try:
        inode = read_netns_inode(root, task)
        if inode in seen:
            return
        seen.add(inode)
        netns_fd = open_netns(netns_path(root, task), inode)
        try:
            with inside(netns_fd):
                _count(trial, True, foreign)
        finally:
            os.close(netns_fd)
    except Vanished:
        return
    except (Denied, Unsupported):
        _count(trial, False, foreign)


def _count(trial: _Trial, worked: bool, foreign: int) -> None:
    trial.worked += worked
    trial.refused += not worked
    trial.foreign += foreign
