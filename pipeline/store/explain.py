"""Why a connection has the owner it has and the role that goes with it, or none: in words, from what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.merge.owners import Holder, ordered, reason
from pipeline.store.filters import Condition
from pipeline.store.reader import Reader
from pipeline.store.schema import CONNECTIONS, HOLDERS, WALL_OFFSET
from pipeline.store.select import limited

_HOLDER_FIELDS = ("pid", "start_ticks", "fd", "comm", "netns", "container")
# Those that have no inode any more, and why.
_NO_INODE = {
    "TIME_WAIT": "the socket is closed and only its addresses are still reserved",
    **dict.fromkeys(
        ("SYN_RECV", "ESTABLISHED", "CLOSE_WAIT"),
        "the connection is not accepted yet, and who will is not known: no listener of a known process is on its port,"
        " or several that do not belong to the same processes",
    ),
}
_CLOSED = "its process has closed it and the kernel finishes it"
_FACTS = f"""
SELECT c.id, c.state, c.inode, n.walked_at_s IS NULL, n.denied, c.owner_role, c.last_pid, c.last_comm
FROM {CONNECTIONS.source} WHERE {{where}} ORDER BY c.id"""
_HELD = f"""
SELECT {", ".join(HOLDERS.columns.values())}, h.seen_s + {WALL_OFFSET}
FROM {HOLDERS.source} WHERE {{where}}"""
_WALKS = """
SELECT coalesce(sum(walked_at_s IS NULL), 0), coalesce(sum(denied), 0) FROM namespace"""
_LOST = """
SELECT coalesce(sum(count) FILTER (WHERE name = 'processes_denied'), 0),
  coalesce(sum(count) FILTER (WHERE name = 'namespaces_left_out'), 0) FROM loss"""


_KERNEL = (
    "Every process was looked at since it appeared and none holds it: the kernel itself owns it (as NFS, tunnels"
    " and the like do), or it is on its way from one process to another."
)


class Explained(NamedTuple):
    """`holders`: who holds the socket, or the listener it waits at, the owner first, each with `seen_at` and `rule`,
    why it stands where it does."""

    explanation: str
    holders: list[dict[str, Any]]


def explain(reader: Reader, condition: Condition, limit: int | None) -> list[Explained]:
    """For the connections that `select_connections` gives for the same condition and limit, in its order; within
    `reader.moment()`."""
    facts = reader.rows(*limited(_FACTS.format(where=condition.sql), condition, limit))
    holders = _holders(reader, [row_id for row_id, *_ in facts])
    ((unwalked, denied),) = reader.rows(_WALKS)
    ((outside, left_out),) = reader.rows(_LOST)
    elsewhere = _Elsewhere(unwalked, denied + outside, bool(left_out))
    explained = []
    for row_id, state, inode, unwalked_here, denied_here, role, last_pid, last_comm in facts:
        held = holders.get(row_id, [])
        if held:
            explained.append(_owned(held, role))
        elif role == "kernel":
            explained.append(Explained(_KERNEL, []))
        elif last_pid is not None:
            explained.append(
                Explained(_last(state, inode, f"{last_comm or 'a process'} (pid {last_pid})"), [])
            )
        else:
            why = _unowned(state, inode, unwalked_here, denied_here, elsewhere)
            explained.append(Explained(why, []))
    return explained


class _Elsewhere(NamedTuple):
    """What was not seen on the whole host: namespaces not walked yet, processes denied, namespaces left out."""

    unwalked: int
    denied: int
    left_out: bool


def _holders(reader: Reader, row_ids: Iterable[int]) -> dict[int, list[tuple[Any, ...]]]:
    found: dict[int, list[tuple[Any, ...]]] = {}
    for row_id in row_ids:
        for row in reader.rows(_HELD.format(where="c.id = ?"), (row_id,)):
            found.setdefault(row_id, []).append(row)
    return found


def _owned(rows: list[tuple[Any, ...]], role: str | None) -> Explained:
    listening = bool(rows[0][1])
    by_holder = {Holder(*row[2:7]): row for row in rows}
    inorder = ordered(by_holder, listening)
    holders = []
    for place, holder in enumerate(inorder):
        _, _, pid, start_ticks, fd, _, _, comm, netns, container, seen_at = by_holder[holder]
        named = dict(zip(_HOLDER_FIELDS, (pid, start_ticks, fd, comm, netns, container), strict=True))
        rule = reason(inorder[place - 1] if place else None, holder, listening)
        holders.append({**named, "seen_at": seen_at, "rule": rule})
    first = holders[0]
    owner = (
        f"{first['comm'] or 'a process'} (pid {first['pid']}) holds the socket as descriptor {first['fd']}"
    )
    if role == "pending":
        owner = f"The connection is not accepted yet; of the listener that it came to: {owner}"
    processes = len({(one["pid"], one["start_ticks"]) for one in holders})
    if processes == 1:
        return Explained(f"{owner}. No other process does.", holders)
    other = next(one for one in inorder if one[:2] != inorder[0][:2])
    chosen = reason(inorder[0], other, listening)
    others = _count(processes - 1, "other process", "es")
    do, come = ("does", "comes") if processes == 2 else ("do", "come")
    return Explained(f"{owner}. So {do} {others}, which {come} after it: {chosen}.", holders)


def _last(state: str, inode: int, owner: str) -> str:
    if inode:
        return f"No process is known to hold it now; the last one was {owner}, which closed it, ended, or handed it on."
    why = _NO_INODE["TIME_WAIT"] if state == "TIME_WAIT" else _CLOSED
    return (
        f"No process holds this socket any more: in {state} it has no inode, {why}. The last one was {owner}."
    )


def _unowned(state: str, inode: int, unwalked_here: bool, denied_here: int, elsewhere: _Elsewhere) -> str:
    if not inode:
        why = _NO_INODE.get(state, _CLOSED)
        return f"No process holds this socket: in {state} it has no inode, {why}."
    if unwalked_here:
        return "The processes of its namespace have not all been looked at yet."
    if denied_here:
        who = "it" if denied_here == 1 else "one of them"
        count = _count(denied_here, "process", "es")
        return f"The descriptors of {count} of its namespace may not be read; {who} may hold it."
    if elsewhere.denied:
        return (
            "No process that may be read was found to hold it; elsewhere the descriptors of"
            f" {_count(elsewhere.denied, 'process', 'es')} may not be."
        )
    if elsewhere.unwalked:
        return (
            f"No process of its namespace holds it; in {_count(elsewhere.unwalked, 'other namespace', 's')} not all"
            " processes were looked at yet."
        )
    if elsewhere.left_out:
        return (
            "No process that is looked at holds it; one that is not may: there are namespaces that were left out, or"
            " processes that are hidden from here."
        )
    return (
        "No process was found to hold it, but not all were looked at again since it appeared: one may have opened it"
        " since then, or it is on its way from one process to another."
    )


def _count(number: int, what: str, plural: str) -> str:
    return f"{number} {what}{plural if number != 1 else ''}"
