"""sys/net/netfilter: whether connections are tracked on this host, and whether a namespace tells of it by events."""

from __future__ import annotations

from pipeline.errors import Denied, Vanished
from pipeline.procfs.root import ProcRoot

_COUNT = "sys/net/netfilter/nf_conntrack_count"
_EVENTS = "sys/net/netfilter/nf_conntrack_events"


def has_conntrack(root: ProcRoot) -> bool:
    """Whether nf_conntrack is loaded, or built in. Without it nothing is translated, and asking ctnetlink would have
    the kernel load it. `root`: our own procfs."""
    try:
        root.size(_COUNT)
    except (Vanished, Denied):
        return False
    return True


def sends_events(root: ProcRoot) -> bool:
    """Whether nf_conntrack_events of the namespace that the calling thread is in is anything but 0.

    `root`: our own procfs. True where it cannot be read: a dump that finds what no event told shows it as well.
    Source: Documentation/networking/nf_conntrack-sysctl.rst: 0 none, 1 all, 2 while somebody listens.
    """
    try:
        return root.read(_EVENTS).strip() != b"0"
    except (Vanished, Denied):
        return True
