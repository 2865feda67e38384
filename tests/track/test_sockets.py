"""Open and just-closed sockets, out of events, passes and dumps in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import EventsLost
from pipeline.model.connection import Family, Proto, State
from pipeline.model.event import EventKind, SocketEvent
from pipeline.model.held_socket import HeldSocket
from pipeline.model.socket_row import SocketRow
from pipeline.track.sockets import Sockets

HERE, THERE = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"


def event(kind: EventKind, cookie: int, time_s: float, **more: Any) -> SocketEvent:
    state = {
        EventKind.CONNECT: State.SYN_SENT, EventKind.LISTEN: State.LISTEN, EventKind.CLOSED: State.LAST_ACK,
    }.get(kind, State.ESTABLISHED)  # fmt: skip
    fields: dict[str, Any] = {
        "state": state, "proto": Proto.TCP, "inode": cookie, "pid": 7, "start_ticks": 70, "comm": "curl",
        "inbound": False, "refused": False, "age_s": 0.0, "bytes_sent": 0, "bytes_received": 0, **more,
    }  # fmt: skip
    return SocketEvent(
        kind, time_s, cookie, 1, fields.pop("proto"), Family.INET, fields.pop("state"), HERE, 4000 + cookie, THERE,
        443, fields.pop("inode"), 1000, *(fields[name] for name in (
            "pid", "start_ticks", "comm", "inbound", "refused", "age_s", "bytes_sent", "bytes_received")),
    )  # fmt: skip


def row(cookie: int, state: int = State.ESTABLISHED, inode: int | None = None) -> SocketRow:
    inode = cookie if inode is None else inode
    ports = (4000 + cookie).to_bytes(2, "big"), (443).to_bytes(2, "big")
    return Family.INET, state, *ports, HERE + bytes(12), THERE + bytes(12), 0, cookie, 1000, inode


def held(
    cookie: int, pid: int = 7, *, start_ticks: int = 70, proto: int = Proto.TCP, **of_row: Any
) -> HeldSocket:
    comm = b"curl".ljust(16, b"\0")
    return pid, start_ticks, 3, comm, 1, 0, 1000, row(cookie, **of_row), proto, 1, 5, 0, 0


def open_cookies(sockets: Sockets) -> set[Any]:
    return set(sockets.open)


def test_one_open_and_one_closed_make_a_report_of_two_and_the_next_of_one() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.CONNECT, 1, 1.0))
    sockets.apply(event(EventKind.CONNECT, 2, 1.0))
    sockets.apply(event(EventKind.CLOSED, 2, 2.0))
    assert [len(part) for part in sockets.report()] == [1, 1]
    assert [len(part) for part in sockets.report()] == [1, 0]


def test_a_closed_connection_has_owner_direction_bytes_and_both_times() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.ESTABLISHED, 1, 10.0, pid=0, inode=0, inbound=True))
    sockets.apply(event(EventKind.OWNER, 1, 10.01, inbound=True, age_s=0.01))
    sockets.apply(event(
        EventKind.CLOSED, 1, 10.02, inbound=True, age_s=0.02, bytes_sent=5, bytes_received=9
    ))  # fmt: skip
    (closed,) = sockets.report()[1]
    assert closed._asdict() == {
        "cookie": 1, "proto": 6, "family": 2, "local_addr": HERE, "local_port": 4001, "remote_addr": THERE,
        "remote_port": 443, "uid": 1000, "direction": "inbound", "pid": 7, "start_ticks": 70, "comm": "curl",
        "container": None, "opened_at_s": 10.0, "closed_at_s": 10.02, "bytes_sent": 5, "bytes_received": 9,
        "refused": False,
    }  # fmt: skip


def test_the_close_of_an_unknown_socket_is_ignored() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.CLOSED, 1, 2.0))
    assert sockets.report() == ([], [])


def test_what_closes_during_the_first_pass_does_not_come_back() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.CLOSED, 1, 5.1, age_s=None))
    sockets.take_pass([held(1), held(2)], began_s=5.0)
    assert open_cookies(sockets) == {2}


def test_what_opens_during_a_pass_is_not_lost() -> None:
    sockets = Sockets()
    sockets.take_pass([held(1)], began_s=1.0)
    sockets.apply(event(EventKind.CONNECT, 2, 5.1))
    sockets.take_pass([held(1)], began_s=5.0)
    sockets.take_dump({Proto.TCP: [row(1)]}, began_s=5.05)
    assert open_cookies(sockets) == {1, 2}


def test_a_row_known_from_an_event_wins_against_a_pass_that_began_before_it() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.ESTABLISHED, 1, 5.1, pid=9, start_ticks=90, comm="nginx"))
    sockets.take_pass([held(1, state=State.SYN_SENT)], began_s=5.0)
    (known,) = sockets.open.values()
    assert (known.row[1], known.pid, known.comm) == (State.ESTABLISHED, 9, "nginx")


def test_a_pass_names_the_owner_that_no_event_named() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.ESTABLISHED, 1, 5.1, pid=0, inode=0))
    sockets.take_pass([held(1, pid=9)], began_s=5.0)
    (known,) = sockets.open.values()
    assert (known.pid, known.row[9]) == (9, 1)


def test_of_several_holders_the_youngest_is_believed_to_have_owned_it() -> None:
    sockets = Sockets()
    sockets.take_pass(
        [held(1, pid=1, start_ticks=999), held(1, 20, start_ticks=5), held(1, 21, start_ticks=6)], 1.0
    )
    assert sockets.open[1].pid == 21


def test_a_socket_that_nobody_holds_any_more_is_in_doubt_until_a_dump_tells() -> None:
    sockets = Sockets()
    sockets.take_pass([held(1), held(2)], began_s=1.0)
    sockets.take_pass([], began_s=2.0)
    assert (open_cookies(sockets), sockets.doubtful) == ({1, 2}, {1, 2})
    sockets.take_dump({Proto.TCP: [row(2, State.FIN_WAIT2, inode=0)]}, began_s=3.0)
    assert (open_cookies(sockets), sockets.doubtful) == ({2}, set())
    assert sockets.open[2].row == row(2, State.FIN_WAIT2, inode=0)


def test_a_close_that_leaves_a_time_wait_keeps_the_row_until_a_dump_does_not_show_it() -> None:
    sockets = Sockets()
    sockets.take_pass([held(1)], began_s=1.0)
    sockets.take_changes()
    sockets.apply(event(EventKind.CLOSED, 1, 2.0, state=State.FIN_WAIT2, age_s=None))
    changes = sockets.take_changes()
    assert (changes.changed, changes.gone, len(changes.closed)) == ([1], [], 1)
    assert sockets.open[1].row == row(1, State.TIME_WAIT, inode=0)
    sockets.take_dump({Proto.TCP: [row(1, State.TIME_WAIT, inode=0)]}, began_s=3.0)
    assert open_cookies(sockets) == {1}
    sockets.take_dump({Proto.TCP: []}, began_s=63.0)
    assert sockets.take_changes().gone == [1]
    assert sockets.report()[1] == []


def test_a_udp_socket_that_is_gone_has_ended_although_no_event_says_so() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.OWNER, 1, 1.0, proto=Proto.UDP))
    sockets.take_pass([], began_s=2.0)
    sockets.take_dump({Proto.UDP: []}, began_s=3.0)
    (closed,) = sockets.report()[1]
    assert (closed.proto, closed.pid, closed.opened_at_s, closed.closed_at_s) == (Proto.UDP, 7, 1.0, 3.0)


@pytest.mark.parametrize(("state", "ends"), [(State.ESTABLISHED, 1), (State.CLOSE, 0)])
def test_the_end_of_a_udp_socket_is_that_of_a_connection_where_it_had_a_peer(state: State, ends: int) -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.OWNER, 1, 1.0, proto=Proto.UDP, state=state))
    sockets.apply(event(EventKind.CLOSED, 1, 2.0, proto=Proto.UDP, state=state, age_s=1.0, bytes_sent=5))
    changes = sockets.take_changes()
    assert (len(changes.closed), open_cookies(sockets)) == (ends, set())
    assert [(one.pid, one.opened_at_s, one.bytes_sent) for one in changes.closed] == [(7, 1.0, 5)] * ends


def test_a_listener_that_closes_was_no_connection() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.LISTEN, 1, 1.0))
    sockets.apply(event(EventKind.CLOSED, 1, 2.0, state=State.LISTEN))
    assert sockets.report() == ([], [])


def test_a_socket_may_connect_again_after_a_refusal() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.CONNECT, 1, 1.0))
    sockets.apply(event(EventKind.CLOSED, 1, 1.5, state=State.SYN_SENT, refused=True))
    sockets.apply(event(EventKind.CONNECT, 1, 2.0))
    sockets.take_pass([held(1, state=State.SYN_SENT)], began_s=3.0)
    assert open_cookies(sockets) == {1}
    assert [one.refused for one in sockets.report()[1]] == [True]


def test_a_close_of_which_no_event_told_is_reported_once_a_dump_shows_its_time_wait() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.CONNECT, 1, 1.0))
    sockets.apply(event(EventKind.ESTABLISHED, 1, 1.1))
    sockets.take_changes()
    sockets.take_dump({Proto.TCP: [row(1, State.TIME_WAIT, inode=0)]}, began_s=2.0)
    (closed,) = sockets.take_changes().closed
    assert (closed.cookie, closed.pid, closed.comm, closed.direction) == (1, 7, "curl", "outbound")
    assert (closed.closed_at_s, closed.bytes_sent, closed.refused) == (2.0, None, False)
    sockets.apply(event(EventKind.CLOSED, 1, 2.5, state=State.FIN_WAIT2))
    sockets.take_dump({Proto.TCP: [row(1, State.TIME_WAIT, inode=0)]}, began_s=3.0)
    assert not sockets.take_changes().closed


def test_text_tables_have_no_cookies_and_say_nothing_of_what_is_held() -> None:
    sockets = Sockets()
    sockets.take_pass([held(1)], began_s=1.0)
    waiting = (*row(2, State.TIME_WAIT, inode=0)[:7], 0, 0, 0)
    sockets.take_dump({Proto.TCP: [(*row(1)[:7], 0, 1000, 1), waiting]}, began_s=2.0, whole=False)
    assert len(sockets.open) == 2 and 1 in sockets.open


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [event(EventKind.CLOSED, 1, 2.0), event(EventKind.ESTABLISHED, 1, 3.0)], id="life after close"
        ),
        pytest.param(
            [event(EventKind.ESTABLISHED, 1, 2.0), event(EventKind.CONNECT, 1, 1.0)], id="backwards"
        ),
        pytest.param(
            [event(EventKind.ESTABLISHED, 1, 2.0), event(EventKind.CLOSED, 1, 1.0)], id="closed before"
        ),
    ],
)
def test_events_of_one_socket_in_a_wrong_order_are_not_to_be_trusted(events: list[SocketEvent]) -> None:
    sockets = Sockets()
    with pytest.raises(EventsLost):
        for one in events:
            sockets.apply(one)


def test_who_uses_a_socket_while_it_is_closed_from_elsewhere_is_no_disorder() -> None:
    sockets = Sockets()
    sockets.apply(event(EventKind.ESTABLISHED, 1, 1.0))
    sockets.apply(event(EventKind.OWNER, 1, 3.0))
    sockets.apply(event(EventKind.CLOSED, 1, 2.0))
    sockets.apply(event(EventKind.OWNER, 1, 1.9))
    assert open_cookies(sockets) == set()


# A true history of a few sockets: each connects, may be used, may close; passes and dumps are of some moment and are
# taken after all events up to then, and maybe later ones.
@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], set[int], set[int]]:
    alive: set[int] = set()
    ended: set[int] = set()
    steps: list[tuple[str, Any]] = []
    time_s = 1.0
    reading: tuple[str, float, set[int]] | None = None
    for _ in range(draw(st.integers(0, 40))):
        time_s += 1.0
        action = draw(st.sampled_from(["open", "close", "read", "take"]))
        if action == "open":
            cookie = len(alive) + len(ended) + 1
            alive.add(cookie)
            steps.append(("event", event(EventKind.CONNECT, cookie, time_s)))
        elif action == "close" and alive:
            cookie = draw(st.sampled_from(sorted(alive)))
            alive.discard(cookie)
            ended.add(cookie)
            steps.append(("event", event(EventKind.CLOSED, cookie, time_s)))
        elif action == "read":
            # What it saw of each socket is of some moment between its begin and now.
            reading = (draw(st.sampled_from(["pass", "dump"])), time_s, set(alive))
        elif action == "take" and reading is not None:
            kind, began_s, seen_first = reading
            seen = {
                cookie for cookie in seen_first | alive if draw(st.booleans()) or cookie in seen_first & alive
            }
            steps.append((kind, (began_s, seen)))
            reading = None
    return steps, alive, ended


@settings(max_examples=300)
@given(histories())
def test_whatever_is_read_when_nothing_is_lost_doubled_or_resurrected(
    history: tuple[list[tuple[str, Any]], set[int], set[int]],
) -> None:
    steps, alive, ended = history
    sockets, told, gone, closed = Sockets(), set(), set(), []
    for kind, what in steps:
        if kind == "event":
            sockets.apply(what)
        elif kind == "pass":
            sockets.take_pass([held(cookie) for cookie in sorted(what[1])], what[0])
        else:
            sockets.take_dump({Proto.TCP: [row(cookie) for cookie in sorted(what[1])]}, what[0])
        changes = sockets.take_changes()
        told |= set(changes.changed)
        gone |= set(changes.gone)
        closed += [one.cookie for one in changes.closed]
    assert open_cookies(sockets) == alive
    assert sorted(closed) == sorted(ended)
    assert told - gone == alive
