"""What a commit says of ended connections, for the feed."""

from __future__ import annotations

from typing import Any

from pipeline.store.closed import CLOSED
from pipeline.store.reader import Reader

_COLUMNS = ", ".join(CLOSED.columns.values())
_SINCE = f"SELECT {_COLUMNS} FROM {CLOSED.source} WHERE c.netns = ? AND c.seq >= ? ORDER BY c.id"


def read_endings(reader: Reader, netns: int, seq: int) -> list[dict[str, Any]]:
    """What ended in `netns` by commit `seq` and those after it, in the columns of CLOSED, within `reader.moment()`."""
    endings = [dict(zip(CLOSED.columns, row, strict=True)) for row in reader.rows(_SINCE, (netns, seq))]
    for ending in endings:
        ending["refused"] = None if ending["refused"] is None else bool(ending["refused"])
    return endings
