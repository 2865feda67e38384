"""The stream of socket events: the tracepoint programs and their ring buffer, emptied by whoever looks.

Source of the ring's layout: kernel/bpf/ringbuf.c. Its first page holds the consumer's position and is ours to write,
the second the producer's; behind them lie the data, mapped twice in a row so that no record is ever torn.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator

from pipeline.ebpf.decode import EVENT_BYTES, RECORD_BYTES, decode_events
from pipeline.ebpf.object import read_object
from pipeline.ebpf.skeleton import Skeleton, load
from pipeline.errors import Denied, Malformed, Unsupported
from pipeline.kernel.bpf import link_sock_release, open_tracepoint, read_first
from pipeline.kernel.support import BTF_PATH
from pipeline.model.event import SocketEvent

_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not written yet
_HEADERS = struct.Struct(f"=I{RECORD_BYTES - 4}x")
# Events taken out at a time: the room is given back before the next are decoded.
_BATCH_BYTES = 1024 * RECORD_BYTES


class EventRing:
    """Attached programs and their ring. One reader. `tells_udp_ends`: whether UDP sockets have CLOSED events.

    Pids are those of the host: of no use to who lives in a pid namespace of its own.
    """

    def __init__(self, skeleton: Skeleton, ring_bytes: int, cgroup_fd: int | None = None) -> None:
        """Takes `skeleton` over when it succeeds. `cgroup_fd`: for the program that tells of UDP's ends."""
        self.tells_udp_ends = cgroup_fd is not None
        self._skeleton = skeleton
        self._mask = ring_bytes - 1
        page = mmap.PAGESIZE
        ring_fd = skeleton.maps["ring"]
        self._consumer_page = mmap.mmap(ring_fd, page)
        self._producer_pages = mmap.mmap(ring_fd, page + 2 * ring_bytes, prot=mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._producer_pages)[:8].cast("Q")
        self._data = memoryview(self._producer_pages)[page:]
        for name, program_fd in skeleton.programs.items():
            if name == "released" and cgroup_fd is not None:
                skeleton.links.append(link_sock_release(program_fd, cgroup_fd))
            else:
                skeleton.links.append(open_tracepoint(program_fd))

    @classmethod
    def open(cls, ring_bytes: int, btf_path: str = BTF_PATH, cgroup_dir: str | None = None) -> EventRing:
        """Loads and attaches the programs; events are kept from now on, up to `ring_bytes` of them.

        `ring_bytes`: rounded up to a power of two and a page. One event takes RECORD_BYTES of it. `cgroup_dir`: a
        folder of cgroup version 2, whose sockets and those below it have an end told where they are UDP; where
        that may not be (CAP_NET_ADMIN), it goes on without.
        Raises: Unsupported (no BTF, no such tracepoints: before Linux 6.3), Denied (CAP_BPF and CAP_PERFMON).
        """
        size = max(mmap.PAGESIZE, 1 << (ring_bytes - 1).bit_length())
        if cgroup_dir is not None:
            with contextlib.suppress(Denied, Unsupported), _folder(cgroup_dir) as cgroup_fd:
                return cls._open("events_release", size, btf_path, cgroup_fd)
        return cls._open("events", size, btf_path, None)

    @classmethod
    def _open(cls, name: str, size: int, btf_path: str, cgroup_fd: int | None) -> EventRing:
        skeleton = load(read_object(name), btf_path, {"ring": size})
        try:
            return cls(skeleton, size, cgroup_fd)
        except BaseException:
            skeleton.close()
            raise

    def drain(self) -> list[SocketEvent]:
        """All events since the last call, in the order in which the kernel made room for them.

        Those of one socket are in their true order. An event that is being written this very moment, and what
        comes after it, is left for the next call.
        """
        events: list[SocketEvent] = []
        position = self._consumer[0]
        end = self._producer[0]
        while position < end:
            taken = self._take(position, min(end - position, _BATCH_BYTES))
            if not taken:
                break
            position += len(taken)
            self._consumer[0] = position
            events += decode_events(taken)
        return events

    def lost(self) -> int:
        """How many events found the ring full, since it was opened."""
        return int.from_bytes(read_first(self._skeleton.maps["lost"], 8), "little")

    def close(self) -> None:
        """Detaches and unloads the programs. Twice is harmless."""
        for view in (self._consumer, self._producer, self._data):
            view.release()
        self._consumer_page.close()
        self._producer_pages.close()
        self._skeleton.close()

    def __enter__(self) -> EventRing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, position: int, size: int) -> bytes:
        """A copy of the finished records among the `size` bytes from `position` on.

        The headers are read before the records: a record whose header says finished is finished.
        """
        start = position & self._mask
        stop = start + size
        for done, (header,) in enumerate(_HEADERS.iter_unpack(self._data[start:stop])):
            if header == EVENT_BYTES:
                continue
            if not header & _BUSY:
                raise Malformed(f"eBPF ring: a record of {header} bytes, where all are of {EVENT_BYTES}")
            stop = start + done * RECORD_BYTES
            break
        return bytes(self._data[start:stop])


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    """A descriptor of a folder. Raises: Denied, Unsupported (there is none)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise Denied(f"{path}: {error.strerror}") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unsupported(f"{path}: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)
