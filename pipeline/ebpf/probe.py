"""What of eBPF works here, by loading and running it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from pipeline.ebpf.iterator import SocketIterator
from pipeline.ebpf.ring import EventRing
from pipeline.errors import Denied, Unsupported
from pipeline.kernel.support import BTF_PATH, Feature, cgroup2_dir

_WALK = "processes are walked, which costs about ten times as much"
_LOOK = "connections are seen by looking at the tables: short ones are missed"


def probe_ebpf(btf_path: str = BTF_PATH) -> list[Feature]:
    """The iterator and the event stream, each really loaded and unloaded again. Changes nothing."""
    return [
        _try("ebpf_iterator", lambda: _iterator(btf_path), _WALK),
        _try("ebpf_events", lambda: _events(btf_path), _LOOK),
    ]


def _iterator(btf_path: str) -> str:
    with SocketIterator.open(btf_path) as iterator:
        iterator.read_process(os.getpid())
        return f"{len(iterator.read_all())} sockets held on this host"


def _events(btf_path: str) -> str:
    with EventRing.open(mmap.PAGESIZE, btf_path, cgroup2_dir()) as ring:
        ring.drain()
        udp = "of UDP sockets too" if ring.tells_udp_ends else "but not of UDP sockets"
        return f"programs attached to the socket tracepoints, and detached again; they tell of ends, {udp}"


def _try(name: str, action: Callable[[], str], instead: str) -> Feature:
    """Yes; no where the kernel cannot; unknown where rights are missing to find out, or resources."""
    try:
        return Feature(name, "yes", action(), "")
    except Unsupported as error:
        return Feature(name, "no", str(error), instead)
    except Denied as error:
        return Feature(name, "no", f"{error}; {error.capability} missing", instead)
    except OSError as error:
        return Feature(name, "unknown", str(error), instead)
