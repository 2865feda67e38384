"""`sockscope edges`: which process talks to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.cli.answers import Answered, Wanted, ask, print_answer
from pipeline.cli.filters import EDGE_FILTERS, filter_options, where_of
from pipeline.cli.options import output_options, row_options, runtime_dir_option
from pipeline.cli.render import Listing, Output, cell_text, endpoint

_TABLE_COLUMNS = ("proto", "client_netns", "client", "from", "server_netns", "server", "to", "connections")


@click.command()
@filter_options(*EDGE_FILTERS)
@row_options
@output_options
@runtime_dir_option
def edges(
    output: Output,
    fields: tuple[str, ...],
    limit: int | None,
    count: bool,
    exit_code: bool,
    runtime_dir: str | None,
    **given: Any,
) -> int:
    """Print which process talks to which, both ends joined, from the running pipeline.

    A dash stands for what is outside this host or not known, a question mark where several could be the other end.
    """
    keys = {"where": where_of(given), "fields": fields, "limit": 0 if count else limit}
    answered = ask(runtime_dir, "edges", keys)
    as_people_read = output.format == "table" and not fields and not count
    shown = _table_view(answered) if as_people_read else answered.listing
    return print_answer(answered, shown, output, Wanted(count, exit_code))


def _table_view(answered: Answered) -> Listing:
    names = {row["netns"]: row["name"] for row in answered.namespaces}
    rows = []
    for values in answered.listing.rows:
        edge = dict(zip(answered.listing.columns, values, strict=True))
        ends = [
            cell for end in ("client", "server") for cell in _end(edge[end], names, edge.get("ambiguous"))
        ]
        rows.append((edge["proto"], *ends, edge["connections"]))
    return Listing(_TABLE_COLUMNS, rows)


def _end(end: Mapping[str, Any], names: Mapping[int, str | None], ambiguous: Any) -> Sequence[str]:
    """Namespace, process, address of one end."""
    netns = names.get(end["netns"]) or end["netns"]
    who = "-" if end["pid"] is None else f"{end['pid']}/{end['comm']}"
    if end["pid"] is None and end["netns"] is None and ambiguous:
        who = "?"
    return cell_text(netns), cell_text(who), endpoint(end["addr"], end["port"])
