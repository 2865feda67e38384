"""The roster: every namespace and every process of the pipeline, from the supervisor to whoever reads segments."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed
from pipeline.model.netns import RosterRow, WorkerRow
from pipeline.segment import SegmentWriter, read_segment

SEGMENT_NAME = "roster"


class Roster(NamedTuple):
    """`denied`: processes whose namespace may not even be known; `left_out`: namespaces that are not looked at, see
    discover.py."""

    namespaces: list[RosterRow]
    workers: list[WorkerRow]
    denied: int
    left_out: int = 0


class RosterWriter:
    """Writes the roster's segment, each time as a whole. Raises: SegmentFull."""

    def __init__(self, path: str) -> None:
        self._segment = SegmentWriter(path)
        self._generation = 0
        self._written: Roster | None = None

    def write(self, roster: Roster) -> bool:
        """Writes it if it differs from the last one; whether it did."""
        if roster == self._written:
            return False
        self._generation += 1
        self._segment.write_base(0, self._generation, encode(roster._asdict()))
        self._written = roster
        return True

    def fds(self) -> list[int]:
        return self._segment.fds()

    def close(self) -> None:
        self._segment.close()


def read_roster(path: str) -> Roster:
    """The newest roster. Raises: Vanished, Malformed."""
    wire = decode_map(read_segment(path).payloads[-1])
    try:
        return Roster(
            [RosterRow(*row) for row in wire["namespaces"]],
            [WorkerRow(*row) for row in wire["workers"]],
            wire["denied"],
            wire.get("left_out", 0),
        )
    except (KeyError, TypeError) as error:
        raise Malformed(f"{path}: not a roster: {error}") from None
