"""What a query answered, and the parts of printing that verbs share."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.cli.entry import EXIT_NO_MATCH
from pipeline.cli.options import flags_of
from pipeline.cli.render import Listing, emit
from pipeline.cli.wanted import Wanted

if TYPE_CHECKING:
    from pipeline.client import Client

ANSWER_TIMEOUT_S = 3.0


class Answered(NamedTuple):
    """Rows, how many matched before any limit, and the namespaces they come from (contract rows, as maps).

    `epoch` and `seq` say of which state, where the running pipeline answered. `truncated`: it left rows out by itself.
    `denied`: processes that may not be read, of which not even the namespace is known.
    """

    listing: Listing
    total: int
    namespaces: Sequence[Mapping[str, Any]]
    epoch: str = ""
    seq: int = 0
    truncated: bool = False
    denied: int = 0


def end_before_collecting() -> None:
    """No garbage collection in a process that prints once and exits.

    It would look through 100,000 rows again and again, for a third of the CPU time, and find nothing to free.
    """
    gc.disable()


def ask(runtime_dir: str | None, op: str, keys: Mapping[str, Any]) -> Answered:
    """The running pipeline's answer. `keys`: as in the contract, `where`, `fields`, `limit`, ...; empty ones count
    for nothing. Raises: NoAggregator, Refused, ConfigError."""
    end_before_collecting()
    with connect(runtime_dir) as client:
        if op == "sql":
            client.status()  # whether anybody is there is known after 3 s; what a statement takes is another matter
        return read(client, op, keys)


def connect(runtime_dir: str | None) -> Client:
    """A client of the pipeline that the options and the environment name. Raises: ConfigError."""
    from pipeline import config
    from pipeline.client import Client

    loaded = config.load(None, os.environ, flags_of(runtime_dir))
    return Client(loaded.config.agent.runtime_dir, ANSWER_TIMEOUT_S)


def read(client: Client, op: str, keys: Mapping[str, Any]) -> Answered:
    """One answer, as `ask` gives it, of a client that asks more than once."""
    given = {name: value for name, value in keys.items() if value not in (None, (), {})}
    answer = client.ask(op, **{name: list(v) if isinstance(v, tuple) else v for name, v in given.items()})
    columns = tuple(answer.columns)
    rows = [[row[name] for name in columns] for row in answer.rows]
    return Answered(
        Listing(columns, rows),
        answer.total,
        answer.namespaces,
        answer.epoch,
        answer.seq,
        answer.truncated,
        answer.denied,
    )


def exit_with(answered: Answered, wanted: Wanted) -> int:
    """The exit code after an answer that was printed."""
    return EXIT_NO_MATCH if wanted.exit_code and answered.total == 0 else 0


def print_answer(answered: Answered, shown: Listing, wanted: Wanted) -> int:
    """Print `shown`, or only the count. Returns: the exit code."""
    if wanted.count:
        click.echo(answered.total)
    else:
        emit(shown, wanted.output)
        if answered.truncated:
            click.echo(
                "sockscope: there are more rows than an answer may have: these are the first", err=True
            )
        if wanted.output.format == "table":
            note_limits(answered, len(shown.rows))
    return exit_with(answered, wanted)


def note_limits(answered: Answered, shown: int) -> None:
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
    if answered.denied:
        who = "1 process" if answered.denied == 1 else f"{answered.denied} processes"
        click.echo(f"{who} may not be read, and may hold any of these: see `sockscope probe`", err=True)
