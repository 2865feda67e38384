"""`--group-by` and `--top`: how many connections for each value of some fields, the most first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.cli.answers import Answered
from pipeline.cli.render import Listing
from pipeline.errors import Refused

COUNT = "connections"
# What `--top N` alone counts by: who has the most.
BY_PROCESS = ("netns", "pid", "comm")


class Groups(NamedTuple):
    """Connections counted by `fields`; only the `most` largest groups, all where it is None."""

    fields: tuple[str, ...]
    most: int | None

    def shown(self, answered: Answered) -> Answered:
        """One row for each combination of values, with its count; `total` is the number of groups."""
        found = answered.listing.rows
        sizes = Counter(_keys(found) if "nat" in self.fields else map(tuple, found))
        # Ties in an order that does not change from one look to the next.
        ordered = sorted(sizes.items(), key=lambda item: (-item[1], [_rank(value) for value in item[0]]))
        rows = [(*map(_shown, group), size) for group, size in ordered[: self.most]]
        return answered._replace(listing=Listing((*self.fields, COUNT), rows), total=len(sizes))


def groups_of(fields: tuple[str, ...], most: int | None) -> Groups:
    """Raises: Refused for a field that is a list."""
    if "owners" in fields:
        raise Refused(
            "cannot group by owners, which is a list", hint="pid, comm or container: the first owner's"
        )
    return Groups(fields, most)


class _Map(str):
    """A map as JSON: what can be counted."""


def _keys(rows: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Rows with what is a map in them, `nat`, in a form that can be counted."""
    for row in rows:
        yield tuple(_Map(json.dumps(value)) if isinstance(value, dict) else value for value in row)


def _shown(value: Any) -> Any:
    return json.loads(value) if isinstance(value, _Map) else value


def _rank(value: object) -> tuple[bool, float, str]:
    """Numbers by size, then texts, so that values of different kinds can be in one column."""
    if isinstance(value, (int, float)):
        return False, value, ""
    return True, 0.0, str(value)
