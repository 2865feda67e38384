"""`sockscope connections`, and the table of connections that `snapshot` prints too."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from pipeline.cli.answers import Wanted, ask, print_answer
from pipeline.cli.filters import CONNECTION_FILTERS, filter_options, where_of
from pipeline.cli.options import output_options, row_options, runtime_dir_option
from pipeline.cli.render import Listing, Output

# What the default table is made of: asked for instead of all columns, since a table shows no more.
TABLE_FIELDS = (
    "netns", "netns_name", "proto", "state", "local_addr", "local_port", "remote_addr", "remote_port",
    "direction", "owners",
)  # fmt: skip
_TABLE_COLUMNS = ("netns", "proto", "state", "local", "remote", "direction", "owners")


@click.command()
@filter_options(*CONNECTION_FILTERS)
@row_options
@output_options
@runtime_dir_option
def connections(
    output: Output,
    fields: tuple[str, ...],
    limit: int | None,
    count: bool,
    exit_code: bool,
    runtime_dir: str | None,
    **given: Any,
) -> int:
    """Print connections with their owners, from the running pipeline."""
    view = View(output, fields, count)
    answered = ask(
        runtime_dir, "connections", where=where_of(given), fields=view.asked(), limit=0 if count else limit
    )
    return print_answer(answered, view.shown(answered.listing), output, Wanted(count, exit_code))


class View(NamedTuple):
    """Which columns of connections to ask for, and how they are shown."""

    output: Output
    fields: tuple[str, ...]
    only_count: bool

    def asked(self) -> tuple[str, ...]:
        """The fields to ask for; none means all of them."""
        if self.only_count:
            return ("netns",)
        return self.fields or (TABLE_FIELDS if self.output.format == "table" else ())

    def shown(self, listing: Listing) -> Listing:
        """What to print of an answer with the fields `asked`."""
        return table_view(listing) if self.asked() == TABLE_FIELDS and not self.fields else listing


def table_view(listing: Listing) -> Listing:
    """Rows of TABLE_FIELDS as a person reads them: the namespace's name if it has one, address and port joined."""
    rows = []
    for netns, name, proto, state, local, local_port, remote, remote_port, direction, owners in listing.rows:
        ends = (_endpoint(local, local_port), _endpoint(remote, remote_port))
        rows.append((name or netns, proto, state, *ends, direction, owners))
    # Answers come in the order in which rows came into being; a reader wants each namespace in one piece.
    rows.sort(key=lambda row: str(row[0]))
    return Listing(_TABLE_COLUMNS, rows)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
