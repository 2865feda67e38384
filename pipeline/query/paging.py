"""Pages by key: a row that is there all the time comes exactly once, however much others come and go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.errors import Refused
from pipeline.store.filters import Condition
from pipeline.store.reader import Reader
from pipeline.store.schema import Table
from pipeline.store.select import key_at

_SEPARATOR = "~"
_EXPIRED_HINT = "ask again without a cursor"


class Page(NamedTuple):
    """`whole`: what was asked for; `rest`: what of it comes after the cursor. `mark`: what the next cursor begins
    with. `keys`: the columns that order the rows."""

    whole: Condition
    rest: Condition
    mark: str
    keys: tuple[str, ...]


def page_of(condition: Condition, cursor: str | None, epoch: str, op: str, keys: tuple[str, ...]) -> Page:
    """The page that a cursor asks for, or the first. Raises: Refused, with code `cursor_expired` for a cursor of
    another run of the aggregator."""
    mark = f"{epoch}{_SEPARATOR}{op}"
    if cursor is None:
        return Page(condition, condition, mark, keys)
    texts = _places(cursor, epoch, op)
    if len(texts) != len(keys) or not all(text.isdigit() and len(text) < 19 for text in texts):
        raise _not_ours()
    after = f"({', '.join(keys)}) > ({', '.join('?' * len(keys))})" if len(keys) > 1 else f"{keys[0]} > ?"
    rest = Condition(f"({condition.sql}) AND {after}", (*condition.params, *map(int, texts)))
    return Page(condition, rest, mark, keys)


def place_of(cursor: str | None, epoch: str, op: str, types: Sequence[type]) -> tuple[Any, ...]:
    """The key that `cursor_at` made a cursor of, whose values are of these types; empty for None. Raises: Refused, as
    `page_of`."""
    if cursor is None:
        return ()
    try:
        (text,) = _places(cursor, epoch, op)
        key = json.loads(bytes.fromhex(text))
    except (ValueError, RecursionError):
        raise _not_ours() from None
    if not isinstance(key, list) or [type(value) for value in key] != list(types):
        raise _not_ours()
    return tuple(key)


def cursor_at(epoch: str, op: str, key: Iterable[Any]) -> str:
    """The cursor for what comes after the row with this key."""
    return _SEPARATOR.join((epoch, op, json.dumps(list(key)).encode().hex()))


def _places(cursor: str, epoch: str, op: str) -> list[str]:
    """What a cursor says of the place in the answer to `op`."""
    whose, _, place = cursor.partition(_SEPARATOR)
    asked, *texts = place.split(_SEPARATOR)
    if not place or not cursor.isascii():
        raise _not_ours()
    if whose != epoch:
        raise Refused("cursor: of another run of the aggregator", "cursor_expired", _EXPIRED_HINT)
    if asked != op:
        raise Refused(f"cursor: of another op than {op}", "bad_request", _EXPIRED_HINT)
    return texts


def _not_ours() -> Refused:
    return Refused("cursor: not one of ours", "bad_request", _EXPIRED_HINT)


def next_cursor(reader: Reader, table: Table, page: Page, limit: int) -> str | None:
    """The cursor for what comes after the first `limit` rows of the page; None where nothing does."""
    if limit == 0:
        return None
    last = key_at(reader, table, page.rest, page.keys, limit - 1)
    return None if last is None else _SEPARATOR.join((page.mark, *map(str, last)))
