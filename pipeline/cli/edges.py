"""`sockscope edges`: which process talks to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.cli.answers import Answered, ask, exit_with, print_answer
from pipeline.cli.dot import dot
from pipeline.cli.filters import EDGE_FILTERS, filter_options, where_of
from pipeline.cli.options import runtime_dir_option
from pipeline.cli.render import Listing, cell_text, endpoint, write
from pipeline.cli.wanted import Wanted, row_options

_TABLE_COLUMNS = ("proto", "client_netns", "client", "from", "server_netns", "server", "to", "connections")
_SIDES = ("client", "server")
_DOT = "dot"


@click.command()
@filter_options(*EDGE_FILTERS)
@row_options({_DOT: "a graph for Graphviz"})
@click.option(
    "--group-by",
    "group_by",
    type=click.Choice(["container", "netns"]),
    help="One row for each pair of containers, or of network namespaces, the most connections first.",
)
@runtime_dir_option
def edges(wanted: Wanted, group_by: str | None, runtime_dir: str | None, **given: Any) -> int:
    """Print which process talks to which, both ends joined, from the running pipeline.

    A dash stands for what is outside this host or not known, a question mark where several could be the other end.
    Where addresses are translated on the way, the ends are the real ones, and the address that the client asked for
    comes after the one that it got. With --format dot it is a graph for Graphviz: sockscope edges --format dot | dot
    -Tsvg.
    """
    _check_together(wanted, group_by)
    limit = None if group_by else 0 if wanted.count else wanted.limit
    answered = ask(runtime_dir, "edges", {"where": where_of(given), "fields": wanted.fields, "limit": limit})
    if wanted.output.format == _DOT:
        write(dot(_maps(answered), _names(answered)))
        return exit_with(answered, wanted)
    if group_by:
        answered = _grouped(answered, group_by, wanted.limit)
        return print_answer(answered, answered.listing, wanted)
    as_people_read = wanted.output.format == "table" and not wanted.fields and not wanted.count
    shown = _table_view(answered) if as_people_read else answered.listing
    return print_answer(answered, shown, wanted)


def _check_together(wanted: Wanted, group_by: str | None) -> None:
    chosen = {
        "--format dot": wanted.output.format == _DOT,
        "--group-by": group_by,
        "--fields": wanted.fields,
        "--count": wanted.count,
    }
    for one, other in (("--format dot", "--group-by"), ("--format dot", "--fields"), ("--format dot", "--count"),
                       ("--group-by", "--fields")):  # fmt: skip
        if chosen[one] and chosen[other]:
            raise click.UsageError(f"{one} and {other} exclude each other.")


def _maps(answered: Answered) -> list[dict[str, Any]]:
    return [dict(zip(answered.listing.columns, row, strict=True)) for row in answered.listing.rows]


def _names(answered: Answered) -> dict[int, str | None]:
    return {row["netns"]: row["name"] for row in answered.namespaces}


def _grouped(answered: Answered, by: str, limit: int | None) -> Answered:
    """One row for each pair of namespaces, or of containers in them: client's and server's, and what is between."""
    keys = ("netns",) if by == "netns" else ("netns", "container")
    names = _names(answered)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for edge in _maps(answered):
        pair = tuple(_value(edge[side], key, names) for side in _SIDES for key in keys)
        groups.setdefault((*pair, edge["proto"]), []).append(edge)
    rows = [
        (*pair, len(found), sum(edge["connections"] for edge in found), min(edge["first_seen"] for edge in found),
         max(edge["last_seen"] for edge in found)) for pair, found in groups.items()
    ]  # fmt: skip
    counted = len(keys) * len(_SIDES) + 2
    rows.sort(key=lambda row: (-row[counted], repr(row)))
    columns = (*(f"{side}_{key}" for side in _SIDES for key in keys),
               "proto", "edges", "connections", "first_seen", "last_seen")  # fmt: skip
    return answered._replace(listing=Listing(columns, rows[:limit]), total=len(rows))


def _value(end: Mapping[str, Any], key: str, names: Mapping[int, str | None]) -> Any:
    """A namespace by its name if it has one; None of what is outside."""
    return names.get(end["netns"]) or end["netns"] if key == "netns" else end[key]


def _table_view(answered: Answered) -> Listing:
    names = _names(answered)
    rows = []
    for edge in _maps(answered):
        client, server = (_end(edge[side], names, edge["ambiguous"]) for side in _SIDES)
        rows.append(
            (edge["proto"], *client, *server[:2], server[2] + _asked(edge["nat"]), edge["connections"])
        )
    return Listing(_TABLE_COLUMNS, rows)


def _end(end: Mapping[str, Any], names: Mapping[int, str | None], ambiguous: Any) -> Sequence[str]:
    """Namespace, process, address of one end."""
    netns = names.get(end["netns"]) or end["netns"]
    who = "-" if end["pid"] is None else f"{end['pid']}/{end['comm']}"
    if end["pid"] is None and end["netns"] is None and ambiguous:
        who = "?"
    return cell_text(netns), cell_text(who), endpoint(end["addr"], end["port"])


def _asked(nat: Mapping[str, Any] | None) -> str:
    if nat is None:
        return ""
    asked, got = ((way["dst"], way["dport"]) for way in (nat["original"], nat["translated"]))
    return "" if asked == got else f" (as {endpoint(*asked)})"
