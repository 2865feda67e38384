"""The other end of each connection, kept on its row: rows of this host with mirrored addresses and ports, also where
flows translate those on the way, and bound UDP sockets."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping

from pipeline.merge.bound import Bound, receiver
from pipeline.merge.ends import pair
from pipeline.merge.nat import CLIENT, SERVER, Joined, resolve
from pipeline.model.address import V4_MAPPED_PREFIX
from pipeline.model.connection import SocketKey
from pipeline.store.flows import nat_of
from pipeline.store.graph import MIRRORED, PASSES, RECEIVES, SENDS, Graph, flowing
from pipeline.store.history import History

_BOUND = "{0}.proto = 'udp' AND {0}.state = 'UNCONN'"
# Rows that have no part in anything are left out, but for those that flows may join.
_CHANGED = f"""
SELECT c.id FROM connection c WHERE c.changed_seq = ?1 AND (c.peer_id NOT NULL OR c.peer_ambiguous OR c.nat NOT NULL
  OR {flowing("c")} AND (c.proto = 'udp' OR {{flows}}
    EXISTS (SELECT 1 FROM connection d WHERE {MIRRORED} AND {flowing("d")})))"""
_CHANGED_ROWS = _CHANGED.format(flows="")
_CHANGED_WITH_FLOWS = _CHANGED.format(
    flows=f"EXISTS (SELECT 1 FROM flow f WHERE {SENDS}) OR EXISTS (SELECT 1 FROM flow f WHERE {RECEIVES}) OR"
)
_PARTED = f"""
SELECT d.id FROM parted p CROSS JOIN connection d ON d.id = p.peer_id
UNION SELECT d.id FROM parted c CROSS JOIN connection d ON {MIRRORED} WHERE c.peer_id IS NULL AND NOT c.bound"""
# Who may send to a bound socket: an index finds them by its port.
_SENDING_TO = """
CROSS JOIN connection d ON d.remote_port = u.local_port AND d.proto = 'udp' AND d.state = 'ESTABLISHED'"""
_SENDERS = f"""
SELECT d.id FROM connection u {_SENDING_TO} WHERE u.changed_seq = ?1 AND {_BOUND.format("u")}
UNION SELECT d.id FROM parted u {_SENDING_TO} WHERE u.bound"""
_FLOWS_CHANGED = f"""
SELECT f.id FROM flow f WHERE f.changed_seq = ?1
UNION SELECT f.id FROM parted c CROSS JOIN flow f ON {SENDS} WHERE c.peer_id IS NULL AND NOT c.bound
UNION SELECT f.id FROM parted c CROSS JOIN flow f ON {RECEIVES} WHERE c.peer_id IS NULL AND NOT c.bound
UNION SELECT g.id FROM parted_flow f CROSS JOIN flow g ON {PASSES}
UNION SELECT f.id FROM parted_flow g CROSS JOIN flow f ON {PASSES}
UNION SELECT f.id FROM connection u CROSS JOIN flow f ON f.translated_dport = u.local_port AND f.proto = 'udp'
  WHERE u.changed_seq = ?1 AND {_BOUND.format("u")}
UNION SELECT f.id FROM parted u CROSS JOIN flow f ON f.translated_dport = u.local_port AND f.proto = 'udp'
  WHERE u.bound"""
_SENDING_AT = "SELECT id FROM connection WHERE remote_ip = ? AND proto = 'udp' AND state = 'ESTABLISHED'"
_FLOWS_AT = "SELECT id FROM flow WHERE proto = 'udp' AND translated_dst = ?"
_HOMES = "SELECT netns FROM address WHERE ip = ?"
_OF_PARTED_FLOWS = f"""
SELECT c.id FROM parted_flow f CROSS JOIN connection c ON {SENDS}
UNION SELECT c.id FROM parted_flow f CROSS JOIN connection c ON {RECEIVES}"""
_PART = f"""
INSERT INTO parted SELECT peer_id, proto, local_ip, local_port, remote_ip, remote_port, {_BOUND.format("c")}
FROM connection c WHERE netns = ? AND (peer_id NOT NULL OR peer_ambiguous OR nat NOT NULL OR {_BOUND.format("c")})"""
_UDP = """
SELECT c.id, c.netns, c.local_ip, c.local_port, c.remote_ip, c.remote_port FROM json_each(?) AS wanted
CROSS JOIN connection c ON c.id = wanted.value AND c.proto = 'udp' AND c.state = 'ESTABLISHED'"""
_BOUND_AT = f"""
SELECT u.id, u.netns, u.local_ip FROM connection u
WHERE u.local_port = ? AND {_BOUND.format("u")} AND u.local_ip IN (?, x'{"00" * 16}', ?)"""
_SET = """
UPDATE connection SET peer_id = ?1, peer_ambiguous = ?2, peer_side = ?3 WHERE id = ?4
AND (peer_id IS NOT ?1 OR peer_ambiguous <> ?2 OR peer_side IS NOT ?3)"""
_TUPLES = """
SELECT -f.id, f.original_src, f.original_sport, f.original_dst, f.original_dport, f.translated_src,
  f.translated_sport, f.translated_dst, f.translated_dport
FROM json_each(?) AS wanted CROSS JOIN flow f ON f.id = wanted.value"""
_NATS = """
SELECT c.id, c.nat FROM json_each(?) AS wanted CROSS JOIN connection c ON c.id = wanted.value"""
_SET_NAT = "UPDATE connection SET nat = ?, changed_seq = ? WHERE id = ?"
_HAS_FLOWS = "SELECT EXISTS (SELECT 1 FROM flow) OR EXISTS (SELECT 1 FROM parted_flow)"
_V4_ANY = V4_MAPPED_PREFIX + bytes(4)
_LOOPBACK_V6, _LOOPBACK_V4 = bytes(15) + b"\x01", V4_MAPPED_PREFIX + b"\x7f"

_Tuple = tuple[bytes, int, bytes, int]


def part(database: sqlite3.Connection, netns: int, keys: Iterable[SocketKey] | None) -> None:
    """Notes what rows are an end of that are about to go or to be written over; `keys` None: all of the namespace."""
    if keys is None:
        database.execute(_PART, (netns,))
    else:
        database.executemany(f"{_PART} AND key = ?", ((netns, key) for key in keys))


def update_peers(database: sqlite3.Connection, history: History, moved: Collection[bytes] = ()) -> bool:
    """Sets the peers of the rows that this commit wrote, and of all whose other ends, or whose flows, it wrote, changed
    or removed, and of those that send to a `moved` address; what is translated is a change of the row. Returns whether
    a peer changed."""
    seq = history.seq
    (has_flows,) = database.execute(_HAS_FLOWS).fetchone()
    changed = _CHANGED_WITH_FLOWS if has_flows else _CHANGED_ROWS
    rows = {row_id for (row_id,) in database.execute(changed, (seq,))}
    rows.update(row_id for (row_id,) in database.execute(_PARTED))
    rows.update(row_id for (row_id,) in database.execute(_SENDERS, (seq,)))
    flows: list[int] = []
    if has_flows:
        rows.update(row_id for (row_id,) in database.execute(_OF_PARTED_FLOWS))
        flows = [flow_id for (flow_id,) in database.execute(_FLOWS_CHANGED, (seq,))]
        database.execute("DELETE FROM parted_flow")
    for address in moved:
        rows.update(row_id for (row_id,) in database.execute(_SENDING_AT, (address,)))
        flows += [flow_id for (flow_id,) in database.execute(_FLOWS_AT, (address,))] if has_flows else []
    database.execute("DELETE FROM parted")
    if not rows and not flows:
        return False
    # All that may be parts of each other's connections are settled together.
    graph = Graph(database, has_flows)
    graph.explore(rows, flows)
    joined = _resolve(graph)
    tuples = _tuples_of(database, joined) if has_flows else {}
    _find_bound(database, joined, graph, tuples)
    found = database.executemany(
        _SET, ((one.peer, one.ambiguous, one.side, row_id) for row_id, one in joined.items())
    )
    if has_flows:
        _set_nat(database, history, joined, tuples)
    return found.rowcount > 0


def _resolve(graph: Graph) -> dict[int, Joined]:
    untouched, touched = graph.split()
    peers = pair({row: graph.mirrors[row] for row in untouched}, graph.netns_of)
    joined = {row: Joined(*peer) for row, peer in peers.items()}
    if touched:
        joined.update(resolve(
            {node: graph.receivers[node] for node in touched}, {node: graph.netns_of[node] for node in touched}
        ))  # fmt: skip
    return joined


def _tuples_of(
    database: sqlite3.Connection, joined: Mapping[int, Joined]
) -> dict[int, tuple[_Tuple, _Tuple]]:
    """Original and translated tuple of each flow that ends a chain."""
    wanted = {flow for one in joined.values() for flow in (one.first, one.last) if flow is not None}
    found = database.execute(_TUPLES, (json.dumps(sorted(-flow for flow in wanted)),)) if wanted else ()
    return {row[0]: (row[1:5], row[5:9]) for row in found}


def _find_bound(
    database: sqlite3.Connection,
    joined: dict[int, Joined],
    graph: Graph,
    tuples: Mapping[int, tuple[_Tuple, _Tuple]],
) -> None:
    """Joins connected UDP sockets without another end to the bound ones that get what they send."""
    open_ended = [
        row for row, one in joined.items() if one.peer is None and not one.ambiguous and one.side != SERVER
    ]
    found = database.execute(_UDP, (json.dumps(sorted(open_ended)),)).fetchall()
    for row_id, netns, source, local_port, address, port in found:
        one = joined[row_id]
        # Clients get their port from the ephemeral range.
        side = SERVER if local_port < port else CLIENT
        if one.last is not None:
            netns, side = graph.netns_of[one.last], CLIENT
            source, _, address, port = tuples[one.last][1]
        bound = [Bound(*values) for values in database.execute(_BOUND_AT, (port, address, _V4_ANY))]
        if not bound:
            continue
        own = address in (source, _LOOPBACK_V6) or address.startswith(_LOOPBACK_V4)
        homes = {netns} if own else {home for (home,) in database.execute(_HOMES, (address,))}
        peer = receiver(address, netns, homes, bound)
        if peer.ambiguous:
            joined[row_id] = Joined(ambiguous=True)
        elif peer.row_id is not None:
            joined[row_id] = one._replace(peer=peer.row_id, side=side)


def _set_nat(
    database: sqlite3.Connection,
    history: History,
    joined: Mapping[int, Joined],
    tuples: Mapping[int, tuple[_Tuple, _Tuple]],
) -> None:
    texts: dict[tuple[int, int], str] = {}
    changed: list[tuple[str | None, int, int]] = []
    for row_id, before in database.execute(_NATS, (json.dumps(sorted(joined)),)):
        one, nat = joined[row_id], None
        if one.first is not None and one.last is not None:
            # Both ends say the same.
            nat = texts.get(way := (one.first, one.last))
            if nat is None:
                nat = texts[way] = json.dumps(nat_of(tuples[one.first][0], tuples[one.last][1]))
        if nat != before:
            changed.append((nat, history.seq, row_id))
    history.keep_changing_roles([row_id for _, _, row_id in changed])
    database.executemany(_SET_NAT, changed)
