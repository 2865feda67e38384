"""Rows of the contract out of the tables: projection, conversion, the list of all owners."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.merge.owners import Holder, ordered
from pipeline.store.edges import EDGE_COLUMNS, EDGE_KEY, EDGES_SOURCE, SIDE_FIELDS
from pipeline.store.filters import Condition
from pipeline.store.reader import Reader
from pipeline.store.schema import BOOLEANS, CONNECTIONS, HOLDERS, JSON_VALUES, LAST_OWNERS, MAYBES, Table

OWNERS = "owners"


def _maybe(flag: int | None) -> bool | None:
    return None if flag is None else bool(flag)


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(BOOLEANS, bool),
    **dict.fromkeys(MAYBES, _maybe),
    **dict.fromkeys(JSON_VALUES, _from_json),
}


def select(
    reader: Reader, table: Table, columns: Sequence[str], condition: Condition, order: str, limit: int | None
) -> list[list[Any]]:
    """Rows with these columns, in this order, within `reader.moment()`. `order` is the SQL of a unique key."""
    expressions = ", ".join(table.columns[column] for column in columns)
    sql = f"SELECT {expressions} FROM {table.source} WHERE {table.always} AND ({condition.sql}) ORDER BY {order}"
    return _converted(columns, reader.rows(*limited(sql, condition, limit)))


def count(reader: Reader, table: Table, condition: Condition) -> int:
    """How many rows match, whatever the limit."""
    sql = f"SELECT count(*) FROM {table.counted} WHERE {table.always} AND ({condition.sql})"
    (row,) = reader.rows(sql, condition.params)
    assert isinstance(row[0], int)
    return row[0]


def key_at(
    reader: Reader, table: Table, condition: Condition, keys: Sequence[str], index: int
) -> tuple[Any, ...] | None:
    """The values of `keys`, which order the rows that match, in row number `index`; None where it is the last."""
    columns = ", ".join(keys)
    sql = (
        f"SELECT {columns} FROM {table.counted} WHERE {table.always} AND ({condition.sql})"
        f" ORDER BY {columns} LIMIT 2 OFFSET ?"
    )
    found = reader.rows(sql, (*condition.params, index))
    return found[0] if len(found) == 2 else None


def select_connections(
    reader: Reader, columns: Sequence[str], condition: Condition, limit: int | None
) -> list[list[Any]]:
    """Connections in the order in which they were first seen; `owners` among the columns has all holders."""
    plain = [column for column in columns if column != OWNERS]
    if len(plain) == len(columns):
        return select(reader, CONNECTIONS, columns, condition, "c.id", limit)
    expressions = ", ".join(("c.id", *(CONNECTIONS.columns[column] for column in plain)))
    sql = f"SELECT {expressions} FROM {CONNECTIONS.source} WHERE {condition.sql} ORDER BY c.id"
    found = reader.rows(*limited(sql, condition, limit))
    owners = _owners_of(reader, condition, limit)
    rows = _converted(plain, [row[1:] for row in found])
    at = [index for index, column in enumerate(columns) if column == OWNERS]
    for row, whole in zip(rows, found, strict=True):
        for index in at:
            row.insert(index, owners.get(whole[0], []))
    return rows


def _owners_of(reader: Reader, condition: Condition, limit: int | None) -> dict[int, list[dict[str, Any]]]:
    """Connection id -> its owners, primary first, for the connections that the condition and the limit select."""
    where, params = condition
    if limit is not None:
        chosen = f"SELECT c.id FROM {CONNECTIONS.counted} WHERE {condition.sql} ORDER BY c.id"
        wanted, params = limited(chosen, condition, limit)
        where = f"c.id IN ({wanted})"
    held: dict[int, list[tuple[Any, ...]]] = {}
    for table in (HOLDERS, LAST_OWNERS):
        columns = ", ".join(table.columns.values())
        sql = f"SELECT {columns} FROM {table.source} WHERE {table.always} AND ({where})"
        for row in reader.rows(sql, params):
            held.setdefault(row[0], []).append(row)
    return {row_id: _in_order(rows) for row_id, rows in held.items()}


def _in_order(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The owners that the HOLDERS rows of one connection describe, primary first."""
    if len(rows) > 1:
        by_holder = {Holder(*row[2:7]): row for row in rows}
        rows = [by_holder[holder] for holder in ordered(by_holder, bool(rows[0][1]))]
    return [
        {
            "pid": pid,
            "start_ticks": start_ticks,
            "comm": comm,
            "fd": fd,
            "netns": netns,
            "container": container,
        }
        for _, _, pid, start_ticks, fd, _, _, comm, netns, container in rows
    ]


def limited(sql: str, condition: Condition, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """The statement cut to `limit` rows, and its parameters."""
    if limit is None:
        return sql, condition.params
    return f"{sql} LIMIT ?", (*condition.params, limit)


def _converted(columns: Sequence[str], found: list[tuple[Any, ...]]) -> list[list[Any]]:
    rows = [list(row) for row in found]
    for index, column in enumerate(columns):
        convert = _CONVERT.get(column)
        if convert is not None:
            for row in rows:
                row[index] = convert(row[index])
    return rows


class Edges(NamedTuple):
    """Edges as maps by EDGE_FIELDS. `total`: how many there are, whatever the limit; `last`: the key of the last of
    `rows`, None where no more come after it."""

    rows: list[dict[str, Any]]
    total: int
    last: tuple[Any, ...] | None


def select_edges(
    reader: Reader, condition: Condition, limit: int | None, after: tuple[Any, ...] = ()
) -> Edges:
    """At most `limit` edges, those after the one with key `after`; within `reader.moment()`."""
    width = len(EDGE_KEY)
    columns = ", ".join((*EDGE_KEY, *EDGE_COLUMNS.values()))
    # Grouped anew for each page: what takes time is the same for one edge as for all.
    found = reader.rows(f"SELECT {columns} FROM {EDGES_SOURCE} WHERE {condition.sql}", condition.params)
    found.sort(key=lambda row: row[:width])
    first = bisect_right(found, after, key=lambda row: row[:width]) if after else 0
    page = found[first:] if limit is None else found[first : first + limit]
    last = page[-1][:width] if page and first + len(page) < len(found) else None
    return Edges([_edge(row[width:]) for row in page], len(found), last)


def _edge(row: tuple[Any, ...]) -> dict[str, Any]:
    width = len(SIDE_FIELDS)
    proto, connections, ambiguous, nat, first_seen, last_seen = row[2 * width :]
    return {
        "client": dict(zip(SIDE_FIELDS, row[:width], strict=True)),
        "server": dict(zip(SIDE_FIELDS, row[width : 2 * width], strict=True)),
        "proto": proto,
        "connections": connections,
        "ambiguous": bool(ambiguous),
        "nat": _from_json(nat),
        "first_seen": first_seen,
        "last_seen": last_seen,
    }
