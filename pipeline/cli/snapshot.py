"""`sockscope snapshot`: one walk without a running pipeline."""

from __future__ import annotations

import logging
import os
from typing import Any

import click

from pipeline.cli.answers import Answered, end_before_collecting, print_answer
from pipeline.cli.connections import View
from pipeline.cli.filters import CONNECTION_FILTERS, filter_options, where_of
from pipeline.cli.options import (
    check_proc_root,
    config_options,
    ebpf_option,
    flags_of,
    only_netns_option,
)
from pipeline.cli.render import Listing
from pipeline.cli.wanted import Wanted, row_options
from pipeline.config import Config, Loaded, load
from pipeline.errors import Denied, Refused
from pipeline.model.printable import printable


@click.command()
# --netns limits the walk itself, and may be repeated like any filter.
@filter_options(*(name for name in CONNECTION_FILTERS if name != "netns"))
@only_netns_option
@row_options()
@config_options
@ebpf_option
@click.option("--strict", is_flag=True, help="Exit with 4 where not every process may be read.")
def snapshot(
    only_netns: tuple[str, ...],
    wanted: Wanted,
    config_path: str | None,
    proc_root: str | None,
    log_level: str | None,
    ebpf: str | None,
    strict: bool,
    **given: Any,
) -> int:
    """Walk every namespace once, unpaced, and print the connections with their owners.

    As an ordinary user it sees that user's processes only, and says so.
    """
    loaded = load(config_path, os.environ, flags_of(None, proc_root, log_level, ebpf))
    check_proc_root(loaded.config.agent.proc_root)
    _start_log(loaded)
    view = View(wanted.output, wanted.fields, wanted.count)
    request: dict[str, Any] = {"op": "connections", "where": where_of(given)}
    if view.asked():
        request["fields"] = list(view.asked())
    if wanted.count or wanted.limit is not None:
        request["limit"] = 0 if wanted.count else wanted.limit
    # What eBPF tells needs other rights than reading processes: whether it did is known afterwards.
    missing = _missing_rights(strict and loaded.config.ebpf.mode == "off")
    answered, denied, by_kernel = _take(loaded.config, only_netns, request)
    if not by_kernel:
        _report_denied(denied, missing, strict)
    return print_answer(answered, view.shown(answered.listing), wanted)


def _start_log(loaded: Loaded) -> None:
    # What a pipeline notes once at its start would come before every table here: only if asked for.
    asked = loaded.origin["agent.log_level"] != "default"
    logging.basicConfig(
        level=loaded.config.agent.log_level.upper() if asked else "WARNING", handlers=[_Stderr()]
    )


class _Stderr(logging.Handler):
    """Log records as the command's other remarks: one printable line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        netns = getattr(record, "netns", None)
        where = f"netns {netns}: " if netns is not None else ""
        click.echo(f"sockscope: {where}{printable(record.getMessage())}", err=True)


def _missing_rights(strict: bool) -> str:
    """The capabilities that we lack, in words. Raises: Denied where there are any, with `strict`."""
    from pipeline.roles.rights import missing_rights

    missing = missing_rights()
    if missing and strict:
        raise Denied("not every process may be read", missing)
    return missing


def _take(
    settings: Config, only_netns: tuple[str, ...], request: dict[str, Any]
) -> tuple[Answered, int, bool]:
    """One walk, the answer to `request` on it, how many processes may not be read, and whether eBPF told.

    Raises: Refused for a filter or field that is not known.
    """
    from pipeline import query
    from pipeline.roles import foreground

    end_before_collecting()
    taken = foreground.take(settings, only_netns)
    if only_netns and not taken.looks:
        click.echo(f"sockscope: no namespace is called {printable(' or '.join(only_netns))}", err=True)
    denied = taken.denied + sum(look.denied for look in taken.looks)
    join = taken.join()
    if not taken.flows and (joined := query.answer_joined(join, request)) is not None:
        namespaces = [
            {"netns": one.netns, "stale": one.stale, "partial": one.denied > 0 or one.walked_at_s is None}
            for one in join.seen
        ]
        listing = Listing(joined["columns"], joined["rows"])
        return Answered(listing, joined["total"], namespaces), denied, taken.by_kernel
    answer = query.answer(taken.store().reader(), request)
    if not answer["ok"]:
        raise Refused(answer["error"]["message"], answer["error"]["code"])
    listing = Listing(answer["columns"], answer["rows"])
    return Answered(listing, answer["total"], answer["namespaces"]), denied, taken.by_kernel


def _report_denied(denied: int, missing: str, strict: bool) -> None:
    """Say on stderr what could not be read. Raises: Denied with `strict`."""
    if strict and (denied or missing):
        raise Denied(
            f"{_processes(denied)} may not be read" if denied else "not every process may be read", missing
        )
    if denied or missing:
        why = f"missing {missing}" if missing else "the kernel refuses in spite of all capabilities"
        what = f"{_processes(denied)} may not be read" if denied else "not every process may be read"
        click.echo(f"sockscope: {what} ({why}): what they hold is shown without them", err=True)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
