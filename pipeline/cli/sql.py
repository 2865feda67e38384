"""`sockscope sql`: a question that no option asks."""

from __future__ import annotations

import sys

import click

from pipeline.cli.answers import Wanted, ask, print_answer
from pipeline.cli.options import output_options, row_options, runtime_dir_option
from pipeline.cli.render import Output, project


@click.command()
@click.argument("statement")
@row_options
@output_options
@runtime_dir_option
def sql(
    statement: str,
    output: Output,
    fields: tuple[str, ...],
    limit: int | None,
    count: bool,
    exit_code: bool,
    runtime_dir: str | None,
) -> int:
    """Ask the latest state in SQL, read-only; a dash reads the STATEMENT from stdin.

    Tables: connections, owners, processes, namespaces, edges. docs/sql.md describes them.
    """
    answered = ask(runtime_dir, "sql", {"sql": sys.stdin.read() if statement == "-" else statement})
    shown = project(answered.listing, fields) if fields else answered.listing
    shown = shown._replace(rows=shown.rows[:limit])
    return print_answer(answered, shown, output, Wanted(count, exit_code))
