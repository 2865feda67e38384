"""Filters as SQL: `where` maps of requests and of the command line, read in one place.

A filter's value is a value, its text (as a command line gives it), or a list of those, any of which may match. All
filters of a map must match.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.errors import Refused, did_you_mean
from pipeline.merge.direction import DIRECTIONS
from pipeline.model.address import V4_MAPPED_PREFIX, mapped
from pipeline.model.connection import FAMILY_NAMES, PROTO_NAMES, Proto, State, state_name
from pipeline.store.edges import EDGE_COLUMNS, SIDES

_MAX_INTEGER = 2**63 - 1
_STATES = sorted({state_name(Proto.TCP, s) for s in State} | {state_name(Proto.UDP, s) for s in State})
_V4_FIRST, _V4_LAST = V4_MAPPED_PREFIX + bytes(4), V4_MAPPED_PREFIX + b"\xff" * 4


class Condition(NamedTuple):
    """A piece of SQL and its parameters."""

    sql: str
    params: tuple[Any, ...] = ()


# From a filter's name and one value to what a row must fulfil. Raises: Refused.
Filter = Callable[[str, Any], Condition]


def compile_filters(where: Mapping[str, Any], known: Mapping[str, Filter] | None = None) -> Condition:
    """The SQL condition that holds for the rows matching every filter; `1` for an empty map.

    `known` is CONNECTION_FILTERS unless given. Raises: Refused for an unknown filter, naming the nearest known one,
    and for a value that does not fit.
    """
    filters = CONNECTION_FILTERS if known is None else known
    conditions = []
    for name, value in where.items():
        if name not in filters:
            raise Refused(f"unknown filter {_shown(name)}{did_you_mean(name, filters)}", "unknown_filter")
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise Refused(f"filter {name}: an empty list matches nothing, leave the filter out")
        conditions.append(_joined(" OR ", [filters[name](name, one) for one in values]))
    return _joined(" AND ", conditions)


def _joined(word: str, conditions: list[Condition]) -> Condition:
    if not conditions:
        return Condition("1")
    return Condition(
        _balanced(word, [condition.sql for condition in conditions]),
        tuple(param for condition in conditions for param in condition.params),
    )


def _balanced(word: str, parts: list[str]) -> str:
    """A row of a thousand is a thousand deep for SQLite, which takes no more."""
    if len(parts) == 1:
        return f"({parts[0]})"
    middle = len(parts) // 2
    return f"({_balanced(word, parts[:middle])}{word}{_balanced(word, parts[middle:])})"


def _integer(name: str, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INTEGER:
        raise Refused(f"filter {name}: expected a number from 0 on, got {_shown(value)}")
    return value


def _text(name: str, value: Any) -> str:
    # Lone surrogates: what a command line makes of bytes that are no UTF-8. No stored text has any.
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused(f"filter {name}: expected text in UTF-8, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def _equals(column: str, read: Callable[[str, Any], Any]) -> Filter:
    return lambda name, value: Condition(f"{column} = ?", (read(name, value),))


def _word(column: str, words: Iterable[str], fold: Callable[[str], str]) -> Filter:
    known = list(words)

    def condition(name: str, value: Any) -> Condition:
        word = fold(_text(name, value))
        if word not in known:
            raise Refused(f"filter {name}: unknown value {_shown(value)}{did_you_mean(word, known)}")
        return Condition(f"{column} = ?", (word,))

    return condition


def _flag(sql: str) -> Filter:
    def condition(name: str, value: Any) -> Condition:
        if not isinstance(value, bool):
            raise Refused(f"filter {name}: expected true or false, got {_shown(value)}")
        return Condition(sql if value else f"NOT ({sql})")

    return condition


def _port_range(name: str, value: Any) -> tuple[int, int]:
    first, dash, last = value.partition("-") if isinstance(value, str) else (value, "", value)
    try:
        low, high = _integer(name, first), _integer(name, last if dash else first)
    except Refused:
        low, high = 0, -1
    if not low <= high <= 65535:
        raise Refused(f"filter {name}: expected a port or a range a-b within 0-65535, got {_shown(value)}")
    return low, high


def _port(*columns: str) -> Filter:
    def condition(name: str, value: Any) -> Condition:
        low, high = _port_range(name, value)
        if low == high:  # said apart: to the planner any range is a wide one
            return Condition(" OR ".join(f"{column} = ?" for column in columns), (low,) * len(columns))
        return Condition(
            " OR ".join(f"{column} BETWEEN ? AND ?" for column in columns), (low, high) * len(columns)
        )

    return condition


def _address(column: str) -> Filter:
    """An address or network; of an address with host bits set before the /, its network."""

    def condition(name: str, value: Any) -> Condition:
        text = _text(name, value)
        try:
            if "%" in text:  # the tables have no scope to compare with
                raise ValueError(text)
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Refused(
                f"filter {name}: expected an address or ADDRESS/BITS, got {_shown(value)}"
            ) from None
        first, last = mapped(network.network_address.packed), mapped(network.broadcast_address.packed)
        if first == last:
            return Condition(f"{column} = ?", (first,))
        within = f"{column} BETWEEN ? AND ?"
        # ::/0 is all of IPv6, and what is shown as IPv4 is not IPv6, although it is stored there.
        if network.version == 6 and first < _V4_FIRST and last >= _V4_LAST:
            return Condition(f"{within} AND NOT {within}", (first, last, _V4_FIRST, _V4_LAST))
        return Condition(within, (first, last))

    return condition


def _netns(column: str) -> Filter:
    """An inode, or any of a namespace's names; text that is a number may be either."""
    named = f"{column} IN (SELECT s.netns FROM namespace s, json_each(s.names) e WHERE e.value = ?)"

    def condition(name: str, value: Any) -> Condition:
        if not isinstance(value, str):
            return Condition(f"{column} = ?", (_integer(name, value),))
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            return Condition(named, (_text(name, value),))
        return Condition(f"{column} = ? OR {named}", (int(value), value))

    return condition


def _held(column: str, holdings: str, read: Callable[[str, Any], Any]) -> Filter:
    """Any owner, not only the primary. `holdings`: what selects their descriptors as h; `column`: of last owners."""
    inodes = f"SELECT h.inode FROM {holdings} AND h.inode <> 0"
    last = f"SELECT l.id FROM connection l WHERE l.owner_role = 'last' AND l.last_{column} = ?"
    held = f"c.inode IN ({inodes}) OR c.listener_inode IN ({inodes}) OR c.id IN ({last})"
    return lambda name, value: Condition(held, (read(name, value),) * 3)


def _held_by_process(column: str) -> Filter:
    # CROSS JOIN: from the few processes to their descriptors, in this order.
    holdings = "process q CROSS JOIN holding h ON h.pid = q.pid AND h.start_ticks = q.start_ticks"
    return _held(column, f"{holdings} WHERE q.shown AND q.{column} = ?", _text)


CONNECTION_FILTERS: dict[str, Filter] = {
    "netns": _netns("c.netns"),
    "pid": _held("pid", "holding h WHERE h.pid = ?", _integer),
    "comm": _held_by_process("comm"),
    "container": _held_by_process("container"),
    "proto": _word("c.proto", PROTO_NAMES.values(), str.lower),
    "family": _word("c.family", FAMILY_NAMES.values(), str.lower),
    "state": _word("c.state", _STATES, str.upper),
    "local": _address("c.local_ip"),
    "remote": _address("c.remote_ip"),
    "local_port": _port("c.local_port"),
    "remote_port": _port("c.remote_port"),
    "port": _port("c.local_port", "c.remote_port"),
    "uid": _equals("c.uid", _integer),
    "direction": _word("c.direction", DIRECTIONS, str.lower),
    "inode": _equals("c.inode", _integer),
    "cookie": _equals("c.cookie", _integer),
    "listening": _flag("c.state = 'LISTEN'"),
    "established": _flag("c.state = 'ESTABLISHED'"),
    # Of nobody and for no known reason: what the kernel owns is not among them.
    "unowned": _flag("c.owner_role IS NULL"),
}


def _held_before(position: int, read: Callable[[str, Any], Any]) -> Filter:
    """Of a row in `past`, whose owners are a list of [pid, comm, container]."""
    held = f"EXISTS (SELECT 1 FROM json_each(c.owners) o WHERE json_extract(o.value, '$[{position}]') = ?)"
    return lambda name, value: Condition(held, (read(name, value),))


# The same for rows of `past` as c.
PAST_FILTERS: dict[str, Filter] = {
    **CONNECTION_FILTERS,
    "pid": _held_before(0, _integer),
    "comm": _held_before(1, _text),
    "container": _held_before(2, _text),
}


def _of_open(name: str, value: Any) -> Condition:
    raise Refused(f"filter {name}: not for closed connections, which have none", "unknown_filter")


# The same for rows of `ended` as c. A namespace that is gone is found by the name it had.
CLOSED_FILTERS: dict[str, Filter] = {
    **CONNECTION_FILTERS,
    "netns": lambda name, value: _joined(
        " OR ",
        [
            _netns("c.netns")(name, value),
            *([Condition("c.netns_name = ?", (value,))] if isinstance(value, str) else []),
        ],
    ),
    "pid": _equals("c.pid", _integer),
    "comm": _equals("c.comm", _text),
    "container": _equals("c.container", _text),
    "unowned": _flag("c.pid IS NULL"),
    **dict.fromkeys(("state", "inode", "listening", "established"), _of_open),
}
NAMESPACE_FILTERS: dict[str, Filter] = {"netns": _netns("n.netns")}
PROCESS_FILTERS: dict[str, Filter] = {
    "netns": _netns("p.netns"),
    "pid": _equals("p.pid", _integer),
    "comm": _equals("p.comm", _text),
    "container": _equals("p.container", _text),
    "uid": _equals("p.uid", _integer),
}


def _either(filter_of: Callable[[str], Filter], *columns: str) -> Filter:
    """A filter that one of several columns must pass."""
    filters = [filter_of(column) for column in columns]
    return lambda name, value: _joined(" OR ", [one(name, value) for one in filters])


def _of_ends(name: str) -> list[str]:
    return [EDGE_COLUMNS[f"{side}_{name}"] for side in SIDES]


# An edge has no addresses to compare in order: they are compared as text, and networks are not asked for.
EDGE_FILTERS: dict[str, Filter] = {
    "netns": _either(_netns, "e.client_netns", "e.server_netns"),
    "pid": _either(lambda column: _equals(column, _integer), "e.client_pid", "e.server_pid"),
    "comm": _either(lambda column: _equals(column, _text), *_of_ends("comm")),
    "container": _either(lambda column: _equals(column, _text), *_of_ends("container")),
    "proto": _word("e.proto", PROTO_NAMES.values(), str.lower),
    "port": _port("e.server_port"),
}
