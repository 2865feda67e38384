"""What the query socket answers: one request map in, one answer map out (contract 5.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed, Refused, SockscopeError, did_you_mean
from pipeline.store.filters import (
    CONNECTION_FILTERS,
    NAMESPACE_FILTERS,
    PROCESS_FILTERS,
    Condition,
    Filter,
    compile_filters,
)
from pipeline.store.reader import Reader
from pipeline.store.schema import AGE_S, CONNECTIONS, NAMESPACES, PROCESSES, Table
from pipeline.store.select import OWNERS, count, select, select_connections
from pipeline.store.status import read_status

__all__ = ["CONNECTION_FIELDS", "answer", "answer_bytes", "compile_filters", "refuse_bytes"]

SCHEMA = 1
_PRIMARY_OWNER = ("pid", "comm", "container")
# A connection's fields in the contract's order; those of the primary owner come only when asked for by name.
CONNECTION_FIELDS = tuple(
    name
    for column in CONNECTIONS.columns
    if column not in _PRIMARY_OWNER
    for name in ((column, OWNERS) if column == "owner_role" else (column,))
)
_ENVELOPE_FIELDS = tuple(name for name in NAMESPACES.columns if name not in ("processes", "connections"))
_REQUEST_KEYS = ("id", "op", "where", "fields", "limit", "max_age_s")

_log = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """A request, checked. `fields` None: the operation's own."""

    where: Mapping[str, Any]
    fields: list[str] | None
    limit: int | None
    max_age_s: float | None


class _Found(NamedTuple):
    columns: Sequence[str]
    rows: list[list[Any]]
    total: int


def answer(reader: Reader, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer map, of one consistent state; an error answer for a request that is refused."""
    try:
        operation = _operation(request)
        wanted = _wanted(request)
        with reader.moment():
            (meta,) = reader.rows("SELECT host, epoch, seq FROM meta")
            found = operation(reader, wanted)
            namespaces = _envelope_namespaces(reader, wanted)
    except Refused as refused:
        message = f"{refused}; {refused.hint}" if refused.hint else str(refused)
        return _error(request.get("id"), refused.code, message)
    host, epoch, seq = meta
    return {
        "id": request.get("id"), "ok": True, "schema": SCHEMA, "host": host, "epoch": epoch, "seq": seq,
        "columns": list(found.columns), "rows": found.rows, "total": found.total, "cursor": None,
        "namespaces": namespaces,
    }  # fmt: skip


def answer_bytes(reader: Reader, data: bytes) -> bytes:
    """The packed answer to a packed request. Never raises: whatever is wrong becomes an error answer."""
    request_id = None
    try:
        request = decode_map(data)
        request_id = request.get("id")
        return encode(answer(reader, request))
    except Malformed as error:
        return encode(_error(None, "malformed", str(error)))
    except SockscopeError as error:
        return encode(_error(request_id, "failed", str(error)))
    except Exception:
        # A fault of ours in one query must not end the thread that answers everybody else's.
        _log.exception("a query failed")
        return encode(_error(request_id, "internal", "the query failed, see the log of the pipeline"))


def refuse_bytes(data: bytes, code: str, message: str) -> bytes:
    """The packed error answer to a packed request that nobody looked at; with its id where it can be read."""
    try:
        request_id = decode_map(data).get("id")
    except Malformed:
        request_id = None
    return encode(_error(request_id, code, message))


def _error(request_id: Any, code: str, message: str) -> dict[str, Any]:
    return {"id": request_id, "ok": False, "error": {"code": code, "message": message}}


def _operation(request: Mapping[str, Any]) -> Callable[[Reader, _Wanted], _Found]:
    op = request.get("op")
    if not isinstance(op, str):
        raise Refused(f"op: expected one of {', '.join(_OPERATIONS)}, got {ascii(op)[:80]}")
    if op not in _OPERATIONS:
        raise Refused(f"unknown op {ascii(op)[:80]}{did_you_mean(op, _OPERATIONS)}", "unknown_op")
    return _OPERATIONS[op]


def _wanted(request: Mapping[str, Any]) -> _Wanted:
    for key in request:
        if key not in _REQUEST_KEYS:
            raise Refused(f"unknown key {ascii(key)[:80]}{did_you_mean(key, _REQUEST_KEYS)}")
    where = request.get("where")
    if where is None:
        where = {}
    if not isinstance(where, Mapping) or not all(isinstance(name, str) for name in where):
        raise Refused("where: expected a map of filters")
    fields = request.get("fields")
    if fields is not None and not (
        isinstance(fields, (list, tuple)) and fields and all(isinstance(name, str) for name in fields)
    ):
        raise Refused("fields: expected a list of names, not empty")
    limit = request.get("limit")
    if limit is not None and (
        not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < 2**63
    ):
        raise Refused(f"limit: expected a number from 0 on, got {ascii(limit)[:80]}")
    max_age_s = request.get("max_age_s")
    if max_age_s is not None and (
        not isinstance(max_age_s, (int, float)) or isinstance(max_age_s, bool) or not 0 <= max_age_s < 1e12
    ):
        raise Refused(f"max_age_s: expected seconds from 0 on, got {ascii(max_age_s)[:80]}")
    return _Wanted(where, None if fields is None else list(fields), limit, max_age_s)


def _columns(wanted: _Wanted, default: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in wanted.fields or ():
        if name not in known:
            raise Refused(f"unknown field {ascii(name)[:80]}{did_you_mean(name, known)}", "unknown_field")
    return wanted.fields or list(default)


def _condition(wanted: _Wanted, filters: Mapping[str, Filter], netns_column: str) -> Condition:
    """The filters, and with `max_age_s` only rows of namespaces that were proven to be so that recently."""
    condition = compile_filters(wanted.where, filters)
    if wanted.max_age_s is None:
        return condition
    fresh = f"{netns_column} IN (SELECT n.netns FROM namespace n WHERE {AGE_S} <= ?)"
    return Condition(f"({condition.sql}) AND {fresh}", (*condition.params, wanted.max_age_s))


def _total(reader: Reader, table: Table, condition: Condition, wanted: _Wanted, found: int) -> int:
    if wanted.limit is None or found < wanted.limit:
        return found
    return count(reader, table, condition)


def _connections(reader: Reader, wanted: _Wanted) -> _Found:
    columns = _columns(wanted, CONNECTION_FIELDS, (*CONNECTION_FIELDS, *_PRIMARY_OWNER))
    condition = _condition(wanted, CONNECTION_FILTERS, "c.netns")
    rows = select_connections(reader, columns, condition, wanted.limit)
    return _Found(columns, rows, _total(reader, CONNECTIONS, condition, wanted, len(rows)))


def _rows_of(
    table: Table, filters: Mapping[str, Filter], netns_column: str, order: str
) -> Callable[[Reader, _Wanted], _Found]:
    """An operation that hands out one table as it is."""

    def operation(reader: Reader, wanted: _Wanted) -> _Found:
        columns = _columns(wanted, tuple(table.columns), tuple(table.columns))
        condition = _condition(wanted, filters, netns_column)
        rows = select(reader, table, columns, condition, order, wanted.limit)
        return _Found(columns, rows, _total(reader, table, condition, wanted, len(rows)))

    return operation


def _status(reader: Reader, wanted: _Wanted) -> _Found:
    compile_filters(wanted.where, {})
    status = read_status(reader)
    columns = _columns(wanted, tuple(status), tuple(status))
    rows = [[status[name] for name in columns]]
    return _Found(columns, rows[: wanted.limit], 1)


def _envelope_namespaces(reader: Reader, wanted: _Wanted) -> list[dict[str, Any]]:
    """The namespaces that an answer speaks of, whether or not they have rows in it: how far to trust it."""
    scope = {"netns": wanted.where["netns"]} if "netns" in wanted.where else {}
    condition = compile_filters(scope, NAMESPACE_FILTERS)
    rows = select(reader, NAMESPACES, _ENVELOPE_FIELDS, condition, "n.netns", None)
    return [dict(zip(_ENVELOPE_FIELDS, row, strict=True)) for row in rows]


_OPERATIONS: dict[str, Callable[[Reader, _Wanted], _Found]] = {
    "connections": _connections,
    "namespaces": _rows_of(NAMESPACES, NAMESPACE_FILTERS, "n.netns", "n.netns"),
    "processes": _rows_of(PROCESSES, PROCESS_FILTERS, "p.netns", "p.pid, p.start_ticks"),
    "status": _status,
}
