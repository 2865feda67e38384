"""What a query answered, and the parts of printing that verbs share."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from pipeline.cli.entry import EXIT_NO_MATCH
from pipeline.cli.options import flags_of
from pipeline.cli.render import Listing, Output, emit


class Answered(NamedTuple):
    """Rows, how many matched before any limit, and the namespaces they come from (contract rows, as maps)."""

    listing: Listing
    total: int
    namespaces: Sequence[Mapping[str, Any]]


class Wanted(NamedTuple):
    """What the row options ask for."""

    only_count: bool
    exit_code: bool


def end_before_collecting() -> None:
    """No garbage collection in a process that prints once and exits.

    It would look through 100,000 rows again and again, for a third of the CPU time, and find nothing to free.
    """
    gc.disable()


def ask(
    runtime_dir: str | None,
    op: str,
    *,
    where: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
    limit: int | None = None,
) -> Answered:
    """The running pipeline's answer. Raises: NoAggregator, Refused, ConfigError."""
    from pipeline import config
    from pipeline.client import Client

    end_before_collecting()
    loaded = config.load(None, os.environ, flags_of(runtime_dir))
    keys: dict[str, Any] = {"where": dict(where or {})}
    if fields:
        keys["fields"] = list(fields)
    if limit is not None:
        keys["limit"] = limit
    with Client(loaded.config.agent.runtime_dir) as client:
        answer = client.ask(op, **keys)
    columns = tuple(answer.columns)
    rows = [[row[name] for name in columns] for row in answer.rows]
    return Answered(Listing(columns, rows), answer.total, answer.namespaces)


def print_answer(answered: Answered, shown: Listing, output: Output, wanted: Wanted) -> int:
    """Print `shown`, or only the count. Returns: the exit code."""
    if wanted.only_count:
        click.echo(answered.total)
    else:
        emit(shown, output)
        if output.format == "table":
            _note_limits(answered, len(shown.rows))
    return EXIT_NO_MATCH if wanted.exit_code and answered.total == 0 else 0


def _note_limits(answered: Answered, shown: int) -> None:
    """On stderr, what a reader of the table should know: rows left out, namespaces that are not fully seen."""
    if shown < answered.total:
        click.echo(f"{shown} of {answered.total} rows", err=True)
    stale = sum(bool(row.get("stale")) for row in answered.namespaces)
    partial = sum(bool(row.get("partial")) for row in answered.namespaces)
    if stale or partial:
        total = len(answered.namespaces)
        click.echo(
            f"of {total} namespaces {stale} are stale, {partial} partial: see `sockscope namespaces`",
            err=True,
        )
