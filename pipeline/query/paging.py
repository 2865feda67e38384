"""Pages by key: a row that is there all the time comes exactly once, however much others come and go."""

from __future__ import annotations

from typing import NamedTuple

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
    whose, _, place = cursor.partition(_SEPARATOR)
    asked, *texts = place.split(_SEPARATOR)
    if not place or not all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts):
        raise Refused("cursor: not one of ours", "bad_request", _EXPIRED_HINT)
    if whose != epoch:
        raise Refused("cursor: of another run of the aggregator", "cursor_expired", _EXPIRED_HINT)
    if asked != op or len(texts) != len(keys):
        raise Refused(f"cursor: of another op than {op}", "bad_request", _EXPIRED_HINT)
    after = f"({', '.join(keys)}) > ({', '.join('?' * len(keys))})" if len(keys) > 1 else f"{keys[0]} > ?"
    rest = Condition(f"({condition.sql}) AND {after}", (*condition.params, *map(int, texts)))
    return Page(condition, rest, mark, keys)


def next_cursor(reader: Reader, table: Table, page: Page, limit: int) -> str | None:
    """The cursor for what comes after the first `limit` rows of the page; None where nothing does."""
    if limit == 0:
        return None
    last = key_at(reader, table, page.rest, page.keys, limit - 1)
    return None if last is None else _SEPARATOR.join((page.mark, *map(str, last)))
