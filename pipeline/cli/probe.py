"""`sockscope probe`: what this host allows."""

from __future__ import annotations

import os

import click

from pipeline.cli.options import check_proc_root, config_options, flags_of, output_options
from pipeline.cli.render import Listing, Output, emit, project


@click.command()
@config_options
@output_options
def probe(
    config_path: str | None,
    proc_root: str | None,
    log_level: str | None,
    output: Output,
    fields: tuple[str, ...],
) -> None:
    """Print what this host allows, tried and not guessed, and what is used instead.

    Enters every network namespace for a moment, and changes nothing.
    """
    from pipeline import config
    from pipeline.kernel.support import Feature
    from pipeline.probe import probe_host
    from pipeline.procfs.root import ProcRoot

    loaded = config.load(config_path, os.environ, flags_of(None, proc_root, log_level))
    check_proc_root(loaded.config.agent.proc_root)
    features = probe_host(ProcRoot(loaded.config.agent.proc_root))
    emit(project(Listing(Feature._fields, features), fields or Feature._fields), output)
