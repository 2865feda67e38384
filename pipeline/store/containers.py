"""What the containers are that processes and last owners name: table `container`, the contract's view `containers`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from pipeline.model.container import Container

CONTAINER_TABLES = """
-- `name`: as processes and owners have it. Kept as long as a process of that name is known.
CREATE TABLE container(name TEXT PRIMARY KEY, id TEXT, runtime TEXT, pod_uid TEXT) WITHOUT ROWID;
"""
CONTAINER_VIEW = """
CREATE VIEW containers AS SELECT t.name AS name, t.id AS id, t.runtime AS runtime, t.pod_uid AS pod_uid,
  (SELECT count(*) FROM process p WHERE p.container = t.name AND p.shown) AS processes FROM container t;
"""
_PUT = """
INSERT INTO container VALUES (?, ?, ?, ?) ON CONFLICT(name) DO UPDATE SET
id = excluded.id, runtime = excluded.runtime, pod_uid = excluded.pod_uid
WHERE (id, runtime, pod_uid) IS NOT (excluded.id, excluded.runtime, excluded.pod_uid)"""
# They come and go: without this their names would pile up.
_FORGET = "DELETE FROM container WHERE name NOT IN (SELECT container FROM process WHERE container NOT NULL)"


def write_containers(database: sqlite3.Connection, containers: Collection[Container]) -> None:
    """Within the caller's transaction, after the processes that are in them."""
    rows = [(Container(*one).name, *one) for one in containers]
    if database.executemany(_PUT, rows).rowcount > 0:
        database.execute(_FORGET)
