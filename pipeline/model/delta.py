"""What changed in one namespace's connections between two commits of the store."""

from __future__ import annotations

from typing import Any, NamedTuple


class Delta(NamedTuple):
    """Rows of `columns`; a row's identity within its namespace is its column `key`.

    To follow: drop the rows of `removed` by key, then put those of `added` and `changed` by key, in this order (a key
    may be reused within one commit). Columns that follow from the namespace alone (names, times of sight, stale) are
    left out: they change without the row.
    """

    columns: tuple[str, ...]
    added: list[list[Any]]
    changed: list[list[Any]]
    removed: list[list[Any]]
