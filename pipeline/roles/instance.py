"""The pipeline from its start to its end: what one instance takes hold of, in order, and lets go again."""

from __future__ import annotations

import logging
import os
import resource

from pipeline.clock import SystemClock
from pipeline.config import Loaded, group_id
from pipeline.errors import Denied
from pipeline.roles.child import assert_forking
from pipeline.roles.log_relay import start_relay
from pipeline.roles.rights import missing_rights
from pipeline.roles.runtime_dir import RuntimeDir
from pipeline.roles.supervisor import Supervisor
from pipeline.segment import InstanceFolder, sweep

_log = logging.getLogger(__name__)


def run(
    loaded: Loaded, *, only_netns: tuple[str, ...] = (), duration_s: float | None = None, strict: bool = False
) -> int:
    """The whole pipeline, until a signal or for `duration_s`; returns the exit code.

    Raises: Taken, Denied, ConfigError, when it cannot start.
    """
    config = loaded.config
    gid = group_id(config)
    assert_forking()
    missing = missing_rights()
    if missing and strict:
        raise Denied(f"not every process may be read: missing {missing}", missing)
    _raise_file_limit()
    runtime_dir = RuntimeDir.acquire(config.agent.runtime_dir, gid)
    folder = None
    try:
        swept = sweep()
        folder = InstanceFolder.create(gid=gid)
        runtime_dir.link_segments(folder.path)
        relay = start_relay(config.agent.log_level, config.agent.log_file or None)
        try:
            if swept:
                _log.info("removed the segments of %d instances that were killed", len(swept))
            if missing:
                _log.warning(
                    "only processes of user %d can be read in full: missing %s", os.geteuid(), missing
                )
            Supervisor(config, only_netns, runtime_dir, folder, relay.records.reader_fd, SystemClock()).run(
                duration_s
            )
        finally:
            relay.stop()
    finally:
        if folder is not None:
            folder.remove()
        runtime_dir.release()
    return 0


def _raise_file_limit() -> None:
    """A supervisor holds some six fds per worker."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
