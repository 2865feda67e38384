"""Sockets and what happens to them, told by programs inside the kernel; no libbpf, no compiler at run time."""

from pipeline.ebpf.iterator import SocketIterator
from pipeline.ebpf.probe import probe_ebpf
from pipeline.ebpf.ring import EventRing

__all__ = ["EventRing", "SocketIterator", "probe_ebpf"]
