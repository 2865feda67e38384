"""Segments: the newest state of one worker as a file in shared memory, readable whoever dies.

A segment is one base record and the deltas appended to it. The file only grows; a new base goes into a new file
that is renamed over the old one, so whoever opened the old one still reads a whole, older generation.

    offset  0   magic (8), version u32, zero u32
    offset 32   commit slot 0: life u64, generation u64, end offset u64, records u32, crc32 of these u32
    offset 64   commit slot 1
    offset 96   records: payload length u32, crc32 u32 (of generation and payload), generation u64, payload

All integers little-endian. A record counts once a slot names an end behind it. Commits alternate between the
slots, so the slot before stays whole while one is being written: a reader gets generation n or n + 1.

pwrite and pread instead of mmap: the same pages, but a full /dev/shm is ENOSPC and a truncated file a short read,
where a mapping gets SIGBUS; and the pages are not counted into the memory of each process that maps them.
"""

from __future__ import annotations

import errno
import os
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from pipeline.errors import Malformed, SockscopeError, Vanished

_MAGIC = b"SOCKSEG\0"
_VERSION = 1
_HEADER = Struct("<8sII")
_SLOT = Struct("<QQQI")
_SLOT_CRC = Struct("<I")
_SLOT_OFFSETS = (32, 64)
_RECORD = Struct("<IIQ")
_GENERATION = Struct("<Q")
_RECORDS_OFFSET = 96

_BASE_SLACK_BYTES = 64 * 1024
_MAX_RECORDS = 200
_READ_ATTEMPTS = 8
_FILE_MODE = 0o640
_OPEN_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class SegmentFull(SockscopeError, OSError):
    """No room in /dev/shm. The generation committed before stays readable; only a base can follow."""


class SegmentContent(NamedTuple):
    """What one read of a segment found: `payloads` is the base and the deltas after it, oldest first; the last
    one is generation `generation` of life `life`."""

    life: int
    generation: int
    payloads: list[bytes]


class _Slot(NamedTuple):
    life: int
    generation: int
    end: int
    records: int


class SegmentWriter:
    """Writes the segment at `path`; the only writer of that path at any time. The first write is a base.

    What an earlier writer left at `path` stays readable until then.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._slot = _Slot(0, 0, 0, 0)
        self._base_end = 0
        self._broken = True

    @property
    def wants_base(self) -> bool:
        """Whether the next write should be a base: none yet, a write failed, or the deltas outgrew the base."""
        appended_bytes = self._slot.end - self._base_end
        return (
            self._broken
            or appended_bytes > self._base_end + _BASE_SLACK_BYTES
            or self._slot.records > _MAX_RECORDS
        )

    def write_base(self, life: int, generation: int, payload: bytes) -> None:
        """Replaces the segment by one record that is the whole state. Raises: SegmentFull."""
        new_path = self.path + ".new"
        record = _pack_record(generation, payload)
        slot = _Slot(life, generation, _RECORDS_OFFSET + len(record), 1)
        self._broken = True
        fd = -1
        try:
            fd = os.open(new_path, _OPEN_NEW, _FILE_MODE)
            # One store for all of it: nobody opens the file under its name before the rename.
            _write_all(fd, _pack_header(slot) + record, 0)
            os.rename(new_path, self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                os.unlink(new_path)
            raise _as_ours(error, self.path) from None
        self.close()
        self._fd, self._slot, self._base_end, self._broken = fd, slot, slot.end, False

    def append(self, life: int, generation: int, payload: bytes) -> None:
        """Commits the changes from `generation - 1` to `generation`. Raises: SegmentFull, ValueError when it does
        not follow what was committed before (readers could not apply it)."""
        before = self._slot
        if self._broken or (life, generation) != (before.life, before.generation + 1):
            raise ValueError(f"{self.path}: generation {generation} cannot be appended; write a base")
        record = _pack_record(generation, payload)
        slot = _Slot(life, generation, before.end + len(record), before.records + 1)
        try:
            _write_all(self._fd, record, before.end)
            _write_all(self._fd, _pack_slot(slot), _SLOT_OFFSETS[(slot.records - 1) % 2])
        except OSError as error:
            self._broken = True
            # Give back the pages of the half record: others need the room as well.
            os.ftruncate(self._fd, before.end)
            raise _as_ours(error, self.path) from None
        self._slot = slot

    def fds(self) -> list[int]:
        """The file it holds open, if any."""
        return [self._fd] if self._fd >= 0 else []

    def close(self) -> None:
        """Closes the file and leaves it where it is, readable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._broken = True


def read_segment(path: str) -> SegmentContent:
    """The newest committed generation in the segment at `path`.

    Raises: Vanished where there is no file, Malformed where there is no whole generation in it after a few tries.
    """
    for attempt in range(_READ_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Vanished(f"no segment at {path}") from None
        try:
            return _read_open(fd, path)
        except Malformed:
            # Both slots can be torn under us only while two commits pass during one read: look again.
            if attempt == _READ_ATTEMPTS - 1:
                raise
        finally:
            os.close(fd)
    raise AssertionError("unreachable")


def _read_open(fd: int, path: str) -> SegmentContent:
    header = os.pread(fd, _RECORDS_OFFSET, 0)
    if len(header) < _RECORDS_OFFSET or _HEADER.unpack_from(header)[:2] != (_MAGIC, _VERSION):
        raise Malformed(f"{path}: not a segment of version {_VERSION}")
    slots = [slot for offset in _SLOT_OFFSETS if (slot := _unpack_slot(header, offset)) is not None]
    if not slots:
        raise Malformed(f"{path}: no whole commit slot")
    # Within one file commits only move the end forward.
    slot = max(slots, key=lambda candidate: candidate.end)
    if slot.end > os.fstat(fd).st_size:
        raise Malformed(f"{path}: shorter than the {slot.end} bytes committed")
    # After the slot was read, never together with it: the bytes before its end do not change any more.
    data = os.pread(fd, slot.end - _RECORDS_OFFSET, _RECORDS_OFFSET)
    return SegmentContent(slot.life, slot.generation, _unpack_records(data, slot, path))


def _unpack_records(data: bytes, slot: _Slot, path: str) -> list[bytes]:
    """The payloads in `data`, which is what `slot` committed. Raises: Malformed with the offset."""
    payloads: list[bytes] = []
    offset = 0
    generation = slot.generation - slot.records
    while offset < len(data):
        start = offset + _RECORD.size
        generation += 1
        if start > len(data):
            raise Malformed(f"{path}: record cut short at offset {offset + _RECORDS_OFFSET}")
        length, crc, found = _RECORD.unpack_from(data, offset)
        payload = data[start : start + length]
        if len(payload) != length or found != generation or crc != _record_crc(generation, payload):
            raise Malformed(f"{path}: damaged record at offset {offset + _RECORDS_OFFSET}")
        payloads.append(payload)
        offset = start + length
    if generation != slot.generation or len(data) != slot.end - _RECORDS_OFFSET:
        raise Malformed(f"{path}: {len(payloads)} of {slot.records} records")
    return payloads


def _record_crc(generation: int, payload: bytes) -> int:
    return crc32(payload, crc32(_GENERATION.pack(generation)))


def _pack_record(generation: int, payload: bytes) -> bytes:
    return _RECORD.pack(len(payload), _record_crc(generation, payload), generation) + payload


def _pack_slot(slot: _Slot) -> bytes:
    packed = _SLOT.pack(*slot)
    return packed + _SLOT_CRC.pack(crc32(packed))


def _pack_header(slot: _Slot) -> bytes:
    header = bytearray(_RECORDS_OFFSET)
    _HEADER.pack_into(header, 0, _MAGIC, _VERSION, 0)
    packed = _pack_slot(slot)
    header[_SLOT_OFFSETS[0] : _SLOT_OFFSETS[0] + len(packed)] = packed
    return bytes(header)


def _unpack_slot(header: bytes, offset: int) -> _Slot | None:
    """The slot at `offset`, or None while it was never written or is being written."""
    packed = header[offset : offset + _SLOT.size]
    if _SLOT_CRC.unpack_from(header, offset + _SLOT.size)[0] != crc32(packed):
        return None
    slot = _Slot(*_SLOT.unpack(packed))
    # The crc of zeros is not zero, yet be strict: a slot that commits nothing is none.
    return slot if slot.records and slot.end >= _RECORDS_OFFSET else None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        # tmpfs writes what fits before it says ENOSPC.
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _as_ours(error: OSError, path: str) -> OSError:
    """SegmentFull for ENOSPC and EDQUOT; any other error as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SegmentFull(
            f"no room for {path}", "free memory in /dev/shm, or give the container more (--shm-size)"
        )
    return error
