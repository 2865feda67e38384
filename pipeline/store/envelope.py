"""What every answer says of the namespaces it speaks of; the same for all answers of one commit, but for the ages."""

from __future__ import annotations

from typing import Any

from pipeline.store.filters import NAMESPACE_FILTERS, Condition, compile_filters
from pipeline.store.reader import Reader
from pipeline.store.schema import NAMESPACES
from pipeline.store.select import select

# Without counts: they take time, and those who want them ask for them.
NAMESPACE_FIELDS = tuple(name for name in NAMESPACES.columns if name not in ("processes", "connections"))
_MAX_SCOPES = 256


def denied_elsewhere(reader: Reader) -> int:
    """How many processes may not be read of which not even the namespace is known: they are in no namespace's `denied`,
    and may hold any socket. Within `reader.moment()`."""
    rows = reader.rows("SELECT count FROM loss WHERE name = 'processes_denied'")
    return int(rows[0][0]) if rows else 0


def namespaces_of(reader: Reader, epoch: str, seq: int, scope: Any) -> list[dict[str, Any]]:
    """Rows of the namespaces that a filter `netns` selects, all for None, whether or not they have connections: how
    far to trust an answer. Within `reader.moment()`, of commit `seq` of run `epoch`."""
    state, by_scope = reader.repeated
    if state != (epoch, seq) or len(by_scope) >= _MAX_SCOPES:
        state, by_scope = reader.repeated = (epoch, seq), {}
    now_s = reader.now_s()
    key = repr(scope)
    if key not in by_scope:
        condition = Condition("1") if scope is None else compile_filters({"netns": scope}, NAMESPACE_FILTERS)
        rows = select(reader, NAMESPACES, NAMESPACE_FIELDS, condition, "n.netns", None)
        by_scope[key] = [dict(zip(NAMESPACE_FIELDS, row, strict=True)) for row in rows], now_s
    known, known_s = by_scope[key]
    older_s = now_s - known_s
    if not older_s:
        return [dict(row) for row in known]
    return [row if row["age_s"] is None else {**row, "age_s": row["age_s"] + older_s} for row in known]
