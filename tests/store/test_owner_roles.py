"""Owner roles of connections that no process holds: pending, last, kernel, or nobody known."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.model.connection import Connection, State
from pipeline.model.process import ProcessKey
from pipeline.store import Store
from pipeline.store.delta import DELTA_COLUMNS
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot
from tests.store.asking import ask, column

NGINX, SSHD = process(8, "nginx"), process(9, "sshd")
HERE = b"\x0a\x00\x00\x01"


def waiting(key: int, port: int = 80, state: int = State.ESTABLISHED, **more: Any) -> Connection:
    return connection(key, inode=0, state=state, local=(HERE, port), **more)


def roles(store: Store, **where: Any) -> dict[str, tuple[str | None, list[int]]]:
    """key -> (role, pids of all owners)."""
    rows = ask(store, "connections", fields=["key", "owner_role", "owners"], where=where)
    return {row["key"]: (row["owner_role"], [owner["pid"] for owner in row["owners"]]) for row in rows}


@pytest.mark.parametrize("state", [State.ESTABLISHED, State.SYN_RECV, State.NEW_SYN_RECV, State.CLOSE_WAIT])
def test_connection_not_accepted_yet_has_the_holders_of_its_listener(store: Store, state: int) -> None:
    store.apply([snapshot(
        connections=[listener(1, 80), waiting(2, state=state)], processes=[NGINX, process(7, "nginx")],
        holdings=[holding(8, 3, 1), holding(7, 3, 1)],
    )])  # fmt: skip

    assert roles(store)["2"] == ("pending", [7, 8])
    assert roles(store, pid=8) == roles(store, comm="nginx") == roles(store)
    assert ask(store, "sql", sql="SELECT pid, fd, comm FROM owners WHERE cookie = 2 ORDER BY pid") == [
        {"pid": 7, "fd": 3, "comm": "nginx"}, {"pid": 8, "fd": 3, "comm": "nginx"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("listeners", "row", "expected"),
    [
        ([listener(1, 80), listener(2, 80, HERE)], waiting(9), [9]),
        ([listener(1, 80, bytes(16)), listener(2, 80)], waiting(9), [9]),
        ([listener(1, 80, bytes(16))], waiting(9), [8]),
        ([listener(1, 80), listener(2, 80, device="red")], waiting(9, device="red"), [9]),
        ([listener(1, 80), listener(2, 80, device="red")], waiting(9), [8]),
        ([listener(1, 81), listener(2, 80, b"\x0a\x00\x00\x07")], waiting(9), []),
        # Two that share the port: either may get it.
        ([listener(1, 80), listener(2, 80)], waiting(9), []),
    ],
)  # fmt: skip
def test_listener_is_the_one_the_kernel_would_choose(
    store: Store, listeners: list[Connection], row: Connection, expected: list[int]
) -> None:
    store.apply([snapshot(connections=[*listeners, row], processes=[NGINX, SSHD],
                          holdings=[holding(8, 3, 1), holding(9, 3, 2)])])  # fmt: skip

    assert roles(store)["9"] == ("pending" if expected else None, expected)


def test_listeners_that_share_a_port_are_one_where_the_same_processes_hold_them(store: Store) -> None:
    store.apply([snapshot(connections=[listener(1, 80), listener(2, 80), waiting(9)], processes=[NGINX],
                          holdings=[holding(8, 3, 1), holding(8, 4, 2)])])  # fmt: skip

    assert roles(store)["9"] == ("pending", [8])


def test_listener_of_another_namespace_accepts_nothing_here(store: Store) -> None:
    store.apply([snapshot(connections=[listener(1, 80)], processes=[NGINX], holdings=[holding(8, 3, 1)]),
                 snapshot(BLUE, connections=[waiting(2)])])  # fmt: skip

    assert roles(store, netns=BLUE) == {"2": (None, [])}


def test_accepted_connection_has_its_holder_under_the_same_key(store: Store) -> None:
    store.apply([snapshot(connections=[listener(1, 80), waiting(2)], processes=[NGINX, SSHD],
                          holdings=[holding(8, 3, 1)])])  # fmt: skip

    commit = store.apply([snapshot(generation=2, base=False, holdings=[holding(9, 4, 5)],
                                   connections=[waiting(2)._replace(inode=5)])])  # fmt: skip

    assert roles(store)["2"] == ("holder", [9])
    (changed,) = store.delta(HOST, commit.seq).changed
    assert changed[DELTA_COLUMNS.index("owner_role")] == "holder"
    assert roles(store, pid=8) == {"1": ("holder", [8])}


def test_pending_follows_the_listener_and_its_holders(store: Store) -> None:
    def told(generation: int, **changes: Any) -> tuple[str | None, list[int]]:
        commit = store.apply([snapshot(generation=generation, base=generation == 1, **changes)])
        changed = {row[DELTA_COLUMNS.index("key")] for row in store.delta(HOST, commit.seq).changed}
        assert generation == 1 or "2" in changed
        return roles(store)["2"]

    assert told(1, connections=[waiting(2)], processes=[NGINX, SSHD]) == (None, [])
    assert told(2, connections=[listener(1, 80)], holdings=[holding(8, 3, 1)]) == ("pending", [8])
    assert told(3, holdings=[holding(9, 3, 1)], gone_holdings=[holding(8, 3, 1)]) == ("pending", [9])
    assert told(4, processes=[process(9, "renamed")]) == ("pending", [9])
    assert column(store, "connections", "comm", cookie=2) == ["renamed"]
    assert told(5, gone_connections=[1], gone_holdings=[holding(9, 3, 1)]) == (None, [])
    assert told(6, connections=[listener(3, 80)], holdings=[holding(8, 3, 3)]) == ("pending", [8])
    assert told(7, connections=[listener(3, 81)]) == (None, [])


def test_closed_connection_keeps_its_last_owner(store: Store) -> None:
    store.apply(
        [snapshot(connections=[connection(2, inode=5)], processes=[NGINX], holdings=[holding(8, 3, 5)])]
    )

    for generation, state in enumerate((State.FIN_WAIT2, State.TIME_WAIT), 2):
        commit = store.apply([snapshot(
            generation=generation, base=False, connections=[connection(2, inode=0, state=state)],
            gone_processes=[ProcessKey(8, 80)], gone_holdings=[holding(8, 3, 5)],
        )])  # fmt: skip
        (row,) = ask(store, "connections")
        assert row["owner_role"] == "last"
        assert row["owners"] == [
            {"pid": 8, "start_ticks": 80, "comm": "nginx", "fd": None, "netns": HOST, "container": None}
        ]
        (changed,) = store.delta(HOST, commit.seq).changed
        assert changed[DELTA_COLUMNS.index("owner_role")] == "last"
    assert roles(store, pid=8) == roles(store, comm="nginx") == {"2": ("last", [8])}
    assert column(store, "connections", "comm") == ["nginx"]
    assert ask(store, "sql", sql="SELECT pid, fd, comm FROM owners") == [
        {"pid": 8, "fd": None, "comm": "nginx"}
    ]
    assert ask(store, "processes") == []

    commit = store.apply([snapshot(generation=4, base=False, gone_connections=[2])])
    (removed,) = store.delta(HOST, commit.seq).removed
    assert [owner["comm"] for owner in removed[DELTA_COLUMNS.index("owners")]] == ["nginx"]


def test_last_owner_is_not_the_process_that_has_its_pid_now(store: Store) -> None:
    store.apply(
        [snapshot(connections=[connection(2, inode=5)], processes=[NGINX], holdings=[holding(8, 3, 5)])]
    )

    store.apply([snapshot(
        generation=2, base=False, connections=[connection(2, inode=0, state=State.TIME_WAIT)],
        gone_processes=[ProcessKey(8, 80)], gone_holdings=[holding(8, 3, 5)],
        processes=[process(8, "other", start_ticks=99)],
    )])  # fmt: skip

    assert [(one["start_ticks"], one["comm"]) for one in ask(store, "connections")[0]["owners"]] == [
        (80, "nginx")
    ]
    assert roles(store, comm="other") == {}


def test_last_owner_is_remembered_when_its_process_ends_before_the_socket_closes(store: Store) -> None:
    store.apply(
        [snapshot(connections=[connection(2, inode=5)], processes=[NGINX], holdings=[holding(8, 3, 5)])]
    )
    store.apply([snapshot(generation=2, base=False, gone_processes=[ProcessKey(8, 80)],
                          gone_holdings=[holding(8, 3, 5)])])  # fmt: skip
    assert roles(store) == {"2": (None, [])}

    store.apply(
        [snapshot(generation=3, base=False, connections=[connection(2, inode=0, state=State.FIN_WAIT1)])]
    )

    assert roles(store) == {"2": ("last", [8])}


def test_last_owner_in_another_namespace_is_kept_with_its_own(store: Store) -> None:
    store.apply([snapshot(BLUE, connections=[connection(2, inode=5)]),
                 snapshot(processes=[NGINX], holdings=[holding(8, 3, 5)])])  # fmt: skip

    store.apply([snapshot(generation=2, base=False, gone_processes=[ProcessKey(8, 80)],
                          gone_holdings=[holding(8, 3, 5)]),
                 snapshot(BLUE, 2, base=False,
                          connections=[connection(2, inode=0, state=State.LAST_ACK)])])  # fmt: skip

    assert [(one["netns"], one["comm"]) for one in ask(store, "connections")[0]["owners"]] == [
        (HOST, "nginx")
    ]


def test_closed_connection_that_nobody_was_known_to_hold_has_no_owner(store: Store) -> None:
    store.apply([snapshot(connections=[connection(2, inode=0, state=State.TIME_WAIT)])])

    assert roles(store, unowned=True) == {"2": (None, [])}


def passed(generation: int, began_s: float, **more: Any) -> Any:
    """Of a worker that has read every descriptor since `began_s`."""
    return snapshot(generation=generation, base=generation == 1, searched_since_s=began_s, **more)


def test_socket_that_nobody_holds_is_the_kernels_after_a_pass_that_began_after_it_appeared(
    store: Store,
) -> None:
    store.apply([passed(1, 90.0, taken_at_s=100.0, connections=[connection(2, inode=5)])])
    store.apply([passed(2, 99.0, walked_at_s=101.0)])
    assert roles(store) == {"2": (None, [])}

    commit = store.apply([passed(3, 101.0, walked_at_s=111.0)])

    assert roles(store, unowned=False) == {"2": ("kernel", [])}
    (changed,) = store.delta(HOST, commit.seq).changed
    assert changed[DELTA_COLUMNS.index("owner_role")] == "kernel"
    store.apply([passed(4, 111.0, holdings=[holding(8, 3, 5)], processes=[NGINX])])
    assert roles(store) == {"2": ("holder", [8])}


def test_no_socket_is_the_kernels_while_a_process_may_not_be_read(store: Store) -> None:
    store.apply([passed(1, 100.0, denied=1, connections=[connection(2, inode=5)])])
    assert roles(store) == {"2": (None, [])}

    store.set_losses({"processes_denied": 1})
    store.apply([passed(2, 101.0)])
    assert roles(store) == {"2": (None, [])}

    store.set_losses({"processes_denied": 0})
    store.apply([passed(3, 102.0)])
    assert roles(store) == {"2": ("kernel", [])}


def test_no_socket_is_the_kernels_while_a_namespace_was_not_walked(store: Store) -> None:
    store.apply(
        [passed(1, 100.0, connections=[connection(2, inode=5)])], [roster_row(HOST), roster_row(BLUE)]
    )
    assert roles(store) == {"2": (None, [])}

    store.apply([snapshot(BLUE, walked_at_s=100.0)])
    assert roles(store) == {"2": (None, [])}  # known descriptors were not read again

    store.apply([snapshot(BLUE, 2, base=False, searched_since_s=100.0)])
    assert roles(store) == {"2": ("kernel", [])}


def test_no_socket_is_the_kernels_while_a_namespace_is_left_out(store: Store) -> None:
    store.set_losses({"namespaces_left_out": 1})
    store.apply([passed(1, 100.0, connections=[connection(2, inode=5)])])
    assert roles(store) == {"2": (None, [])}

    store.set_losses({"namespaces_left_out": 0})
    store.apply([passed(2, 101.0)])
    assert roles(store) == {"2": ("kernel", [])}


def test_socket_that_somebody_held_is_never_the_kernels(store: Store) -> None:
    store.apply([passed(1, 100.0, connections=[connection(2, inode=5)], processes=[NGINX],
                        holdings=[holding(8, 3, 5)])])  # fmt: skip

    store.apply([passed(2, 110.0, gone_holdings=[holding(8, 3, 5)])])
    store.apply([passed(3, 120.0)])

    assert roles(store) == {"2": (None, [])}


def test_accepted_socket_is_looked_for_anew(store: Store) -> None:
    store.apply([passed(1, 100.0, connections=[waiting(2)])])
    store.apply([passed(2, 110.0)])
    store.apply([passed(3, 118.0, taken_at_s=119.0, connections=[waiting(2)._replace(inode=5)])])

    assert roles(store) == {"2": (None, [])}


def test_new_life_of_a_worker_proves_nothing_of_the_passes_before(store: Store) -> None:
    store.apply([passed(1, 94.0, taken_at_s=95.0, connections=[connection(2, inode=5)])])
    store.apply([snapshot(life=2, taken_at_s=99.0, walked_at_s=98.0, connections=[connection(2, inode=5)])])

    assert roles(store) == {"2": (None, [])}


def test_last_owner_of_a_row_that_goes_is_not_given_to_one_that_comes_with_it(store: Store) -> None:
    store.apply(
        [snapshot(connections=[connection(2, inode=5)], processes=[NGINX], holdings=[holding(8, 3, 5)])]
    )

    arrived = connection(7, inode=0, state=State.TIME_WAIT)
    store.apply([snapshot(BLUE, connections=[arrived], holdings=[holding(8, 3, 5)]),
                 snapshot(generation=2, base=False, gone_connections=[2])])  # fmt: skip

    assert roles(store) == {"7": (None, [])}
