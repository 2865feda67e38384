"""Tables, which are private, and views, which carry the contract's names; all reading shares one list of columns.

Stored tables are named in the singular (`connection`), the contract's views in the plural (`connections`).
Times in tables are CLOCK_MONOTONIC seconds; the views add the offset to Unix time that `meta` keeps, so a step of
the wall clock changes one row.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.store.traffic import CONNECTION_FIGURES, PROCESS_FIGURES

# Not accepted yet: in the queue of a listener, where no process has a descriptor of it.
WAITING = "inode = 0 AND state IN ('ESTABLISHED', 'SYN_RECV', 'CLOSE_WAIT')"
# With an inode, but nobody was ever known to hold it.
UNHELD = "owner_role IS NULL AND inode <> 0 AND last_pid IS NULL"

TABLES = f"""
-- `log_from_seq`: the first commit whose images `past` has, and those of all since; NULL: none are kept.
CREATE TABLE meta(
  epoch TEXT NOT NULL, host TEXT NOT NULL, seq INTEGER NOT NULL, started_s REAL NOT NULL, wall_offset_s REAL NOT NULL,
  ready INTEGER NOT NULL, log_from_seq INTEGER);
-- One row per namespace inode: what the roster says, and the head of its newest snapshot. `pass_began_s`: every
-- descriptor was read at least once since then; NULL: not yet.
CREATE TABLE namespace(
  netns INTEGER PRIMARY KEY, cookie INTEGER, name TEXT, names TEXT NOT NULL DEFAULT '[]',
  listed INTEGER NOT NULL DEFAULT 0, listed_at_s REAL, worker_pid INTEGER, state TEXT, checked_at_s REAL,
  life INTEGER, generation INTEGER, source TEXT, taken_at_s REAL, walked_at_s REAL, pass_began_s REAL,
  denied INTEGER NOT NULL DEFAULT 0, health TEXT NOT NULL DEFAULT '{{}}', stale INTEGER NOT NULL DEFAULT 1);
-- `reporter`: the namespace whose worker published the row. A process that changes its namespace is for a moment
-- published by two workers or by none, in any order: rows of two reporters never replace each other. `shown`: the one
-- of a process that is believed, the row of the worker in whose namespace it says to be.
CREATE TABLE process(
  pid INTEGER, start_ticks INTEGER, reporter INTEGER, comm TEXT, uid INTEGER, netns INTEGER, container TEXT,
  shown INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(pid, start_ticks, reporter)) WITHOUT ROWID;
CREATE INDEX process_reporter ON process(reporter);
CREATE TABLE holding(
  pid INTEGER, start_ticks INTEGER, fd INTEGER, inode INTEGER, reporter INTEGER, seen_s REAL NOT NULL,
  PRIMARY KEY(pid, start_ticks, fd, inode, reporter)) WITHOUT ROWID;
CREATE INDEX holding_reporter ON holding(reporter);
CREATE INDEX holding_inode ON holding(inode, seen_s);
-- `key`: an integer or bytes, see SocketKey. `local_ip`, `remote_ip`: 16 bytes, IPv4 as v4-mapped.
-- `pid` to `owner_role` are the chosen owner, materialised by store/ownership.py; `peer_id` to `nat` the other end
-- on this host and the way to it, by store/peers.py (`peer_side`: client or server, where that is known; `nat`: JSON).
-- `changed_seq`: the commit that last wrote the row, its owners, what it shows of them or `nat`; `added_seq`: the one
-- it came with.
-- `listener_inode`: of a connection that waits to be accepted, the socket whose holders are its owners. `last_*`: who
-- owned a row without holders when it last had one. `inode_seen_s`: since when the row has the inode it has.
CREATE TABLE connection(
  id INTEGER PRIMARY KEY, netns INTEGER NOT NULL, key NOT NULL, proto TEXT, family TEXT, state TEXT,
  local_addr TEXT, local_port INTEGER, remote_addr TEXT, remote_port INTEGER, local_ip BLOB, remote_ip BLOB,
  device TEXT, inode INTEGER, cookie INTEGER, uid INTEGER, direction TEXT,
  pid INTEGER, start_ticks INTEGER, holder_netns INTEGER, holder_seen_s REAL, owner_role TEXT,
  first_seen_s REAL, added_seq INTEGER, changed_seq INTEGER, peer_id INTEGER,
  peer_ambiguous INTEGER NOT NULL DEFAULT 0, peer_side TEXT, nat TEXT, inode_seen_s REAL, listener_inode INTEGER,
  last_pid INTEGER, last_start_ticks INTEGER, last_seen_s REAL, last_comm TEXT, last_netns INTEGER,
  last_container TEXT);
CREATE UNIQUE INDEX connection_key ON connection(netns, key);
CREATE INDEX connection_inode ON connection(inode);
CREATE INDEX connection_local_port ON connection(local_port);
CREATE INDEX connection_cookie ON connection(cookie) WHERE cookie IS NOT NULL;
CREATE INDEX connection_remote_port ON connection(remote_port);
-- With its ports: what finds the other end of a connection.
CREATE INDEX connection_remote_ip ON connection(remote_ip, remote_port, local_port);
CREATE INDEX connection_changed ON connection(changed_seq, netns);
CREATE INDEX connection_listener ON connection(netns, local_port) WHERE state = 'LISTEN';
CREATE INDEX connection_waiting ON connection(netns, local_port) WHERE {WAITING};
CREATE INDEX connection_pending ON connection(listener_inode) WHERE listener_inode IS NOT NULL;
CREATE INDEX connection_last ON connection(last_pid) WHERE owner_role = 'last';
CREATE INDEX connection_unheld ON connection(inode_seen_s) WHERE {UNHELD};
-- A bound UDP socket is the other end of many that are connected to it.
CREATE INDEX connection_bound_peer ON connection(peer_id) WHERE peer_id NOT NULL AND proto = 'udp';
-- What a row mirrored before it went or was written over, until peers.py has seen to those. `bound`: a UDP socket that
-- is connected to none.
CREATE TABLE parted(
  peer_id INTEGER, proto TEXT, local_ip BLOB, local_port INTEGER, remote_ip BLOB, remote_port INTEGER, bound INTEGER);
-- Entries of connection tracking that translate. Addresses in 16 bytes; `original` as the client's side has them,
-- `translated` as the server's. `live`: of the namespace that is known by this inode, see store/flows.py.
CREATE TABLE flow(
  id INTEGER PRIMARY KEY, netns INTEGER NOT NULL, key BLOB NOT NULL, proto TEXT,
  original_src BLOB, original_sport INTEGER, original_dst BLOB, original_dport INTEGER,
  translated_src BLOB, translated_sport INTEGER, translated_dst BLOB, translated_dport INTEGER,
  live INTEGER NOT NULL, changed_seq INTEGER);
CREATE UNIQUE INDEX flow_key ON flow(netns, key);
CREATE INDEX flow_original ON flow(original_src, original_sport, original_dport);
CREATE INDEX flow_translated ON flow(translated_dport, translated_src, translated_sport);
CREATE INDEX flow_changed ON flow(changed_seq);
CREATE TABLE flow_source(netns INTEGER PRIMARY KEY, cookie INTEGER, taken_at_s REAL, live INTEGER NOT NULL DEFAULT 1);
-- The own addresses of namespaces, in 16 bytes, without those that mean something within one only.
CREATE TABLE address(ip BLOB, netns INTEGER, PRIMARY KEY(ip, netns)) WITHOUT ROWID;
CREATE INDEX address_netns ON address(netns);
-- Edges whose connections went: `identity` is the text of what they are grouped by, see store/edges.py.
CREATE TABLE talked(identity TEXT PRIMARY KEY, first_s REAL NOT NULL, last_s REAL NOT NULL);
-- Flows that went, or as they were before.
CREATE TABLE parted_flow(
  proto TEXT, original_src BLOB, original_sport INTEGER, original_dst BLOB, original_dport INTEGER,
  translated_src BLOB, translated_sport INTEGER, translated_dst BLOB, translated_dport INTEGER);
-- Rows as they were before commit `until_seq` changed them, or removed them (`gone`), while somebody
-- follows, who asks for what left a filtered view. `owners`: JSON, a list of [pid, comm, container].
CREATE TABLE past(
  until_seq INTEGER, id INTEGER, gone INTEGER NOT NULL, netns INTEGER, key, proto TEXT, family TEXT, state TEXT,
  local_addr TEXT, local_port INTEGER, remote_addr TEXT, remote_port INTEGER, local_ip BLOB, remote_ip BLOB,
  device TEXT, inode INTEGER, cookie INTEGER, uid INTEGER, direction TEXT,
  pid INTEGER, start_ticks INTEGER, owner_role TEXT, nat TEXT, added_seq INTEGER, owners TEXT NOT NULL,
  PRIMARY KEY(until_seq, id)) WITHOUT ROWID;
CREATE TABLE worker(
  pid INTEGER, role TEXT, netns TEXT, state TEXT, restarts INTEGER, cpu_share REAL);
CREATE TABLE loss(name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE usage(pid INTEGER PRIMARY KEY, cpu_percent REAL, rss_bytes INTEGER, pss_bytes INTEGER);
CREATE TABLE budget(cpu_percent REAL, used_percent REAL);
"""

WALL_OFFSET = "(SELECT wall_offset_s FROM meta)"
# What ANALYZE would find on a busy host (rows, then rows per value of each leading column), written down: it is
# needed before there are rows, and plans must not change with the load. Without it a namespace counts as selective
# as an inode.
STATISTICS = """
ANALYZE;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1(tbl, idx, stat) VALUES
  ('connection', 'connection_key', '100000 2000 1'), ('connection', 'connection_inode', '100000 2'),
  ('connection', 'connection_local_port', '100000 10'), ('connection', 'connection_remote_port', '100000 40'),
  ('connection', 'connection_remote_ip', '100000 50 2 1'), ('connection', 'connection_cookie', '100000 1'),
  ('connection', 'connection_listener', '5000 100 2'), ('connection', 'connection_changed', '100000 100 10'),
  ('connection', 'connection_waiting', '1000 50 5'), ('connection', 'connection_pending', '1000 20'),
  ('connection', 'connection_bound_peer', '1000 10'), ('flow', 'flow_key', '20000 2000 1'),
  ('flow', 'flow_original', '20000 20 2 1'), ('flow', 'flow_translated', '20000 50 2 1'),
  ('flow', 'flow_changed', '20000 20'), ('connection', 'connection_last', '5000 50'),
  ('connection', 'connection_unheld', '100 10'),
  ('holding', 'holding', '100000 50 50 1 1 1'), ('holding', 'holding_inode', '100000 1 1'),
  ('holding', 'holding_reporter', '100000 2000'),
  ('process', 'process', '2000 1 1 1'), ('process', 'process_reporter', '2000 40'), ('namespace', NULL, '50');
ANALYZE sqlite_schema;
"""

# max() of a NULL is NULL: a namespace that was never seen has no age, whatever the gate says of it.
_PROVEN = "max(n.taken_at_s, coalesce(n.checked_at_s, n.taken_at_s))"
AGE_S = f"(monotonic_s() - {_PROVEN})"


# Something of it may be missing: a process may not be read, or not all descriptors were read in the minute before its
# tables were: the first pass over them is not over, or a later one takes that long.
_PASS_LIMIT_S = 60
PARTIAL = f"(n.denied > 0 OR n.walked_at_s IS NULL OR n.taken_at_s - n.walked_at_s > {_PASS_LIMIT_S})"

_IS_LAST = "c.owner_role = 'last'"


class Table(NamedTuple):
    """What can be selected under a contract name: column name -> SQL over `source`.

    `counted`: the part of `source` that makes its rows; the rest adds columns. Conditions speak of it alone.
    `always`: the condition that every row of the contract fulfils.
    """

    columns: dict[str, str]
    source: str
    counted: str
    always: str = "1"


CONNECTIONS = Table(
    {
        "netns": "c.netns",
        "netns_cookie": "n.cookie",
        "netns_name": "n.name",
        "proto": "c.proto",
        "family": "c.family",
        "state": "c.state",
        "local_addr": "c.local_addr",
        "local_port": "c.local_port",
        "remote_addr": "c.remote_addr",
        "remote_port": "c.remote_port",
        "device": "c.device",
        "inode": "c.inode",
        "cookie": "c.cookie",
        "uid": "c.uid",
        "direction": "c.direction",
        "owner_role": "c.owner_role",
        "pid": "c.pid",
        # The last owner as it was then: its process may have ended, or be another program by now.
        "comm": f"iif({_IS_LAST}, c.last_comm, p.comm)",
        "container": f"iif({_IS_LAST}, c.last_container, p.container)",
        "nat": "c.nat",
        "seen_at": f"n.taken_at_s + {WALL_OFFSET}",
        # A complete pass of the holder's worker confirms every descriptor that it does not report as gone.
        "owner_seen_at": f"max(c.holder_seen_s, coalesce(h.walked_at_s, c.holder_seen_s)) + {WALL_OFFSET}",
        "stale": "n.stale",
        # The row's identity within its namespace, as text: see SocketKey.
        "key": "CASE typeof(c.key) WHEN 'blob' THEN lower(hex(c.key)) ELSE CAST(c.key AS TEXT) END",
        **CONNECTION_FIGURES,
    },
    "connection c JOIN namespace n ON n.netns = c.netns"
    " LEFT JOIN process p ON p.pid = c.pid AND p.start_ticks = c.start_ticks AND p.shown"
    " LEFT JOIN namespace h ON h.netns = c.holder_netns",
    "connection c",
)

_PROCESS_OF_HOLDING = " LEFT JOIN process p ON p.pid = h.pid AND p.start_ticks = h.start_ticks AND p.shown"
# inode 0 is no key: several rows may share it, and nobody holds it. CROSS: from the row to its holders.
_OWNER_SOURCE = (
    "connection c CROSS JOIN holding h ON h.inode = nullif(coalesce(c.listener_inode, c.inode), 0)"
    + _PROCESS_OF_HOLDING
)
# All holders of the rows selected, or of the listener that a row waits at; `fd` and `reporter` tell apart what the
# rules of merge/owners.py order.
HOLDERS = Table(
    {
        "id": "c.id",
        "listening": "(c.state = 'LISTEN' OR c.listener_inode NOT NULL)",
        "pid": "h.pid",
        "start_ticks": "h.start_ticks",
        "fd": "h.fd",
        "reporter": "h.reporter",
        "seen_s": "h.seen_s",
        "comm": "p.comm",
        "netns": "p.netns",
        "container": "p.container",
    },
    _OWNER_SOURCE,
    _OWNER_SOURCE,
)

# The last owners of the rows selected, in the columns of HOLDERS: those that nobody holds any more have one each.
LAST_OWNERS = Table(
    {
        "id": "c.id",
        "listening": "0",
        "pid": "c.last_pid",
        "start_ticks": "c.last_start_ticks",
        "fd": "NULL",
        "reporter": "NULL",
        "seen_s": "c.last_seen_s",
        "comm": "c.last_comm",
        "netns": "c.last_netns",
        "container": "c.last_container",
    },
    "connection c",
    "connection c",
    _IS_LAST,
)

NAMESPACES = Table(
    {
        "netns": "n.netns",
        "netns_cookie": "n.cookie",
        "name": "n.name",
        "names": "n.names",
        "processes": "(SELECT count(*) FROM process p WHERE p.reporter = n.netns AND p.netns = n.netns AND p.shown)",
        "connections": "(SELECT count(*) FROM connection c WHERE c.netns = n.netns)",
        "worker_pid": "n.worker_pid",
        "state": "n.state",
        "source": "n.source",
        "generation": "n.generation",
        "seen_at": f"n.taken_at_s + {WALL_OFFSET}",
        "age_s": AGE_S,
        "stale": "n.stale",
        "partial": PARTIAL,
        "denied": "n.denied",
    },
    "namespace n",
    "namespace n",
)

PROCESSES = Table(
    {
        "pid": "p.pid",
        "start_ticks": "p.start_ticks",
        "comm": "p.comm",
        "uid": "p.uid",
        "netns": "p.netns",
        "container": "p.container",
        "connections": "(SELECT count(DISTINCT c.id) FROM holding h JOIN connection c ON c.inode = h.inode"
        " AND c.inode <> 0 WHERE h.pid = p.pid AND h.start_ticks = p.start_ticks)",
        # All that it holds, also those in none of our tables: not connected yet, or of other protocols.
        "sockets": "(SELECT count(DISTINCT h.inode) FROM holding h"
        " WHERE h.pid = p.pid AND h.start_ticks = p.start_ticks)",
        **PROCESS_FIGURES,
    },
    "process p",
    "process p",
    "p.shown",
)

BOOLEANS = frozenset(("stale", "partial"))
# Yes, no, or not known.
MAYBES = frozenset(("refused",))
JSON_VALUES = frozenset(("names", "nat"))


def _view(name: str, table: Table) -> str:
    columns = ", ".join(f"{sql} AS {column}" for column, sql in table.columns.items())
    return f"CREATE VIEW {name} AS SELECT {columns} FROM {table.source} WHERE {table.always};"


_OWNERS_BY = (
    "SELECT DISTINCT c.netns AS netns, c.cookie AS cookie, c.inode AS inode, h.pid AS pid,"
    " h.start_ticks AS start_ticks, p.comm AS comm, h.fd AS fd, p.netns AS owner_netns, p.container AS container"
    " FROM connection c JOIN holding h ON h.inode = c.{inode}" + _PROCESS_OF_HOLDING + " WHERE 1"
)
VIEWS = "\n".join(
    (
        _view("connections", CONNECTIONS),
        _view("namespaces", NAMESPACES),
        _view("processes", PROCESSES),
        # Two joins and not one on either inode, so that both can begin at the holder.
        f"CREATE VIEW owners AS {_OWNERS_BY.format(inode='inode')} AND c.inode <> 0"
        f" UNION ALL {_OWNERS_BY.format(inode='listener_inode')}"
        " UNION ALL SELECT c.netns, c.cookie, c.inode, c.last_pid, c.last_start_ticks, c.last_comm, NULL,"
        f" c.last_netns, c.last_container FROM connection c WHERE {_IS_LAST};",
    )
)
