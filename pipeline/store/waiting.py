"""Whether what a filter selects has changed since a commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.store.filters import CONNECTION_FILTERS, PAST_FILTERS, compile_filters
from pipeline.store.reader import Reader

_FIND_CHANGED = """
SELECT EXISTS (SELECT 1 FROM connection c INDEXED BY connection_changed WHERE c.changed_seq > ? AND ({now}))
  OR EXISTS (SELECT 1 FROM past c WHERE c.until_seq > ? AND ({before}))"""


def has_changed(reader: Reader, where: Mapping[str, Any], seq: int) -> bool:
    """Whether any connection that matches, or did before, was added, changed or removed after commit `seq`; within
    `reader.moment()`. True also where that is no longer known. Raises: Refused for a wrong filter."""
    now = compile_filters(where, CONNECTION_FILTERS)
    before = compile_filters(where, PAST_FILTERS)
    ((newest, log_from_seq),) = reader.rows("SELECT seq, log_from_seq FROM meta")
    if seq >= newest:
        return False
    if log_from_seq is None or seq + 1 < log_from_seq:
        return True
    sql = _FIND_CHANGED.format(now=now.sql, before=before.sql)
    ((changed,),) = reader.rows(sql, (seq, *now.params, seq, *before.params))
    return bool(changed)
