"""Every held TCP and UDP socket of the host in one read, whatever its namespace: BPF_TRACE_ITER over task_file."""

from __future__ import annotations

import os
from collections.abc import Set

from pipeline.ebpf.decode import decode_held, decode_inodes
from pipeline.ebpf.object import read_object
from pipeline.ebpf.skeleton import Skeleton, load
from pipeline.errors import Unsupported
from pipeline.kernel.bpf import create_iterator, link_iterator
from pipeline.kernel.support import BTF_PATH
from pipeline.model.held_socket import HeldSocket

# The kernel fills 8 pages per read of an iterator, and never splits a record where there is room for them.
_READ_BYTES = 65536


class SocketIterator:
    """The loaded program and its link. Reads may follow one another; two at a time are two passes.

    It shows processes of the reader's pid namespace, whatever their network namespace, user or container. It does
    not show sockets that no descriptor stands for: not accepted yet, orphaned, TIME_WAIT, in flight over a unix
    socket, held by io_uring or the kernel alone; nor those that multipath TCP makes of one.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._program_fd = skeleton.programs["held_sockets"]
        self._link_fd = link_iterator(self._program_fd)
        skeleton.links.append(self._link_fd)

    @classmethod
    def open(cls, btf_path: str = BTF_PATH) -> SocketIterator:
        """Loads the program. Raises: Unsupported (no BTF, too old a kernel), Denied (CAP_BPF and CAP_PERFMON)."""
        skeleton = load(read_object("sockets"), btf_path)
        try:
            return cls(skeleton)
        except BaseException:
            skeleton.close()
            raise

    def read_all(self) -> list[HeldSocket]:
        """One pass over all processes, by pid, then fd. Processes change meanwhile: each is read at its own moment."""
        return decode_held(_read_pass(self._link_fd))

    def read_all_if_held(self, inodes: Set[int]) -> list[HeldSocket] | None:
        """One pass, if it shows that any of these sockets is held; for half its price None if not."""
        records = _read_pass(self._link_fd)
        return None if inodes.isdisjoint(decode_inodes(records)) else decode_held(records)

    def read_process(self, pid: int) -> list[HeldSocket]:
        """What one process of our pid namespace holds, by fd; nothing where it ended. Before Linux 6.1 this takes
        a pass over all of them."""
        try:
            link_fd = link_iterator(self._program_fd, pid)
        except Unsupported:
            return [held for held in self.read_all() if held[0] == pid]
        try:
            return decode_held(_read_pass(link_fd))
        finally:
            os.close(link_fd)

    def close(self) -> None:
        """Unloads the program. Twice is harmless."""
        self._skeleton.close()

    def __enter__(self) -> SocketIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_pass(link_fd: int) -> bytes:
    """The records of one pass."""
    chunks: list[bytes] = []
    iterator_fd = create_iterator(link_fd)
    try:
        while True:
            try:
                chunk = os.read(iterator_fd, _READ_BYTES)
            except BlockingIOError:
                # EAGAIN: it visited a million descriptors without one socket, and goes on where it was.
                # Source: kernel/bpf/bpf_iter.c, MAX_ITER_OBJECTS.
                continue
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    finally:
        os.close(iterator_fd)
