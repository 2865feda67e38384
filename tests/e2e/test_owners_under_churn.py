"""Owners while connections come and go and descriptors are shared, against ss just before and just after each answer.

The whole of it, 20 namespaces for minutes, is `scripts/bench owners`; here it is small, and what counts as settled is
older, so that a busy machine changes nothing. Passes are far apart: what a search misses stays missed.
"""

from __future__ import annotations

from pathlib import Path

from scripts.benchmarks.load import load
from scripts.benchmarks.owners import watch
from tests.e2e.host import pipeline, quick, seconds_until
from tests.live import needs_root

NAMESPACES, PROCESSES, SOCKETS = 2, 3, 23


@needs_root
def test_settled_connections_have_their_owner_and_nobody_else_under_churn(tmp_path: Path) -> None:
    with load(NAMESPACES, PROCESSES, SOCKETS, other_fds=7, churn=3.0, shared_fds=4) as made:
        config = quick(Path("/run/netns"), made.pattern).replace("target_s = 2", "target_s = 60")
        with pipeline(tmp_path, config=config) as running:
            seconds_until(running.is_ready, 30.0, "ready")
            paths = dict(zip(made.inodes, made.paths, strict=True))
            verdict = watch(str(running.runtime_dir), paths, seconds=14.0, settled_s=5.0)
    assert verdict.compared > verdict.old > 0, verdict
    assert verdict.wrong == []
    assert (verdict.old_unowned, verdict.old_absent) == (0, 0), verdict
