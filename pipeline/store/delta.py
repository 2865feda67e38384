"""The changes of a commit, read back out of the tables as rows of the contract."""

from __future__ import annotations

import json
from typing import Any

from pipeline.model.delta import Delta
from pipeline.store.filters import Condition
from pipeline.store.reader import Reader
from pipeline.store.schema import CONNECTIONS
from pipeline.store.select import OWNERS, select_connections

# Of the namespace, not of the row.
_VOLATILE = ("netns_cookie", "netns_name", "seen_at", "owner_seen_at", "stale")
DELTA_COLUMNS = (
    *(name for name in CONNECTIONS.columns if name not in _VOLATILE),
    OWNERS,
)
_NAT = DELTA_COLUMNS.index("nat")
# Its own statement, and `+`: by the commit, not by the namespace or in the order of all ids, which are many more rows.
_SINCE = "c.id IN (SELECT s.id FROM connection s WHERE +s.netns = ? AND s.changed_seq >= ?)"
_PAST_COLUMNS = ", ".join(
    sql if sql.startswith(("c.", "CASE")) else "NULL"
    for sql in (CONNECTIONS.columns[name] for name in DELTA_COLUMNS if name != OWNERS)
)
_REMOVED = f"""
SELECT {_PAST_COLUMNS}, c.owners FROM past c WHERE c.until_seq >= ? AND c.netns = ? AND c.gone AND c.added_seq < ?
ORDER BY c.until_seq, c.id"""


def read_delta(reader: Reader, netns: int, seq: int) -> Delta:
    """What commit `seq` and those after it changed in `netns`, within `reader.moment()`."""
    added = select_connections(
        reader, DELTA_COLUMNS, Condition(f"{_SINCE} AND c.added_seq >= ?", (netns, seq, seq)), None
    )
    changed = select_connections(
        reader, DELTA_COLUMNS, Condition(f"{_SINCE} AND c.added_seq < ?", (netns, seq, seq)), None
    )
    removed = [_gone(row) for row in reader.rows(_REMOVED, (seq, netns, seq))]
    return Delta(DELTA_COLUMNS, added, changed, removed)


def _gone(row: tuple[Any, ...]) -> list[Any]:
    """The owners of a row that went: only what filters ask for is kept of them."""
    *values, owners = row
    values[_NAT] = None if values[_NAT] is None else json.loads(values[_NAT])
    names = ("pid", "comm", "container")
    return [*values, [dict(zip(names, owner, strict=True)) for owner in json.loads(owners)]]
