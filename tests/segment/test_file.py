"""Segments: what a reader finds, whatever happens to the writer, the file or the room."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed, Vanished
from pipeline.segment import SegmentContent, SegmentFull, SegmentWriter, read_segment


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "netns-1")


@pytest.fixture
def writer(path: str) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(path)
    yield writer
    writer.close()


def test_read_gives_base_and_deltas_oldest_first(path: str, writer: SegmentWriter) -> None:
    writer.write_base(3, 7, b"base")
    writer.append(3, 8, b"")
    writer.append(3, 9, b"delta")
    assert read_segment(path) == SegmentContent(3, 9, [b"base", b"", b"delta"])


def test_base_replaces_what_was_there(path: str, writer: SegmentWriter) -> None:
    writer.write_base(3, 7, b"base")
    writer.append(3, 8, b"delta")
    writer.write_base(3, 9, b"other base")
    assert read_segment(path) == SegmentContent(3, 9, [b"other base"])
    assert os.listdir(os.path.dirname(path)) == ["netns-1"]


def test_segment_is_readable_by_the_group_and_no_further(path: str, writer: SegmentWriter) -> None:
    writer.write_base(1, 1, b"base")
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_reader_that_opened_before_the_new_base_still_reads_the_old_generation(path: str) -> None:
    writer = SegmentWriter(path)
    writer.write_base(1, 1, b"old")
    fd = os.open(path, os.O_RDONLY)
    writer.write_base(1, 2, b"new")
    writer.append(1, 3, b"newer")
    writer.close()
    opened_before = path + "-opened-before"
    Path(opened_before).write_bytes(os.read(fd, 1 << 20))
    os.close(fd)
    assert read_segment(opened_before) == SegmentContent(1, 1, [b"old"])
    assert read_segment(path) == SegmentContent(1, 3, [b"new", b"newer"])


def test_next_life_leaves_the_last_one_readable_until_its_base(path: str) -> None:
    first = SegmentWriter(path)
    first.write_base(1, 1, b"first life")
    first.close()
    second = SegmentWriter(path)
    assert second.wants_base
    assert read_segment(path) == SegmentContent(1, 1, [b"first life"])
    second.write_base(2, 1, b"second life")
    assert read_segment(path) == SegmentContent(2, 1, [b"second life"])
    second.close()


def test_append_refuses_what_readers_could_not_apply(writer: SegmentWriter) -> None:
    with pytest.raises(ValueError, match="write a base"):
        writer.append(1, 1, b"delta without base")
    writer.write_base(1, 1, b"base")
    with pytest.raises(ValueError, match="generation 3 cannot be appended"):
        writer.append(1, 3, b"gap")
    with pytest.raises(ValueError, match="generation 2 cannot be appended"):
        writer.append(2, 2, b"other life")


def test_writer_wants_a_base_when_deltas_outgrow_it_by_64_kilobytes(writer: SegmentWriter) -> None:
    writer.write_base(1, 1, bytes(1000))
    writer.append(1, 2, bytes(64_000))
    assert not writer.wants_base
    writer.append(1, 3, bytes(3_000))
    assert writer.wants_base
    writer.write_base(1, 4, bytes(1000))
    assert not writer.wants_base


def test_writer_wants_a_base_after_200_records(writer: SegmentWriter) -> None:
    writer.write_base(1, 1, bytes(100_000))
    for generation in range(2, 201):
        writer.append(1, generation, b"x")
    assert not writer.wants_base
    writer.append(1, 201, b"x")
    assert writer.wants_base


def test_no_file_is_vanished(path: str) -> None:
    with pytest.raises(Vanished):
        read_segment(path)


def test_another_version_is_malformed(path: str, writer: SegmentWriter) -> None:
    writer.write_base(1, 1, b"base")
    data = bytearray(Path(path).read_bytes())
    data[8] = 2
    Path(path).write_bytes(data)
    with pytest.raises(Malformed, match="not a segment of version 1"):
        read_segment(path)


def three_generations(path: str) -> bytes:
    """A segment of base and two deltas at `path`; its bytes."""
    writer = SegmentWriter(path)
    writer.write_base(1, 1, b"the base")
    writer.append(1, 2, b"delta two")
    writer.append(1, 3, b"delta three")
    writer.close()
    return Path(path).read_bytes()


def test_truncation_at_every_byte_gives_a_whole_generation_or_malformed(path: str) -> None:
    data = three_generations(path)
    assert read_segment(path).generation == 3
    for length in range(len(data)):
        Path(path).write_bytes(data[:length])
        with pytest.raises(Malformed):
            read_segment(path)


def test_any_flipped_byte_gives_the_generation_before_or_malformed(path: str) -> None:
    data = three_generations(path)
    allowed = {2: [b"the base", b"delta two"], 3: [b"the base", b"delta two", b"delta three"]}
    found = set()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x5A
        Path(path).write_bytes(damaged)
        try:
            content = read_segment(path)
        except Malformed:
            continue
        assert content == SegmentContent(1, content.generation, allowed[content.generation])
        found.add(content.generation)
    # Slot 0 holds generation 3, slot 1 generation 2: damage to either leaves the other.
    assert found == {2, 3}


@given(data=st.binary(max_size=300))
def test_any_bytes_are_content_or_malformed(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    for content in (data, b"SOCKSEG\0\1\0\0\0\0\0\0\0" + data):
        path.write_bytes(content)
        with pytest.raises(Malformed):
            read_segment(str(path))


@given(payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=20), first=st.integers(0, 2**63))
def test_read_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], first: int
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "round-trip")
    writer = SegmentWriter(path)
    writer.write_base(5, first, payloads[0])
    for number, payload in enumerate(payloads[1:], first + 1):
        writer.append(5, number, payload)
    writer.close()
    assert read_segment(path) == SegmentContent(5, first + len(payloads) - 1, payloads)


# --- the writer killed after, or in the middle of, any of its system calls ---

_CALLS = ("open", "pwrite", "rename", "close", "ftruncate", "unlink")


def die_at_call(number: int, halved: bool) -> None:
    """From now on this process kills itself with its `number`-th file system call: right after it, or, `halved`,
    after half of the bytes where it is a store. Only for a forked child: nothing takes it back."""
    calls_left = [number]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls_left[0] -= 1
            last = calls_left[0] == 0
            if last and halved and call is pwrite:
                fd, data, offset = args
                args = (fd, data[: len(data) // 2], offset)
            result = call(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    pwrite = os.pwrite
    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed_while_writing(path: str, number: int, halved: bool, committed_fd: int) -> bool:
    """Whether a child that writes five generations over two bases died at its `number`-th call. It writes a byte
    to `committed_fd` after each commit."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at_call(number, halved)
            write = os.write
            writer = SegmentWriter(path)
            for generation in range(2, 7):
                if generation in (2, 5):
                    writer.write_base(1, generation, payload_of(generation, base=True))
                else:
                    writer.append(1, generation, payload_of(generation, base=False))
                write(committed_fd, b"c")
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def payload_of(generation: int, base: bool) -> bytes:
    return (b"base" if base else b"delta") + bytes([generation]) * (40 * generation)


@pytest.mark.parametrize("halved", [False, True], ids=["after the call", "in the middle of the store"])
def test_writer_killed_at_any_call_leaves_the_generation_before_or_after(path: str, halved: bool) -> None:
    old = SegmentWriter(path)
    for number in range(1, 100):
        old.write_base(1, 1, payload_of(1, base=True))
        committed, committed_fd = os.pipe()
        died = killed_while_writing(path, number, halved, committed_fd)
        os.close(committed_fd)
        done = 1 + len(os.read(committed, 100))
        os.close(committed)
        content = read_segment(path)
        assert content.generation in (done, done + 1), f"call {number}"
        first = 5 if content.generation >= 5 else 2 if content.generation >= 2 else 1
        assert content.payloads == [
            payload_of(generation, base=generation == first)
            for generation in range(first, content.generation + 1)
        ]
        if not died:
            break
    old.close()
    # 2 bases of open, pwrite, rename (and a close of the file before) and 3 deltas of two pwrites.
    assert number == 2 * 3 + 1 + 3 * 2 + 1


def test_what_a_killed_writer_left_does_not_hinder_the_next(path: str) -> None:
    Path(path + ".new").write_bytes(b"half a base")
    writer = SegmentWriter(path)
    writer.write_base(2, 1, b"base")
    writer.close()
    assert read_segment(path) == SegmentContent(2, 1, [b"base"])


def test_reader_beside_a_writer_gets_whole_generations_that_only_grow(path: str) -> None:
    last = 2000
    first = SegmentWriter(path)
    first.write_base(1, 1, numbered(1))
    first.close()
    pid = os.fork()
    if pid == 0:
        try:
            writer = SegmentWriter(path)
            for generation in range(2, last + 1):
                write = writer.write_base if writer.wants_base else writer.append
                write(1, generation, numbered(generation))
        finally:
            os._exit(0)
    seen = 1
    running = True
    while running:
        # Asked before the read: the read after the writer's end must find the last generation.
        running = os.waitpid(pid, os.WNOHANG) == (0, 0)
        content = read_segment(path)
        assert content.generation >= seen
        seen = content.generation
        first_number = seen - len(content.payloads) + 1
        assert content.payloads == [numbered(number) for number in range(first_number, seen + 1)]
    assert seen == last


def numbered(generation: int) -> bytes:
    return generation.to_bytes(4, "little") * 50


# --- no room ---


@contextmanager
def in_small_tmpfs(tmp_path: Path, size_bytes: int) -> Iterator[Path]:
    """A mounted tmpfs of that size."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "sockscope-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


@needs_root
def test_full_memory_leaves_the_last_generation_and_wants_a_base(tmp_path: Path) -> None:
    with in_small_tmpfs(tmp_path, 256 * 1024) as folder:
        path = str(folder / "netns-1")
        writer = SegmentWriter(path)
        writer.write_base(1, 1, bytes(50_000))
        writer.append(1, 2, bytes(50_000))
        with pytest.raises(SegmentFull, match="no room"):
            writer.append(1, 3, bytes(200_000))
        assert read_segment(path) == SegmentContent(1, 2, [bytes(50_000), bytes(50_000)])
        assert os.stat(path).st_size == 96 + 2 * (16 + 50_000)
        assert writer.wants_base
        with pytest.raises(ValueError, match="write a base"):
            writer.append(1, 3, b"small")
        with pytest.raises(SegmentFull):
            writer.write_base(1, 3, bytes(200_000))
        assert os.listdir(folder) == ["netns-1"]
        assert read_segment(path).generation == 2
        writer.write_base(1, 4, bytes(10_000))
        assert read_segment(path) == SegmentContent(1, 4, [bytes(10_000)])
        writer.close()


@needs_root
def test_full_memory_from_elsewhere_fails_small_writes_too_and_ends(tmp_path: Path) -> None:
    with in_small_tmpfs(tmp_path, 64 * 1024) as folder:
        path = str(folder / "netns-1")
        writer = SegmentWriter(path)
        writer.write_base(1, 1, bytes(4096 - 96 - 16))
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(SegmentFull):
            writer.append(1, 2, b"x")
        assert read_segment(path).generation == 1
        filler.unlink()
        writer.write_base(1, 2, b"room again")
        assert read_segment(path) == SegmentContent(1, 2, [b"room again"])
        writer.close()
