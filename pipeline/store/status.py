"""The one row of `status`: is the pipeline complete, how fresh, what was lost, what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline import __version__
from pipeline.store.reader import Reader
from pipeline.store.schema import AGE_S, PARTIAL

_NAMESPACE_COUNTS = f"""
SELECT count(*) AS total, coalesce(sum(stale), 0) AS stale,
  coalesce(sum({PARTIAL}), 0) AS partial, coalesce(sum(denied > 0), 0) AS denied
FROM namespace n"""
_CONNECTION_COUNTS = """
SELECT count(*), coalesce(sum(state IN ('ESTABLISHED', 'LISTEN') AND owner_role IS NOT NULL), 0),
  coalesce(sum(state IN ('ESTABLISHED', 'LISTEN') AND owner_role IS NULL), 0) FROM connection"""
_AGES = f"SELECT {AGE_S} FROM namespace n WHERE n.taken_at_s NOT NULL"
_WALK_AGES = "SELECT monotonic_s() - n.walked_at_s FROM namespace n WHERE n.walked_at_s NOT NULL"
_LOSSES = """
SELECT e.key, sum(e.value) FROM namespace n, json_each(n.health) e GROUP BY e.key
UNION ALL SELECT name, count FROM loss ORDER BY 1"""
_WORKERS = """
SELECT w.role, w.pid, w.netns, w.state, w.restarts, w.cpu_share, u.cpu_percent, u.rss_bytes, u.pss_bytes
FROM worker w LEFT JOIN usage u ON u.pid = w.pid ORDER BY w.rowid"""
_WORKER_FIELDS = (
    "role",
    "pid",
    "netns",
    "state",
    "restarts",
    "cpu_share",
    "cpu_percent",
    "rss_bytes",
    "pss_bytes",
)


def read_status(reader: Reader) -> dict[str, Any]:
    """Field -> value, in the order to show them, within `reader.moment()`.

    `ready`: every namespace was merged at least once. `namespaces`: counts of all, stale, partial and denied ones.
    `age_*`: since each namespace's connections were last proven; `owner_age_*`: since the last pass over its processes'
    descriptors ended. `budget`: None until it was measured.
    `owned` and `unowned` count established and listening connections. `losses`: the workers' counters summed, and the
    aggregator's own.
    `workers`: our own processes, usage None where not measured.
    """
    ((ready, epoch, seq, host, started_s),) = reader.rows(
        "SELECT ready, epoch, seq, host, started_s FROM meta"
    )
    (namespaces,) = reader.rows(_NAMESPACE_COUNTS)
    ((connections, owned, unowned),) = reader.rows(_CONNECTION_COUNTS)
    ages = sorted(age for (age,) in reader.rows(_AGES))
    walked = sorted(age for (age,) in reader.rows(_WALK_AGES))
    budget = reader.rows("SELECT cpu_percent, used_percent FROM budget")
    return {
        "ready": bool(ready),
        "epoch": epoch,
        "seq": seq,
        "host": host,
        "version": __version__,
        "uptime_s": reader.now_s() - started_s,
        "namespaces": dict(zip(("total", "stale", "partial", "denied"), namespaces, strict=True)),
        "connections": connections,
        "owned": owned,
        "unowned": unowned,
        "age_p50_s": _percentile(ages, 50),
        "age_p95_s": _percentile(ages, 95),
        "age_max_s": _percentile(ages, 100),
        "owner_age_p50_s": _percentile(walked, 50),
        "owner_age_max_s": _percentile(walked, 100),
        "budget": dict(zip(("cpu_percent", "used_percent"), budget[0], strict=True)) if budget else None,
        "losses": dict(reader.rows(_LOSSES)),
        "workers": [_worker(row) for row in reader.rows(_WORKERS)],
    }


def _percentile(ages_s: Sequence[float], percent: int) -> float | None:
    """The age that so many percent of these, which are in order, do not exceed; None of none."""
    return ages_s[(len(ages_s) * percent - 1) // 100] if ages_s else None


def _worker(row: tuple[Any, ...]) -> dict[str, Any]:
    worker = dict(zip(_WORKER_FIELDS, row, strict=True))
    worker["netns"] = json.loads(worker["netns"])
    return worker
