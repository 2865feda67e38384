"""`sockscope connections`, and the table of connections that `snapshot` prints too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from pipeline.cli.answers import Answered, ask, exit_with, note_limits, print_answer
from pipeline.cli.explain import emit_explained
from pipeline.cli.filters import CONNECTION_FILTERS, filter_options, where_of
from pipeline.cli.groups import BY_PROCESS, groups_of
from pipeline.cli.options import runtime_dir_option, split_names
from pipeline.cli.render import Listing, Output, endpoint
from pipeline.cli.wanted import Wanted, row_options
from pipeline.cli.watch import watch as follow

# What the default table is made of: asked for instead of all columns, since a table shows no more.
TABLE_FIELDS = (
    "netns", "netns_name", "proto", "state", "local_addr", "local_port", "remote_addr", "remote_port",
    "direction", "owners",
)  # fmt: skip
# The same of those that ended.
CLOSED_FIELDS = (
    "netns", "netns_name", "proto", "local_addr", "local_port", "remote_addr", "remote_port", "direction",
    "pid", "comm", "duration_s", "bytes_sent", "bytes_received",
)  # fmt: skip
_CLOSED_COLUMNS = (
    "netns", "proto", "local", "remote", "direction", "owner", "duration_s", "sent", "received",
)  # fmt: skip
_TABLE_COLUMNS = ("netns", "proto", "state", "local", "remote", "direction", "owners")


@click.command()
@filter_options(*CONNECTION_FILTERS)
@row_options()
@click.option(
    "--closed", is_flag=True, help="Those that ended a moment ago instead, with who owned them last."
)
@click.option("--watch", is_flag=True, help="Show them again after each change, until Ctrl-C.")
@click.option(
    "--group-by",
    "group_by",
    metavar="FIELD[,FIELD]",
    callback=split_names,
    help="Count them by the values of these fields, the most first; pid, comm and container are the first owner's.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the N largest groups; without --group-by, of one process each.",
)
@click.option("--explain", is_flag=True, help="Say of each (100 unless --limit) why this owner, or why none.")
@runtime_dir_option
def connections(
    wanted: Wanted,
    closed: bool,
    watch: bool,
    group_by: tuple[str, ...],
    top: int | None,
    explain: bool,
    runtime_dir: str | None,
    **given: Any,
) -> int:
    """Print connections with their owners, from the running pipeline.

    With --watch, a terminal is redrawn in place. Elsewhere each change prints a block: the table and an empty line,
    with --format json an array on a line, with jsonl an object with epoch, seq, total and rows.
    """
    _check_together({
        "--watch": watch, "--closed": closed, "--explain": explain, "--count": wanted.count,
        "--fields": wanted.fields, "--group-by or --top": group_by or top, "--exit-code": wanted.exit_code,
    })  # fmt: skip
    where = where_of(given)
    if explain:
        return _explain(runtime_dir, where, wanted)
    groups = groups_of(group_by or BY_PROCESS, top or wanted.limit) if group_by or top else None
    fields = groups.fields if groups else wanted.fields
    view = View(wanted.output, fields, wanted.count and groups is None, closed)
    # Groups are made of all rows; a limit is one of theirs.
    limit = 0 if view.only_count else None if groups else wanted.limit
    keys = {"where": where, "fields": view.asked(), "limit": limit}
    if closed:
        keys["closed"] = True
    shaped = groups.shown if groups else view.shown_answer
    if watch:
        return follow(runtime_dir, keys, shaped, wanted.output)
    answered = shaped(ask(runtime_dir, "connections", keys))
    return print_answer(answered, answered.listing, wanted)


# Each pair that makes no sense together.
_EXCLUDE = [
    ("--closed", "--watch"), ("--closed", "--explain"),
    ("--watch", "--explain"), ("--watch", "--count"), ("--watch", "--exit-code"), ("--explain", "--count"),
    ("--explain", "--group-by or --top"), ("--group-by or --top", "--fields"),
]  # fmt: skip


def _check_together(given: Mapping[str, object]) -> None:
    for one, other in _EXCLUDE:
        if given[one] and given[other]:
            raise click.UsageError(f"{one} and {other} exclude each other.")


def _explain(runtime_dir: str | None, where: dict[str, Any], wanted: Wanted) -> int:
    keys = {"where": where, "fields": wanted.fields, "limit": wanted.limit}
    answered = ask(runtime_dir, "explain", keys)
    if wanted.output.format == "table" and not wanted.fields:
        emit_explained(answered.listing)
        note_limits(answered, len(answered.listing.rows))
        return exit_with(answered, wanted)
    return print_answer(answered, answered.listing, wanted)


class View(NamedTuple):
    """Which columns of connections to ask for, and how they are shown."""

    output: Output
    fields: tuple[str, ...]
    only_count: bool
    closed: bool = False

    def asked(self) -> tuple[str, ...]:
        """The fields to ask for; none means all of them."""
        if self.only_count:
            return ("netns",)
        whole = CLOSED_FIELDS if self.closed else TABLE_FIELDS
        return self.fields or (whole if self.output.format == "table" else ())

    def shown_answer(self, answered: Answered) -> Answered:
        return answered._replace(listing=self.shown(answered.listing))

    def shown(self, listing: Listing) -> Listing:
        """What to print of an answer with the fields `asked`."""
        if self.fields or self.only_count or self.output.format != "table":
            return listing
        return closed_view(listing) if self.closed else table_view(listing)


def closed_view(listing: Listing) -> Listing:
    """Rows of CLOSED_FIELDS as a person reads them, the latest last."""
    rows = []
    for row in listing.rows:
        netns, name, proto, local, local_port, remote, remote_port, direction, pid, comm, *rest = row
        duration_s, sent, received = rest
        owner = None if pid is None else f"{pid}/{comm or '?'}"
        lasted = None if duration_s is None else round(duration_s, 3)
        ends = (endpoint(local, local_port), endpoint(remote, remote_port))
        rows.append((name or netns, proto, *ends, direction, owner, lasted, sent, received))
    return Listing(_CLOSED_COLUMNS, rows)


def table_view(listing: Listing) -> Listing:
    """Rows of TABLE_FIELDS as a person reads them: the namespace's name if it has one, address and port joined."""
    rows = []
    for netns, name, proto, state, local, local_port, remote, remote_port, direction, owners in listing.rows:
        ends = (endpoint(local, local_port), endpoint(remote, remote_port))
        rows.append((name or netns, proto, state, *ends, direction, owners))
    # Answers come in the order in which rows came into being; a reader wants each namespace in one piece.
    rows.sort(key=lambda row: str(row[0]))
    return Listing(_TABLE_COLUMNS, rows)
