"""The roster: what the supervisor writes, the aggregator reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.codec import encode
from pipeline.errors import Malformed, Vanished
from pipeline.model.netns import RosterRow, WorkerRow
from pipeline.roles.roster import Roster, RosterWriter, read_roster
from pipeline.segment import SegmentWriter

ROSTER = Roster(
    [RosterRow(4026531840, ["blue", "azure"], 77, 3, "walking", "/dev/shm/x/netns-4026531840", 12.5)],
    [
        WorkerRow("supervisor", 70, [], "running", 0, 0.0),
        WorkerRow("netns", 77, [4026531840], "running", 2, 0.01),
    ],
    5,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = RosterWriter(str(tmp_path / "roster"))
    assert writer.write(ROSTER)
    assert read_roster(str(tmp_path / "roster")) == ROSTER


def test_only_a_roster_that_differs_is_written(tmp_path: Path) -> None:
    writer = RosterWriter(str(tmp_path / "roster"))
    assert [writer.write(ROSTER), writer.write(ROSTER), writer.write(ROSTER._replace(denied=6))] == [
        True,
        False,
        True,
    ]
    assert read_roster(str(tmp_path / "roster")).denied == 6


def test_a_roster_that_is_not_there_or_is_none_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "roster")
    with pytest.raises(Vanished):
        read_roster(path)
    for number, content in enumerate(({}, {"namespaces": [[1]], "workers": [], "denied": 0}), 1):
        SegmentWriter(path).write_base(0, number, encode(content))
        with pytest.raises(Malformed, match="not a roster"):
            read_roster(path)
