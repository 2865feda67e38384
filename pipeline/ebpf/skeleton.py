"""Loads one of our eBPF objects: runs its loader program and takes the descriptors that it leaves."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.ebpf.object import EbpfObject
from pipeline.errors import Unsupported
from pipeline.kernel.bpf import create_array, load_syscall_program, raise_sorted, run_program, write_first
from pipeline.kernel.support import probe_btf

# The loader's context: struct bpf_loader_ctx (its own size, flags, log), struct bpf_map_desc for each map, struct
# bpf_prog_desc for each program. Source: tools/lib/bpf/skel_internal.h.
_HEAD = struct.Struct("=IIIIQ")
_MAP = struct.Struct("=iIQ")
_PROGRAM = struct.Struct("=i")


@dataclass(slots=True)
class Skeleton:
    """Descriptors by name. Whoever loads it closes it; what is attached goes with `links`."""

    maps: dict[str, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    links: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Detaches and unloads everything. Twice is harmless."""
        for fd in [*self.links, *self.programs.values(), *self.maps.values()]:
            os.close(fd)
        self.links.clear()
        self.programs.clear()
        self.maps.clear()


def load(built: EbpfObject, btf_path: str, entries: Mapping[str, int] | None = None) -> Skeleton:
    """Creates the maps and loads the programs of `built`; attaches nothing. `entries`: max_entries by map name.

    Raises: Unsupported (no BTF at `btf_path`, too old a kernel), Denied (CAP_BPF and CAP_PERFMON).
    """
    # The kernel answers a loader without BTF with the same EINVAL as much else: look first.
    btf = probe_btf(btf_path)
    if btf.answer != "yes":
        raise Unsupported(
            f"eBPF: the kernel's type information is missing: {btf.detail}",
            "a kernel built with CONFIG_DEBUG_INFO_BTF",
        )
    context = _context(built, entries or {})
    data_fd = create_array(len(built.data))
    try:
        write_first(data_fd, built.data)
        loader_fd = load_syscall_program(built.instructions, data_fd)
        try:
            answer = run_program(loader_fd, context)
        finally:
            os.close(loader_fd)
    finally:
        os.close(data_fd)
    # After a failure the loader has closed what it had opened.
    if answer < 0:
        raise_sorted("loading the programs", -answer)
    return _skeleton(built, context)


def _context(built: EbpfObject, entries: Mapping[str, int]) -> bytearray:
    size = _HEAD.size + _MAP.size * len(built.maps) + _PROGRAM.size * len(built.programs)
    context = bytearray(_HEAD.pack(size, 0, 0, 0, 0))
    for name in built.maps:
        context += _MAP.pack(0, entries.get(name, 0), 0)
    return context + bytes(_PROGRAM.size * len(built.programs))


def _skeleton(built: EbpfObject, context: bytearray) -> Skeleton:
    skeleton = Skeleton()
    offset = _HEAD.size
    for name in built.maps:
        skeleton.maps[name] = _MAP.unpack_from(context, offset)[0]
        offset += _MAP.size
    for name, _ in built.programs:
        skeleton.programs[name] = _PROGRAM.unpack_from(context, offset)[0]
        offset += _PROGRAM.size
    return skeleton
