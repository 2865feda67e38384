"""Short ways to ask a store in tests, through the same door as everybody."""

from __future__ import annotations

from typing import Any

from pipeline.query import answer
from pipeline.store import Store


def ask(store: Store, op: str, **keys: Any) -> list[dict[str, Any]]:
    """The rows of an answer, as maps; fails on an error answer."""
    answered = answer(store.reader(), {"op": op, **keys})
    assert answered["ok"], answered
    return [dict(zip(answered["columns"], row, strict=True)) for row in answered["rows"]]


def column(store: Store, op: str, name: str, **where: Any) -> list[Any]:
    """One field of the rows that match."""
    return [row[name] for row in ask(store, op, fields=[name], where=where)]
