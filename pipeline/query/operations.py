"""The operations, one function each: from a checked request to columns and rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.errors import Refused
from pipeline.query.paging import Page, cursor_at, next_cursor, page_of, place_of
from pipeline.query.request import Wanted, columns_of
from pipeline.store.closed import CLOSED
from pipeline.store.edges import EDGE_FIELDS, EDGE_KEY_TYPES, SIDES
from pipeline.store.explain import explain
from pipeline.store.filters import (
    CLOSED_FILTERS,
    CONNECTION_FILTERS,
    EDGE_FILTERS,
    NAMESPACE_FILTERS,
    PROCESS_FILTERS,
    Condition,
    Filter,
    compile_filters,
)
from pipeline.store.reader import Reader
from pipeline.store.schema import AGE_S, CONNECTIONS, NAMESPACES, PROCESSES, Table
from pipeline.store.select import OWNERS, count, select, select_connections, select_edges
from pipeline.store.status import read_status
from pipeline.store.traffic import CONNECTION_FIGURES, PROCESS_FIGURES
from pipeline.store.waiting import has_changed

# A connection's fields in the contract's order; those of the primary owner, and the row's identity, come only when
# asked for by name.
_BY_NAME = ("pid", "comm", "container", "key", *CONNECTION_FIGURES)
CONNECTION_FIELDS = tuple(
    name
    for column in CONNECTIONS.columns
    if column not in _BY_NAME
    for name in ((column, OWNERS) if column == "owner_role" else (column,))
)
# The row's identity comes only when asked for.
CLOSED_FIELDS = tuple(name for name in CLOSED.columns if name != "key")
EXPLANATION, HOLDERS = "explanation", "holders"
_EXPLAIN_LIMIT = 100
_CONNECTION_KEYS, _NAMESPACE_KEYS, _PROCESS_KEYS = ("c.id",), ("n.netns",), ("p.pid", "p.start_ticks")


class Moment(NamedTuple):
    """The state that an answer speaks of."""

    host: str
    epoch: str
    seq: int


@dataclass(slots=True)
class Found:
    """`more`: what the answer has beside the contract's keys. `elsewhere`: namespaces that the rows speak of although
    the filter `netns` may not select them."""

    columns: Sequence[str]
    rows: list[list[Any]]
    total: int
    cursor: str | None = None
    elsewhere: Collection[int] = ()
    more: dict[str, Any] = field(default_factory=dict)


Operation = Callable[[Reader, Wanted, Moment], Found]


def _condition(wanted: Wanted, filters: Mapping[str, Filter], netns_column: str) -> Condition:
    """The filters, and with `max_age_s` only rows of namespaces that were proven to be so that recently."""
    condition = compile_filters(wanted.where, filters)
    return condition if wanted.max_age_s is None else _fresh(condition, netns_column, wanted.max_age_s)


def _fresh(condition: Condition, netns_column: str, max_age_s: float | None, or_of: str = "") -> Condition:
    """`or_of`: SQL that selects what else the column may be."""
    found = f"SELECT n.netns FROM namespace n WHERE {AGE_S} <= ?"
    allowed = f"{found} UNION ALL {or_of}" if or_of else found
    return Condition(f"({condition.sql}) AND {netns_column} IN ({allowed})", (*condition.params, max_age_s))


def _paged(
    reader: Reader, table: Table, page: Page, wanted: Wanted, columns: Sequence[str], rows: list[list[Any]]
) -> Found:
    """The rows of a page with the total of all pages."""
    if wanted.limit is None or len(rows) < wanted.limit:
        total = len(rows) if wanted.cursor is None else count(reader, table, page.whole)
        return Found(columns, rows, total)
    return Found(
        columns, rows, count(reader, table, page.whole), next_cursor(reader, table, page, wanted.limit)
    )


def _closed(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    _refuse_keys(wanted, "max_age_s")
    columns = columns_of(wanted, CLOSED_FIELDS, tuple(CLOSED.columns))
    condition = compile_filters(wanted.where, CLOSED_FILTERS)
    page = page_of(condition, wanted.cursor, moment.epoch, "closed", _CONNECTION_KEYS)
    rows = select(reader, CLOSED, columns, page.rest, "c.id", wanted.limit)
    return _paged(reader, CLOSED, page, wanted, columns, rows)


def _connections(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    if wanted.closed:
        return _closed(reader, wanted, moment)
    columns = columns_of(wanted, CONNECTION_FIELDS, (*CONNECTION_FIELDS, *_BY_NAME))
    condition = _condition(wanted, CONNECTION_FILTERS, "c.netns")
    page = page_of(condition, wanted.cursor, moment.epoch, wanted.op, _CONNECTION_KEYS)
    rows = select_connections(reader, columns, page.rest, wanted.limit)
    return _paged(reader, CONNECTIONS, page, wanted, columns, rows)


def _rows_of(
    table: Table,
    filters: Mapping[str, Filter],
    netns_column: str,
    keys: tuple[str, ...],
    by_name: Collection[str] = (),
) -> Operation:
    """An operation that hands out one table as it is; the columns `by_name` only where they are asked for."""
    default = tuple(name for name in table.columns if name not in by_name)

    def operation(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
        columns = columns_of(wanted, default, tuple(table.columns))
        condition = _condition(wanted, filters, netns_column)
        page = page_of(condition, wanted.cursor, moment.epoch, wanted.op, keys)
        rows = select(reader, table, columns, page.rest, ", ".join(keys), wanted.limit)
        return _paged(reader, table, page, wanted, columns, rows)

    return operation


def _edges(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    columns = columns_of(wanted, EDGE_FIELDS, EDGE_FIELDS)
    condition = compile_filters(wanted.where, EDGE_FILTERS)
    for side in SIDES if wanted.max_age_s is not None else ():
        # Of an end that is not here nobody has a proof.
        condition = _fresh(condition, f"ifnull(e.{side}_netns, 0)", wanted.max_age_s, "SELECT 0")
    after = place_of(wanted.cursor, moment.epoch, wanted.op, EDGE_KEY_TYPES)
    edges = select_edges(reader, condition, wanted.limit, after)
    cursor = None if edges.last is None else cursor_at(moment.epoch, wanted.op, edges.last)
    rows = [[edge[name] for name in columns] for edge in edges.rows]
    ends = {edge[side]["netns"] for edge in edges.rows for side in SIDES} - {None}
    return Found(columns, rows, edges.total, cursor, sorted(ends))


def _explain(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    limited = wanted._replace(limit=_EXPLAIN_LIMIT if wanted.limit is None else wanted.limit)
    default = (*CONNECTION_FIELDS, EXPLANATION, HOLDERS)
    columns = columns_of(wanted, default, (*default, *_BY_NAME))
    plain = [name for name in columns if name not in (EXPLANATION, HOLDERS)]
    # At least one column: the rows have to be there to be explained.
    page = page_of(_condition(wanted, CONNECTION_FILTERS, "c.netns"), wanted.cursor, moment.epoch, wanted.op,
                   _CONNECTION_KEYS)  # fmt: skip
    rows = select_connections(reader, plain or ["netns"], page.rest, limited.limit)
    explained = explain(reader, page.rest, limited.limit)
    whole = [
        {**dict(zip(plain, row, strict=False)), EXPLANATION: one.explanation, HOLDERS: one.holders}
        for row, one in zip(rows, explained, strict=True)
    ]
    return _paged(
        reader, CONNECTIONS, page, limited, columns, [[row[name] for name in columns] for row in whole]
    )


def _sql(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    _refuse_keys(wanted, "where", "fields", "cursor", "max_age_s")
    if wanted.sql is None:
        raise Refused("sql: expected a SELECT statement")
    result = reader.statement(wanted.sql, wanted.limit)
    return Found(result.columns, result.rows, len(result.rows), more={"truncated": result.truncated})


def _wait(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    """Whether there is something new, without waiting for it."""
    _refuse_keys(wanted, "fields", "limit", "cursor", "max_age_s")
    changed = has_changed(reader, wanted.where, moment.seq if wanted.seq is None else wanted.seq)
    changed = changed or wanted.epoch not in (None, moment.epoch)
    return Found(("changed",), [[changed]], 1)


def _status(reader: Reader, wanted: Wanted, moment: Moment) -> Found:
    compile_filters(wanted.where, {})
    _refuse_keys(wanted, "cursor")
    status = read_status(reader)
    columns = columns_of(wanted, tuple(status), tuple(status))
    rows = [[status[name] for name in columns]]
    return Found(columns, rows[: wanted.limit], 1)


def _refuse_keys(wanted: Wanted, *keys: str) -> None:
    for key in keys:
        if getattr(wanted, key):
            raise Refused(f"{key}: not for op {wanted.op}")


OPERATIONS: dict[str, Operation] = {
    "connections": _connections,
    "edges": _edges,
    "processes": _rows_of(
        PROCESSES, PROCESS_FILTERS, "p.netns", _PROCESS_KEYS, ("sockets", *PROCESS_FIGURES)
    ),
    "namespaces": _rows_of(NAMESPACES, NAMESPACE_FILTERS, "n.netns", _NAMESPACE_KEYS),
    "status": _status,
    "sql": _sql,
    "explain": _explain,
    "wait": _wait,
}
