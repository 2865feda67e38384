"""What is joined without a store is what a store would have answered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.errors import Refused
from pipeline.merge.join import Join, Seen
from pipeline.model.connection import Family, Proto, State
from pipeline.model.netns import RosterRow
from pipeline.model.process import Holding, Process
from pipeline.model.snapshot import Health, Snapshot
from pipeline.model.socket_row import SocketRow, socket_key, to_connection
from pipeline.query import answer, answer_joined
from pipeline.store import Store
from pipeline.walk.holdings import TaskFiles

V4 = [bytes(16), bytes((10, 0, 0, 1)) + bytes(12), bytes((127, 0, 0, 1)) + bytes(12)]
V6 = [bytes(16), bytes(15) + b"\1", bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 1))]
FIRST_NETNS, CLOCK_S = 4026531840, 1000.0
PORTS = st.sampled_from([b"\0\x50", b"\0\x51"])
DEVICES = {3: "eth3", 4: "eth4"}


@st.composite
def socket_rows(draw: st.DrawFn, cookies: st.SearchStrategy[int]) -> SocketRow:
    family = draw(st.sampled_from(Family))
    addresses = st.sampled_from(V4 if family == Family.INET else V6)
    state = draw(st.sampled_from([one.value for one in State]))
    return (
        family, state, draw(PORTS), draw(PORTS), draw(addresses), draw(addresses), draw(st.sampled_from([0, 3, 4])),
        draw(cookies), draw(st.integers(0, 2)), draw(st.integers(0, 5)),
    )  # fmt: skip


@st.composite
def namespaces(draw: st.DrawFn) -> list[Seen]:
    seen = []
    for number in range(draw(st.integers(1, 3))):
        netns = FIRST_NETNS + number
        taken_at_s = CLOCK_S - draw(st.sampled_from([0.0, 1.0, 20.0]))
        rows: dict[int, dict[Any, SocketRow]] = {Proto.TCP: {}, Proto.UDP: {}}
        for proto, of_proto in rows.items():
            cookies = st.sampled_from([0, *range(100 + proto, 5100, 100)])  # of each protocol its own
            for row in draw(st.lists(socket_rows(cookies), max_size=6)):
                # Without a cookie the inode is the identity, and one inode has one socket.
                if row[7] or not row[9] or proto == Proto.TCP:
                    of_proto[socket_key(row, proto)] = row
        files = []
        for pid in draw(st.sets(st.sampled_from([1, 7, 8, 9]), max_size=4)):
            home = draw(st.sampled_from([netns, FIRST_NETNS]))
            process = Process(pid, 10 - pid, f"process-{pid}", 0, home, draw(st.sampled_from([None, "box"])))
            fds = draw(st.dictionaries(st.integers(3, 6), st.integers(0, 5), max_size=4))
            files.append(TaskFiles(process, fds, len(fds)))
        walked_at_s = draw(st.sampled_from([taken_at_s, taken_at_s, None]))
        seen.append(Seen(
            netns, f"name-{number}", number or None, taken_at_s, walked_at_s, walked_at_s,
            draw(st.sampled_from([0, 0, 1])),
            taken_at_s < CLOCK_S - 15, {proto: list(known.values()) for proto, known in rows.items()}, DEVICES, files,
        ))  # fmt: skip
    return seen


def snapshot_of(one: Seen) -> Snapshot:
    connections = [
        to_connection(row, proto, socket_key(row, proto), DEVICES.get(row[6]))
        for proto, rows in one.rows.items()
        for row in rows
    ]
    processes = [files.process for files in one.files]
    holdings = [
        Holding(files.process.pid, files.process.start_ticks, fd, inode)
        for files in one.files
        for fd, inode in files.fds.items()
        if inode
    ]
    return Snapshot(
        "netns", one.netns, one.cookie, 0, 1, True, one.taken_at_s, one.walked_at_s, "sock_diag", one.denied, Health(),
        connections, [], processes, [], holdings, [], searched_since_s=one.searched_since_s,
    )  # fmt: skip


def stored_answer(seen: list[Seen], request: dict[str, Any], complete: bool) -> dict[str, Any]:
    store = Store(":memory:", "e", "host", ManualClock(CLOCK_S), 15.0)
    roster = [RosterRow(one.netns, [one.name or ""], 1, 0, "walking", "", 0.0) for one in seen]
    store.set_losses({"processes_denied": int(not complete)})
    store.apply([snapshot_of(one) for one in seen], roster)
    try:
        return answer(store.reader(), request)
    finally:
        store.close()


def by_key(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    return sorted(rows, key=lambda row: (row["netns"], row["key"]))


ALL = ["netns", "netns_cookie", "netns_name", "proto", "family", "state", "local_addr", "local_port", "remote_addr",
       "remote_port", "device", "inode", "cookie", "uid", "direction", "owner_role", "owners", "nat", "seen_at",
       "owner_seen_at", "stale", "pid", "comm", "container", "key"]  # fmt: skip


@given(namespaces(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_join_shows_what_the_store_would(seen: list[Seen], complete: bool) -> None:
    request = {"op": "connections", "fields": ALL}
    joined = answer_joined(Join(seen, ManualClock().wall_offset_s, complete), request)
    assert joined is not None
    stored = stored_answer(seen, request, complete)
    assert joined["columns"] == stored["columns"]
    assert joined["total"] == stored["total"]
    assert by_key(joined) == by_key(stored)


def test_fields_and_limit_are_obeyed_and_all_rows_are_counted() -> None:
    row = (2, 1, b"\0\x50", b"\0\x51", V4[1], V4[2], 0, 0, 0, 0)
    rows = {6: [(*row[:7], 77 + number, 0, 0) for number in range(5)]}
    join = Join([Seen(1, None, None, 1.0, 1.0, 1.0, 0, False, rows, {}, [])], 0.0, True)
    some = answer_joined(join, {"op": "connections", "fields": ["local_port", "key"], "limit": 2})
    assert some == {
        "ok": True,
        "columns": ["local_port", "key"],
        "rows": [[80, "77"], [80, "78"]],
        "total": 5,
    }
    none = answer_joined(join, {"op": "connections", "limit": 0})
    assert none is not None
    assert (none["rows"], none["total"]) == ([], 5)


def test_the_columns_asked_for_by_default_are_those_of_a_stored_answer() -> None:
    seen = [
        Seen(
            1, None, None, 1.0, 1.0, 1.0, 0, False, {}, {}, [TaskFiles(Process(1, 1, "x", 0, 1, None), {}, 0)]
        )
    ]
    joined = answer_joined(Join(seen, 0.0, True), {"op": "connections"})
    assert joined is not None
    assert list(joined["columns"]) == stored_answer(seen, {"op": "connections"}, True)["columns"]


def test_a_filter_needs_a_store_and_an_unknown_field_is_refused() -> None:
    join = Join([], 0.0, True)
    assert answer_joined(join, {"op": "connections", "where": {"port": 80}}) is None
    assert answer_joined(join, {"op": "namespaces"}) is None
    with pytest.raises(Refused):
        answer_joined(join, {"op": "connections", "fields": ["colour"]})
