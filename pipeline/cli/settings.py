"""`sockscope config`: the effective settings."""

from __future__ import annotations

import os

import click

from pipeline import config as settings
from pipeline.cli.options import config_options, flags_of, output_options, runtime_dir_option
from pipeline.cli.render import Listing, Output, emit, project

_COLUMNS = ("key", "value", "origin", "default", "allowed")
_TABLE_COLUMNS = ("key", "value", "origin")


@click.command()
@config_options
@runtime_dir_option
@output_options
def config(
    config_path: str | None,
    proc_root: str | None,
    log_level: str | None,
    runtime_dir: str | None,
    output: Output,
    fields: tuple[str, ...],
) -> None:
    """Print the effective settings and where each value came from."""
    loaded = settings.load(config_path, os.environ, flags_of(runtime_dir, proc_root, log_level))
    rows = []
    for key in settings.KEYS.values():
        section, name = key.name.split(".")
        value = getattr(getattr(loaded.config, section), name)
        shown = list(value) if isinstance(value, tuple) else value
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        rows.append((key.name, shown, loaded.origin[key.name], default, settings.range_text(key)))
    columns = fields or (_TABLE_COLUMNS if output.format == "table" else _COLUMNS)
    emit(project(Listing(_COLUMNS, rows), columns), output)
