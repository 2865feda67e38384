"""Requests, read and checked: the keys that all operations share, and those that some have for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.errors import Refused, did_you_mean

MAX_WAIT_S = 300.0
_KEYS = ("id", "op", "where", "fields", "limit", "cursor", "max_age_s")
# `until_s` is what a wait that was put off is asked with: CLOCK_MONOTONIC.
_OWN_KEYS: dict[str, tuple[str, ...]] = {
    "connections": ("closed",),
    "sql": ("sql",),
    "wait": ("epoch", "seq", "timeout_s", "until_s"),
}


class Wanted(NamedTuple):
    """A request, checked. `fields` None: the operation's own. Those from `sql` on are for single operations."""

    op: str
    where: Mapping[str, Any]
    fields: list[str] | None
    limit: int | None
    cursor: str | None
    max_age_s: float | None
    sql: str | None
    epoch: str | None
    seq: int | None
    timeout_s: float
    until_s: float | None
    closed: bool


def read_request(request: Mapping[str, Any], operations: Mapping[str, Any]) -> Wanted:
    """The request of one of `operations`. Raises: Refused."""
    op = request.get("op")
    if not isinstance(op, str):
        raise Refused(f"op: expected one of {', '.join(operations)}, got {ascii(op)[:80]}")
    if op not in operations:
        raise Refused(f"unknown op {ascii(op)[:80]}{did_you_mean(op, operations)}", "unknown_op")
    known = (*_KEYS, *_OWN_KEYS.get(op, ()))
    for key in request:
        if key not in known:
            raise Refused(f"unknown key {ascii(key)[:80]}{did_you_mean(key, known)}")
    return Wanted(
        op, _where(request), _fields(request), _count(request, "limit"), _text(request, "cursor"),
        _seconds(request, "max_age_s", 1e12), _text(request, "sql"), _text(request, "epoch"), _count(request, "seq"),
        _seconds(request, "timeout_s", MAX_WAIT_S) or 0.0, _seconds(request, "until_s", 1e12),
        _flag(request, "closed"),
    )  # fmt: skip


def columns_of(wanted: Wanted, default: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    """The fields asked for, or the default ones. Raises: Refused for an unknown one."""
    for name in wanted.fields or ():
        if name not in known:
            raise Refused(f"unknown field {ascii(name)[:80]}{did_you_mean(name, known)}", "unknown_field")
    return wanted.fields or list(default)


def _where(request: Mapping[str, Any]) -> Mapping[str, Any]:
    where = request.get("where")
    if where is None:
        return {}
    if not isinstance(where, Mapping) or not all(isinstance(name, str) for name in where):
        raise Refused("where: expected a map of filters")
    return where


def _fields(request: Mapping[str, Any]) -> list[str] | None:
    fields = request.get("fields")
    if fields is None:
        return None
    if not (isinstance(fields, (list, tuple)) and fields and all(isinstance(name, str) for name in fields)):
        raise Refused("fields: expected a list of names, not empty")
    return list(fields)


def _count(request: Mapping[str, Any], key: str) -> int | None:
    count = request.get(key)
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**63:
        raise Refused(f"{key}: expected a number from 0 on, got {ascii(count)[:80]}")
    return count


def _seconds(request: Mapping[str, Any], key: str, most: float) -> float | None:
    seconds = request.get(key)
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= most:
        limit = f"from 0 to {most:g}" if most <= MAX_WAIT_S else "from 0 on"
        raise Refused(f"{key}: expected seconds {limit}, got {ascii(seconds)[:80]}")
    return float(seconds)


def _flag(request: Mapping[str, Any], key: str) -> bool:
    flag = request.get(key, False)
    if not isinstance(flag, bool):
        raise Refused(f"{key}: expected true or false, got {ascii(flag)[:80]}")
    return flag


def _text(request: Mapping[str, Any], key: str) -> str | None:
    text = request.get(key)
    if text is not None and not isinstance(text, str):
        raise Refused(f"{key}: expected text, got {ascii(text)[:80]}")
    return text
