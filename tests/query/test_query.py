"""The query socket's language: the envelope, projection, limits, freshness, refusals; garbage gets an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.query import answer, answer_bytes, refuse_bytes
from pipeline.store import Reader, Store
from tests.sample_state import BLUE, HOST, connection, holding, process, roster_row, snapshot

_CONNECTION_FIELDS = [
    "netns", "netns_cookie", "netns_name", "proto", "family", "state", "local_addr", "local_port", "remote_addr",
    "remote_port", "device", "inode", "cookie", "uid", "direction", "owner_role", "owners", "nat", "seen_at",
    "owner_seen_at", "stale",
]  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    clock = ManualClock(now_s=100.0)
    store = Store(":memory:", "epoch-1", "testhost", clock, stale_after_s=15.0)
    store.apply(
        [
            snapshot(
                HOST, taken_at_s=100.0, connections=[connection(1, inode=5), connection(2), connection(3)],
                processes=[process(8, "sshd"), process(9, "sh", uid=1000)],
                holdings=[holding(8, 3, 5), holding(9, 3, 5)],
            ),
            snapshot(BLUE, taken_at_s=95.0, connections=[connection(4, inode=6)]),
        ],
        [roster_row(HOST, ["host"]), roster_row(BLUE, ["blue"])],
    )  # fmt: skip
    clock.advance(1.0)
    yield store.reader()
    store.close()


def test_answer_has_the_whole_envelope(reader: Reader) -> None:
    answered = answer(reader, {"id": "q1", "op": "connections", "fields": ["netns", "cookie"]})

    namespaces = answered.pop("namespaces")
    assert answered == {
        "id": "q1", "ok": True, "schema": 1, "host": "testhost", "epoch": "epoch-1", "seq": 1,
        "columns": ["netns", "cookie"], "rows": [[HOST, 1], [HOST, 2], [HOST, 3], [BLUE, 4]], "total": 4,
        "cursor": None, "denied": 0,
    }  # fmt: skip
    assert namespaces[0] == {
        "netns": HOST, "netns_cookie": 7, "name": "host", "names": ["host"], "worker_pid": 4321, "state": "walking",
        "source": "sock_diag", "generation": 1, "seen_at": 1_700_000_100.0, "age_s": 1.0, "stale": False,
        "partial": False, "denied": 0,
    }  # fmt: skip
    assert [row["netns"] for row in namespaces] == [HOST, BLUE]


def test_connections_have_the_fields_of_the_contract_in_its_order(reader: Reader) -> None:
    assert answer(reader, {"op": "connections"})["columns"] == _CONNECTION_FIELDS


def test_answer_unpacks_with_the_defaults_of_msgpack(reader: Reader) -> None:
    packed = answer_bytes(reader, msgpack.packb({"id": 7, "op": "connections"}))

    unpacked = msgpack.unpackb(packed)
    assert (unpacked["id"], unpacked["ok"], len(unpacked["rows"])) == (7, True, 4)


def test_fields_come_in_the_order_asked_for_with_the_primary_owner_by_name(reader: Reader) -> None:
    answered = answer(
        reader, {"op": "connections", "fields": ["comm", "owners", "pid", "cookie"], "where": {"inode": 5}}
    )

    owners = [
        {"pid": 9, "start_ticks": 90, "comm": "sh", "fd": 3, "netns": HOST, "container": None},
        {"pid": 8, "start_ticks": 80, "comm": "sshd", "fd": 3, "netns": HOST, "container": None},
    ]
    assert answered["rows"] == [["sh", owners, 9, 1]]


@pytest.mark.parametrize(("limit", "rows"), [(0, 0), (2, 2), (4, 4), (5, 4)])
def test_limit_cuts_the_rows_and_not_the_total(reader: Reader, limit: int, rows: int) -> None:
    answered = answer(reader, {"op": "connections", "limit": limit})

    assert (len(answered["rows"]), answered["total"]) == (rows, 4)


def test_limited_rows_are_the_first_ones_with_all_their_owners(reader: Reader) -> None:
    full = answer(reader, {"op": "connections"})["rows"]

    assert answer(reader, {"op": "connections", "limit": 2})["rows"] == full[:2]


def test_namespaces_of_the_answer_are_those_asked_for(reader: Reader) -> None:
    answered = answer(reader, {"op": "connections", "where": {"netns": "blue", "port": 9}})

    assert answered["rows"] == []
    assert [row["name"] for row in answered["namespaces"]] == ["blue"]


@pytest.mark.parametrize(("max_age_s", "cookies"), [(0.5, []), (3, [1, 2, 3]), (6.0, [1, 2, 3, 4])])
def test_max_age_leaves_out_namespaces_that_were_not_seen_since(
    reader: Reader, max_age_s: float, cookies: list[int]
) -> None:
    answered = answer(reader, {"op": "connections", "fields": ["cookie"], "max_age_s": max_age_s, "limit": 3})

    assert [row[0] for row in answered["rows"]] == cookies[:3]
    assert answered["total"] == len(cookies)
    assert len(answered["namespaces"]) == 2


def test_processes_have_their_connections_counted(reader: Reader) -> None:
    answered = answer(reader, {"op": "processes", "where": {"uid": 1000}})

    assert answered["columns"] == ["pid", "start_ticks", "comm", "uid", "netns", "container", "connections"]
    assert answered["rows"] == [[9, 90, "sh", 1000, HOST, None, 1]]


def test_namespaces_can_be_filtered_and_projected(reader: Reader) -> None:
    answered = answer(
        reader,
        {"op": "namespaces", "where": {"netns": HOST}, "fields": ["connections", "processes", "names"]},
    )

    assert answered["rows"] == [[3, 2, ["host"]]]


@pytest.mark.parametrize(
    ("request_keys", "code", "message"),
    [
        ({}, "bad_request",
         "op: expected one of connections, edges, processes, namespaces, status, sql, explain, wait, got None"),
        ({"op": "conections"}, "unknown_op", "unknown op 'conections'; the nearest known one is connections"),
        ({"op": 5}, "bad_request", "op: expected one of"),
        ({"op": "connections", "limits": 5}, "bad_request", "unknown key 'limits'; the nearest known one is limit"),
        ({"op": "connections", "where": []}, "bad_request", "where: expected a map of filters"),
        ({"op": "connections", "where": {"sate": 1}}, "unknown_filter",
         "unknown filter 'sate'; the nearest known one is state"),
        ({"op": "connections", "fields": ["locl_addr"]}, "unknown_field",
         "unknown field 'locl_addr'; the nearest known one is local_addr"),
        ({"op": "connections", "fields": []}, "bad_request", "fields: expected a list of names, not empty"),
        ({"op": "connections", "fields": "pid"}, "bad_request", "fields: expected a list of names, not empty"),
        ({"op": "connections", "fields": [1]}, "bad_request", "fields: expected a list of names, not empty"),
        ({"op": "connections", "limit": -1}, "bad_request", "limit: expected a number from 0 on, got -1"),
        ({"op": "connections", "limit": True}, "bad_request", "limit: expected a number from 0 on, got True"),
        ({"op": "connections", "limit": 2**63}, "bad_request", "limit: expected a number from 0 on"),
        ({"op": "connections", "max_age_s": "5"}, "bad_request", "max_age_s: expected seconds from 0 on, got '5'"),
        ({"op": "connections", "max_age_s": float("nan")}, "bad_request", "max_age_s: expected seconds"),
        ({"op": "status", "where": {"netns": 1}}, "unknown_filter", "unknown filter 'netns'"),
        ({"op": "namespaces", "where": {"port": 1}}, "unknown_filter", "unknown filter 'port'"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused_with_its_id(
    reader: Reader, request_keys: dict[str, Any], code: str, message: str
) -> None:
    refused = answer(reader, {"id": 3, **request_keys})

    assert (refused["id"], refused["ok"], refused["error"]["code"]) == (3, False, code)
    assert refused["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"GET / HTTP/1.1\r\n\r\n", b"\x81\x01\x02", b"\x91" * 1000, b"\x80\x80"]
)
def test_bytes_that_are_no_request_get_an_error_answer(reader: Reader, data: bytes) -> None:
    refused = msgpack.unpackb(answer_bytes(reader, data))

    assert (refused["id"], refused["ok"], refused["error"]["code"]) == (None, False, "malformed")


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(reader: Reader, data: bytes) -> None:
    assert msgpack.unpackb(answer_bytes(reader, data))["ok"] in (False, True)


_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
)
_anything = st.recursive(
    _scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
_keys = st.sampled_from(["id", "where", "fields", "limit", "max_age_s"])
_filters = st.sampled_from(["netns", "pid", "comm", "proto", "local", "port", "uid", "cookie", "unowned"])


@given(
    st.sampled_from(["connections", "namespaces", "processes", "status"]), st.dictionaries(_keys, _anything),
    st.dictionaries(_filters, _anything),
)  # fmt: skip
def test_any_request_gets_an_answer_and_never_an_internal_error(
    reader: Reader, op: str, keys: dict[str, Any], where: dict[str, Any]
) -> None:
    for request in ({**keys, "op": op}, {"op": op, "where": where}):
        answered = msgpack.unpackb(answer_bytes(reader, msgpack.packb(request)), strict_map_key=False)
        assert answered["ok"] or answered["error"]["code"] in (
            "bad_request",
            "unknown_filter",
            "unknown_field",
        )


@pytest.mark.parametrize(
    ("data", "request_id"), [(msgpack.packb({"id": 9, "op": "status"}), 9), (b"\xc1", None), (b"", None)]
)
def test_refusal_of_an_unread_request_has_its_id_where_there_is_one(data: bytes, request_id: Any) -> None:
    refused = msgpack.unpackb(refuse_bytes(data, "busy", "try again"))

    assert refused == {"id": request_id, "ok": False, "error": {"code": "busy", "message": "try again"}}
