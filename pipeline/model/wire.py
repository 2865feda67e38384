"""Whether rows and counts that came over the wire have the types that their nouns name: what is stored is asked for
later, and a text in place of a number would fail there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pipeline.errors import Malformed

# As SQLite has them.
_MAX_COUNT = 2**63 - 1


def read_scalars(wire: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The values of these fields. Raises: Malformed for a type that a field cannot have, KeyError for one missing."""
    values = {name: wire[name] for name in types}
    for name, value in values.items():
        if not isinstance(value, types[name]):
            raise Malformed(f"snapshot field {name} is a {type(value).__name__}")
    return values


def check_rows(what: str, row_type: type[tuple[Any, ...]], rows: Sequence[Sequence[Any]]) -> None:
    """Raises: Malformed where a row is not as wide as the NamedTuple `row_type`, or a value not of its field's type."""
    columns = _types_of(row_type)
    if any(len(row) != len(columns) for row in rows):
        raise Malformed(f"snapshot field {what} has a row that is not {len(columns)} wide")
    # By column: the types in each are few, and found without a step of ours for each value.
    for index, (name, allowed) in enumerate(columns):
        for found in set(map(type, map(itemgetter(index), rows))):
            if not issubclass(found, allowed):
                raise Malformed(f"snapshot field {what} has a {found.__name__} as {name}")


def check_keys(what: str, keys: Iterable[Any], allowed: tuple[type, ...]) -> None:
    """Raises: Malformed for a key of another type."""
    for found in set(map(type, keys)):
        if not issubclass(found, allowed):
            raise Malformed(f"snapshot field {what} has a {found.__name__}")


def check_counts(counts: Iterable[Any]) -> None:
    """Raises: Malformed for what is no number of things."""
    for count in counts:
        if not isinstance(count, int) or not 0 <= count <= _MAX_COUNT:
            raise Malformed(f"{count!r} is no count")


@cache
def _types_of(row_type: type[tuple[Any, ...]]) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """(field, types that it may have) of a NamedTuple."""
    hints = get_type_hints(row_type)
    return tuple((name, tuple(_plain(hints[name]))) for name in row_type._fields)  # type: ignore[attr-defined]


def _plain(hint: Any) -> Iterable[type]:
    """The types that msgpack makes of what `hint` says."""
    if get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _plain(one)
        return
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    if hint is float:
        yield from (float, int)
    else:
        # An IntEnum is a number there.
        yield int if issubclass(hint, int) and hint is not bool else hint
