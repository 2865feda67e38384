"""The built eBPF objects, as scripts/build-ebpf writes them: what to run and what comes out of it.

One file is lines of text, each ended by a newline, and behind them bytes:

    sockscope-ebpf 1
    toolchain TEXT          what built it
    map NAME                one each, in the order of the loader's context
    iterator NAME           the same for programs: `iterator` and `sock_release` are linked, `tracepoint` is opened
    tracepoint NAME
    sock_release NAME
    data BYTES
    instructions BYTES
                            (an empty line)
    BYTES of data, then BYTES of instructions

The instructions are a program that, run once with the data in an array map, creates the maps and loads the programs,
fitted to the running kernel by its BTF: libbpf's light skeleton. Little-endian, the same for every architecture.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import Malformed

_MAGIC = "sockscope-ebpf 1"
SUFFIX = ".lskel"


class EbpfObject(NamedTuple):
    """`programs`: (name, kind), kind `iterator`, `tracepoint` or `sock_release`; in order, as `maps` are."""

    toolchain: str
    maps: list[str]
    programs: list[tuple[str, str]]
    data: bytes
    instructions: bytes


@functools.cache
def read_object(name: str) -> EbpfObject:
    """The object `name` that came with this package, read once: a process may give up the right to read it later.

    Raises: Malformed.
    """
    return decode_object((Path(__file__).parent / f"{name}{SUFFIX}").read_bytes())


def decode_object(content: bytes) -> EbpfObject:
    """A whole file. Raises: Malformed. Pure."""
    head, separator, blob = content.partition(b"\n\n")
    magic, *lines = head.decode("ascii", "replace").split("\n")
    if magic != _MAGIC:
        raise Malformed(f"eBPF object: begins with {magic[:20]!r}, not with {_MAGIC!r}")
    toolchain = ""
    maps: list[str] = []
    programs: list[tuple[str, str]] = []
    sizes: dict[str, int] = {"data": 0, "instructions": 0}
    for line in lines:
        word, _, value = line.partition(" ")
        if word == "toolchain":
            toolchain = value
        elif word == "map":
            maps.append(value)
        elif word in ("iterator", "tracepoint", "sock_release"):
            programs.append((value, word))
        elif word in sizes and value.isascii() and value.isdigit():
            sizes[word] = int(value)
        else:
            raise Malformed(f"eBPF object: line {line[:40]!r}")
    if not separator or len(blob) != sizes["data"] + sizes["instructions"]:
        raise Malformed(f"eBPF object: {len(blob)} bytes behind the text, where {sizes} were announced")
    return EbpfObject(toolchain, maps, programs, blob[: sizes["data"]], blob[sizes["data"] :])
