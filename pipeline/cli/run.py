"""`sockscope run`: the pipeline in the foreground."""

from __future__ import annotations

import os
import signal

import click

from pipeline.cli.options import (
    check_proc_root,
    config_options,
    duration_option,
    ebpf_option,
    flags_of,
    only_netns_option,
    runtime_dir_option,
)


@click.command()
@config_options
@runtime_dir_option
@only_netns_option
@ebpf_option
@duration_option
@click.option("--strict", is_flag=True, help="Exit with 4 where not every process may be read.")
def run(
    config_path: str | None,
    proc_root: str | None,
    log_level: str | None,
    runtime_dir: str | None,
    only_netns: tuple[str, ...],
    ebpf: str | None,
    duration: float | None,
    strict: bool,
) -> int:
    """Run the whole pipeline in the foreground.

    Logs go to stderr. As an ordinary user it sees that user's processes only, and says so.
    """
    from pipeline import config
    from pipeline.roles import instance

    loaded = config.load(config_path, os.environ, flags_of(runtime_dir, proc_root, log_level, ebpf))
    check_proc_root(loaded.config.agent.proc_root)
    # Until the supervisor takes signals itself, SIGTERM unwinds as Ctrl-C does: it would leave the segments' folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return instance.run(loaded, only_netns=only_netns, duration_s=duration, strict=strict)
    except KeyboardInterrupt:
        return 0  # stopped before it had begun: as any other stop
