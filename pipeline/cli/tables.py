"""`sockscope namespaces`, `processes` and `status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from pipeline.cli.answers import ask, print_answer
from pipeline.cli.entry import EXIT_FAILED
from pipeline.cli.filters import NAMESPACE_FILTERS, PROCESS_FILTERS, filter_options, where_of
from pipeline.cli.options import output_options, runtime_dir_option
from pipeline.cli.render import Listing, Output, emit
from pipeline.cli.top import TOP_BY, Top
from pipeline.cli.wanted import Wanted, row_options

_NAMESPACE_TABLE = (
    "netns", "name", "processes", "connections", "source", "state", "age_s", "stale", "partial", "denied",
)  # fmt: skip


@click.command()
@filter_options(*NAMESPACE_FILTERS)
@row_options()
@runtime_dir_option
def namespaces(wanted: Wanted, runtime_dir: str | None, **given: Any) -> int:
    """Print the network namespaces and how fresh each is, from the running pipeline."""
    asked = wanted.fields or (_NAMESPACE_TABLE if wanted.output.format == "table" else ())
    return _print(runtime_dir, "namespaces", where_of(given), replace(wanted, fields=asked))


@click.command()
@filter_options(*PROCESS_FILTERS)
@row_options()
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the N with the most.")
@click.option(
    "--by",
    type=click.Choice(list(TOP_BY)),
    default="connections",
    help="The most of what, for --top; bytes need tables.tcp_info.",
)
@runtime_dir_option
def processes(wanted: Wanted, top: int | None, by: str, runtime_dir: str | None, **given: Any) -> int:
    """Print the processes that hold sockets, from the running pipeline."""
    if top is not None:
        if wanted.limit is not None or wanted.count:
            raise click.UsageError("--top excludes --limit and --count.")
        ranking = Top(by, top, wanted.fields)
        answered = ask(runtime_dir, "processes", {"where": where_of(given), "fields": ranking.asked})
        shown = ranking.shown(answered.listing)
        return print_answer(answered._replace(total=len(shown.rows)), shown, wanted)
    return _print(runtime_dir, "processes", where_of(given), wanted)


@click.command()
@output_options
@runtime_dir_option
def status(output: Output, fields: tuple[str, ...], runtime_dir: str | None) -> int:
    """Print freshness, losses and workers of the running pipeline.

    Exits with 0 once the first state is merged, with 1 before.
    """
    listing = ask(runtime_dir, "status", {"fields": ("ready", *fields) if fields else ()}).listing
    state = dict(zip(listing.columns, listing.rows[0], strict=True))
    ready = bool(state["ready"])
    if fields:
        state = {name: state[name] for name in fields}
    if output.format != "table":
        emit(Listing(tuple(state), [tuple(state.values())]), output)
    else:
        _emit_status(state, output)
    return 0 if ready else EXIT_FAILED


def _print(runtime_dir: str | None, op: str, where: dict[str, Any], wanted: Wanted) -> int:
    asked = {"limit": 0} if wanted.count else {"fields": wanted.fields, "limit": wanted.limit}
    answered = ask(runtime_dir, op, {"where": where, **asked})
    return print_answer(answered, answered.listing, wanted)


def _emit_status(state: Mapping[str, Any], output: Output) -> None:
    """One line for each value, nested ones as outer.inner; then a table for each list of maps (the workers)."""
    tables = {name: value for name, value in state.items() if _is_table(value)}
    values = {name: value for name, value in state.items() if name not in tables}
    if values:
        emit(Listing(("what", "value"), list(_flat(values, ""))), output)
    for rows in tables.values():
        columns = tuple(rows[0])
        click.echo()
        emit(Listing(columns, [[row.get(name) for name in columns] for row in rows]), output)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
