"""`sockscope sql`: a question that no option asks."""

from __future__ import annotations

import sys

import click

from pipeline.cli.answers import ask, print_answer
from pipeline.cli.options import runtime_dir_option
from pipeline.cli.render import project
from pipeline.cli.wanted import Wanted, row_options


@click.command()
@click.argument("statement")
@row_options()
@runtime_dir_option
def sql(statement: str, wanted: Wanted, runtime_dir: str | None) -> int:
    """Ask the latest state in SQL, read-only; a dash reads the STATEMENT from stdin.

    Tables: connections, owners, processes, namespaces, edges, closed, containers. docs/sql.md describes them.
    """
    answered = ask(runtime_dir, "sql", {"sql": sys.stdin.read() if statement == "-" else statement})
    shown = project(answered.listing, wanted.fields) if wanted.fields else answered.listing
    return print_answer(answered, shown._replace(rows=shown.rows[: wanted.limit]), wanted)
