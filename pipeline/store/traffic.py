"""What connections have carried, where workers ask for it (tables.tcp_info): table `traffic`.

Apart from the connections' rows: figures of all of them change all the time, and nobody is told of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable

from pipeline.model.connection import SocketKey
from pipeline.model.traffic import Figures, Traffic

TRAFFIC_TABLES = """
CREATE TABLE traffic(
  netns INTEGER, key, bytes_sent INTEGER, bytes_received INTEGER, rtt_us INTEGER, retransmits INTEGER,
  PRIMARY KEY(netns, key)) WITHOUT ROWID;
"""
_PUT = "INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?, ?, ?)"
_DROP = "DELETE FROM traffic WHERE netns = ? AND key = ?"
_DROP_ALL = "DELETE FROM traffic WHERE netns = ?"
_ANY = "SELECT EXISTS (SELECT 1 FROM traffic WHERE netns = ?)"
# Figure -> SQL for a row of `connection c`; NULL where none is known.
CONNECTION_FIGURES = {
    name: f"(SELECT t.{name} FROM traffic t WHERE t.netns = c.netns AND t.key = c.key)"
    for name in Figures._fields
}
# The sums over the connections that process `p` holds, each once; NULL where no figure is known of any.
PROCESS_FIGURES = {
    name: f"(SELECT sum(t.{name}) FROM connection c JOIN traffic t ON t.netns = c.netns AND t.key = c.key"
    " WHERE c.inode IN (SELECT h.inode FROM holding h WHERE h.pid = p.pid AND h.start_ticks = p.start_ticks"
    " AND h.inode <> 0))"
    for name in ("bytes_sent", "bytes_received", "retransmits")
}


def write_traffic(
    database: sqlite3.Connection,
    netns: int,
    news: Collection[Traffic],
    gone: Iterable[SocketKey],
    *,
    whole: bool,
) -> None:
    """Within the caller's transaction. `whole`: the news are all there is of the namespace. `gone`: connections."""
    (known,) = database.execute(_ANY, (netns,)).fetchone()
    if known:
        if whole:
            database.execute(_DROP_ALL, (netns,))
        database.executemany(_DROP, ((netns, key) for key in gone))
    database.executemany(_PUT, ((netns, *one) for one in news))
