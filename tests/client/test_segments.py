"""Namespaces read straight from the segments of an instance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.client import SegmentReader
from pipeline.codec import encode
from pipeline.errors import Denied, Malformed, Vanished
from pipeline.model.process import Holding
from pipeline.segment import SegmentWriter, netns_segment
from tests.live import in_child, needs_root
from tests.sample_state import BLUE, HOST, connection, holding, process, snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "segments").symlink_to(folder)
    return folder


@pytest.fixture
def reader(tmp_path: Path, folder: Path) -> SegmentReader:
    return SegmentReader(str(tmp_path / "run"))


def write(folder: Path, netns: int = HOST) -> None:
    """A base and two deltas."""
    writer = SegmentWriter(str(folder / netns_segment(netns)))
    first = snapshot(
        netns,
        connections=[connection(1), connection(2)],
        processes=[process(8, "nginx")],
        holdings=[holding(8, 3, 1), holding(8, 4, 2)],
    )
    second = snapshot(netns, 2, base=False, connections=[connection(3)], gone_connections=[1])
    third = snapshot(netns, 3, base=False, gone_holdings=[holding(8, 3, 1)])
    writer.write_base(1, 1, encode(first.to_wire()))
    writer.append(1, 2, encode(second.to_wire()))
    writer.append(1, 3, encode(third.to_wire()))
    writer.close()


def test_state_is_the_base_with_the_changes_after_it(folder: Path, reader: SegmentReader) -> None:
    write(folder)
    state = reader.read(HOST)
    assert [row.key for row in state.connections] == [2, 3]
    assert state.connections == [connection(2), connection(3)]
    assert state.processes == [process(8, "nginx")]
    assert state.holdings == [Holding(8, 80, 4, 2)]
    assert (state.head.netns, state.head.generation, state.head.cookie) == (HOST, 3, 7)


def test_namespaces_are_those_that_have_a_segment(folder: Path, reader: SegmentReader) -> None:
    assert reader.namespaces() == []
    for name in ("roster", "lock", "netns-7.new", "netns-x"):
        (folder / name).touch()
    write(folder, BLUE)
    write(folder, HOST)
    assert reader.namespaces() == [HOST, BLUE]


def test_namespace_without_a_segment_has_vanished(folder: Path, reader: SegmentReader) -> None:
    with pytest.raises(Vanished):
        reader.read(HOST)


def test_directory_without_a_pipeline_has_none(tmp_path: Path) -> None:
    reader = SegmentReader(str(tmp_path))
    with pytest.raises(Vanished):
        reader.namespaces()
    with pytest.raises(Vanished):
        reader.read(HOST)


def test_file_that_is_no_segment_is_malformed(folder: Path, reader: SegmentReader) -> None:
    (folder / netns_segment(HOST)).write_bytes(b"x" * 200)
    with pytest.raises(Malformed):
        reader.read(HOST)


@needs_root
def test_user_without_the_right_is_denied(tmp_path: Path, folder: Path, reader: SegmentReader) -> None:
    write(folder)
    folder.chmod(0o700)

    def refusals() -> list[str]:
        os.setuid(65534)
        refused = []
        for ask in (reader.namespaces, lambda: reader.read(HOST)):
            try:
                ask()
            except Denied as error:
                refused.append(error.hint)
        return refused

    # Nothing above it may be in the way: tmp_path is root's alone.
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    assert in_child(refusals) == ["read them as the user of the pipeline"] * 2
