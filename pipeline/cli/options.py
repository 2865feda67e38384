"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from pipeline.cli.completion import netns_names
from pipeline.cli.render import Output

Verb = TypeVar("Verb", bound=Callable[..., Any])


def output_options(verb: Verb) -> Verb:
    """--format, --json, --fields, --no-header, in the verb as `output: Output` and `fields: tuple[str, ...]`."""
    return _output_options(verb, {})


def output_options_with(formats: Mapping[str, str]) -> Callable[[Verb], Verb]:
    """`output_options` with more formats: their names, and what each is."""
    return lambda verb: _output_options(verb, formats)


def _output_options(verb: Verb, more: Mapping[str, str]) -> Verb:
    described = "".join(f", {name}: {what}" for name, what in more.items())
    return _all(
        verb,
        click.option("--format", "output", type=click.Choice(["table", "json", "jsonl", *more]), default="table",
                     help=f"table (default), json: one array, jsonl: one object a line{described}.",
                     callback=lambda ctx, _, value: _output(ctx, value)),
        click.option("--json", "as_json", is_flag=True, is_eager=True, expose_value=False,
                     callback=_remember, help="The same as --format json."),
        click.option("--no-header", "no_header", is_flag=True, is_eager=True, expose_value=False,
                     callback=_remember, help="A table without its first line."),
        click.option("--fields", metavar="A,B,C", callback=split_names, help="These columns, in this order."),
    )  # fmt: skip


def runtime_dir_option(verb: Verb) -> Verb:
    """--runtime-dir as an absolute path, or None where it is not given."""
    return click.option(
        "--runtime-dir", metavar="D", callback=_absolute,
        help="Directory of the running pipeline (else SOCKSCOPE_RUNTIME_DIR, else /run/sockscope).",
    )(verb)  # fmt: skip


def config_options(verb: Verb) -> Verb:
    """--config, --proc-root, --log-level: what sets a key on the command line, beside --runtime-dir."""
    return _all(
        verb,
        click.option("--config", "config_path", metavar="F", help="Settings file (TOML)."),
        click.option("--proc-root", metavar="P", callback=_absolute, help="Read this proc file system."),
        click.option("--log-level", metavar="L", help="debug, info, warning or error."),
    )


def only_netns_option(verb: Verb) -> Verb:
    """--netns, repeatable, as `only_netns: tuple[str, ...]`."""
    return click.option(
        "--netns", "only_netns", metavar="NAME|INODE", multiple=True,
        help="Only this namespace; may be repeated.", shell_complete=netns_names,
    )(verb)  # fmt: skip


def ebpf_option(verb: Verb) -> Verb:
    """--ebpf as `ebpf: str | None`, None where it is not given."""
    return click.option(
        "--ebpf", type=click.Choice(["off", "auto", "require"]),
        help="Let the kernel tell by eBPF instead of reading processes: not (off), where it can, or nothing else.",
    )(verb)  # fmt: skip


def duration_option(verb: Verb) -> Verb:
    """--duration as seconds, or None where it is not given."""
    return click.option(
        "--duration", type=click.FloatRange(min=0, min_open=True), metavar="S", callback=_number,
        help="Stop after S seconds.",
    )(verb)  # fmt: skip


def flags_of(
    runtime_dir: str | None = None,
    proc_root: str | None = None,
    log_level: str | None = None,
    ebpf: str | None = None,
) -> dict[str, str | None]:
    """The settings given on the command line, as `pipeline.config.load` takes them."""
    return {
        "agent.runtime_dir": runtime_dir,
        "agent.proc_root": proc_root,
        "agent.log_level": log_level,
        "ebpf.mode": ebpf,
    }


def split_names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    """An option's callback: the names in "a,b,c", none where it is not given."""
    if value is None:
        return ()
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise click.BadParameter("name at least one column.")
    return names


def check_proc_root(path: str) -> None:
    """Raises: ConfigError where `path` shows no process: it would look like a host without connections."""
    from pipeline.errors import ConfigError, SockscopeError
    from pipeline.procfs.processes import list_pids
    from pipeline.procfs.root import ProcRoot

    try:
        if list_pids(ProcRoot(path)):
            return
    except SockscopeError:
        pass  # said below: to list it is all that was asked
    raise ConfigError(
        f"agent.proc_root = {path!r} shows no process", "the path of a mounted proc file system"
    )


def _all(verb: Verb, *decorators: Callable[[Verb], Verb]) -> Verb:
    for decorate in reversed(decorators):
        verb = decorate(verb)
    return verb


def _remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    ctx.meta[f"sockscope.{option.name}"] = value


def _output(ctx: click.Context, chosen: str) -> Output:
    if ctx.meta["sockscope.as_json"]:
        chosen = "json"
    return Output(format=chosen, header=not ctx.meta["sockscope.no_header"])


def _absolute(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    # An empty path is left to the settings' own check: abspath("") would be the current directory.
    return os.path.abspath(value) if value else value


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    # "nan" passes the range, since it compares with nothing, and would never be over.
    if value is not None and math.isnan(value):
        raise click.BadParameter("'nan' is no number of seconds.")
    return value
