"""Filters: a filtered answer is the full answer filtered; values that do not fit are refused with a sentence."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.errors import Refused
from pipeline.model.snapshot import Snapshot
from pipeline.query import compile_filters
from pipeline.store import Store
from tests.sample_state import BLUE, COMMS, HOST, connection, histories, roster_row, snapshot
from tests.store.asking import ask

Row = dict[str, Any]
_NAMES = {1: ["host"], 2: ["blue", "navy"], 3: []}


def _within(network: str) -> Callable[[str], bool]:
    return lambda address: ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)


def _ports(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


# How a row of the full answer is tested, written without SQL.
_MATCHES: dict[str, Callable[[Row, Any], bool]] = {
    "netns": lambda row, value: value in (row["netns"], str(row["netns"]), *_NAMES[row["netns"]]),
    "pid": lambda row, value: int(value) in [owner["pid"] for owner in row["owners"]],
    "comm": lambda row, value: value in [owner["comm"] for owner in row["owners"]],
    "container": lambda row, value: value in [owner["container"] for owner in row["owners"]],
    "proto": lambda row, value: row["proto"] == value.lower(),
    "family": lambda row, value: row["family"] == value,
    "state": lambda row, value: row["state"] == value.upper(),
    "local": lambda row, value: _within(value)(row["local_addr"]),
    "remote": lambda row, value: _within(value)(row["remote_addr"]),
    "local_port": lambda row, value: row["local_port"] in _ports(str(value)),
    "remote_port": lambda row, value: row["remote_port"] in _ports(str(value)),
    "port": lambda row, value: bool({row["local_port"], row["remote_port"]} & set(_ports(str(value)))),
    "uid": lambda row, value: row["uid"] == int(value),
    "direction": lambda row, value: row["direction"] == value,
    "inode": lambda row, value: row["inode"] == int(value),
    "cookie": lambda row, value: row["cookie"] == int(value),
    "listening": lambda row, value: (row["state"] == "LISTEN") is value,
    "established": lambda row, value: (row["state"] == "ESTABLISHED") is value,
    "unowned": lambda row, value: (row["owner_role"] is None) is value,
}
_ADDRESSES = st.sampled_from([
    "10.0.0.1", "10.0.0.0/8", "10.0.1.9/24", "0.0.0.0", "0.0.0.0/0", "127.0.0.0/8", "::", "::/0", "::1", "::/64",
    "fd00::/8",
])  # fmt: skip
_PORTS = st.sampled_from([80, "80", "80-443", "443-40000", "0-65535", 8080, "1-2"])
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "netns": st.sampled_from([1, "2", "host", "navy", "absent", 99]),
    "pid": st.sampled_from([1, "2", 3, 99]),
    "comm": st.sampled_from([*COMMS, "absent"]),
    "container": st.just("c1"),
    "proto": st.sampled_from(["tcp", "UDP"]),
    "family": st.sampled_from(["inet", "inet6"]),
    "state": st.sampled_from(["ESTABLISHED", "listen", "UNCONN", "TIME_WAIT"]),
    "local": _ADDRESSES, "remote": _ADDRESSES,
    "local_port": _PORTS, "remote_port": _PORTS, "port": _PORTS,
    "uid": st.sampled_from([0, "1000", 7]),
    "direction": st.sampled_from(["listen", "inbound", "outbound", "unknown"]),
    "inode": st.sampled_from([0, 1, "2"]),
    "cookie": st.sampled_from([1, "2", 99]),
    "listening": st.booleans(), "established": st.booleans(), "unowned": st.booleans(),
}  # fmt: skip


def _store(history: list[Snapshot]) -> Store:
    store = Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    store.apply(history, [roster_row(netns, names) for netns, names in _NAMES.items()])
    return store


def test_every_filter_of_the_query_has_its_oracle() -> None:
    from pipeline.store.filters import CONNECTION_FILTERS

    assert set(_MATCHES) == set(_VALUES) == set(CONNECTION_FILTERS)


@pytest.mark.parametrize("name", list(_VALUES))
@settings(max_examples=25, deadline=None)
@given(history=histories(), data=st.data())
def test_filtered_answer_equals_the_full_answer_filtered(
    name: str, history: list[Snapshot], data: st.DataObject
) -> None:
    store = _store(history)
    value = data.draw(_VALUES[name])

    expected = [row for row in ask(store, "connections") if _MATCHES[name](row, value)]

    assert ask(store, "connections", where={name: value}) == expected
    store.close()


@settings(max_examples=60, deadline=None)
@given(histories(), st.data())
def test_all_filters_must_match_and_any_value_of_a_list(history: list[Snapshot], data: st.DataObject) -> None:
    store = _store(history)
    names = data.draw(st.lists(st.sampled_from(sorted(_VALUES)), min_size=1, max_size=3, unique=True))
    where = {name: data.draw(st.lists(_VALUES[name], min_size=1, max_size=2), name) for name in names}

    expected = [
        row for row in ask(store, "connections")
        if all(any(_MATCHES[name](row, value) for value in values) for name, values in where.items())
    ]  # fmt: skip

    assert ask(store, "connections", where=where) == expected
    store.close()


def test_ipv6_network_does_not_match_what_is_shown_as_ipv4() -> None:
    assert "NOT" in compile_filters({"local": "::/0"}).sql
    assert "NOT" in compile_filters({"local": "::/80"}).sql
    assert "NOT" not in compile_filters({"local": "::ffff:0:0/96"}).sql
    assert "NOT" not in compile_filters({"local": "::/96"}).sql


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"local_prot": 1}, r"unknown filter 'local_prot'; the nearest known one is local_port"),
        ({"\udcff": 1}, r"unknown filter '\\udcff'"),
        (
            {"state": "ESTABLISH"},
            r"filter state: unknown value 'ESTABLISH'; the nearest known one is ESTABLISHED",
        ),
        ({"proto": "icmp"}, "filter proto: unknown value 'icmp'"),
        (
            {"local_port": 65536},
            "filter local_port: expected a port or a range a-b within 0-65535, got 65536",
        ),
        ({"local_port": "90-80"}, "filter local_port: .* got '90-80'"),
        (
            {"local_port": "80-"},
            "filter local_port: expected a port or a range a-b within 0-65535, got '80-'",
        ),
        (
            {"local_port": "http"},
            "filter local_port: expected a port or a range a-b within 0-65535, got 'http'",
        ),
        ({"port": True}, "filter port: expected a port or a range a-b within 0-65535, got True"),
        ({"port": "-5"}, "filter port: expected a port or a range a-b within 0-65535, got '-5'"),
        ({"port": -1}, "filter port: expected a port"),
        ({"port": 80.5}, "filter port: expected a port"),
        ({"pid": "٣"}, "filter pid: expected a number"),
        ({"inode": 2**64}, "filter inode: expected a number"),
        ({"inode": "9" * 1000}, "filter inode: expected a number"),
        ({"local": "10.0.0.256"}, r"filter local: expected an address or ADDRESS/BITS, got '10\.0\.0\.256'"),
        ({"local": "10.0.0.0/33"}, "filter local: expected an address"),
        ({"local": "fe80::1%eth0"}, "filter local: expected an address"),
        ({"local": 167772161}, "filter local: expected text"),
        ({"comm": b"nginx"}, "filter comm: expected text in UTF-8"),
        ({"comm": "\udc80"}, r"filter comm: expected text in UTF-8, got '\\udc80'"),
        ({"comm": None}, "filter comm: expected text"),
        ({"comm": {"a": 1}}, "filter comm: expected text"),
        ({"comm": [["nginx"]]}, "filter comm: expected text"),
        ({"comm": []}, "filter comm: an empty list matches nothing"),
        ({"listening": "yes"}, "filter listening: expected true or false, got 'yes'"),
        ({"netns": -1}, "filter netns: expected a number"),
    ],
)
def test_value_that_does_not_fit_is_refused_with_a_sentence(where: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        compile_filters(where)

    assert len(str(refused.value)) < 200
    str(refused.value).encode()


@pytest.mark.parametrize("name", ["4026532001", "7", "²", "9" * 30])
def test_namespace_is_found_by_a_name_that_looks_like_a_number(name: str) -> None:
    store = new_store()
    store.apply(
        [snapshot(HOST, connections=[connection(1)]), snapshot(BLUE, connections=[connection(2)])],
        [roster_row(HOST, [name]), roster_row(BLUE)],
    )

    found = [row["netns"] for row in ask(store, "connections", where={"netns": name})]
    assert found == ([HOST, BLUE] if name == str(BLUE) else [HOST])
    assert [row["netns"] for row in ask(store, "connections", where={"netns": BLUE})] == [BLUE]


def test_a_list_of_thousands_of_values_is_one_filter() -> None:
    store = new_store()
    store.apply([snapshot(connections=[connection(key) for key in range(1, 24)])])

    for where in (
        {"cookie": list(range(20, 5020))},
        {"local": ["10.0.0.0/8"] * 5000, "cookie": [20, 21, 22, 23]},
    ):
        assert len(ask(store, "connections", where=where)) == 4


def new_store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
