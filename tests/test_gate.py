"""Which namespaces get a look, by counters and by time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.gate import CounterReader, Counters, Gate, GateSettings, Verdict, read_counters
from pipeline.model.process import Task
from pipeline.procfs.snmp import SnmpTcp
from tests.fake_root import TREES, FakeRoot

EMPTY = Counters(SnmpTcp(0, 0, 0), 0, 0, 0)
BUSY = Counters(SnmpTcp(7, 5, 4), 6, 0, 1)
NETNS = 4026531840


def looks_until(gate: Gate, clock: ManualClock, end_s: float, counters: Counters | None) -> list[float]:
    """When a look was ordered, with the same counters at each check, asked four times a second."""
    looks = []
    while clock.now_s < end_s:
        for netns in gate.due(clock.now_s):
            if gate.check(netns, counters, clock.now_s) in (Verdict.LOOK, Verdict.REFRESH):
                looks.append(clock.now_s)
        clock.advance(0.25)
    return looks


def new_gate() -> tuple[Gate, ManualClock]:
    gate, clock = Gate(GateSettings()), ManualClock(1000.0)
    gate.add(NETNS, clock.now_s)
    return gate, clock


def test_a_new_namespace_is_due_at_once_and_looked_at() -> None:
    gate, clock = new_gate()
    assert gate.due(clock.now_s) == [NETNS]
    assert gate.check(NETNS, EMPTY, clock.now_s) is Verdict.LOOK
    assert gate.due(clock.now_s) == []


def test_an_empty_unchanged_namespace_is_proven_unchanged_without_a_look() -> None:
    gate, clock = new_gate()
    gate.check(NETNS, EMPTY, clock.now_s)
    for _ in range(100):
        clock.advance(1.0)
        assert gate.check(NETNS, EMPTY, clock.now_s) is Verdict.UNCHANGED


def test_an_unchanged_namespace_with_sockets_is_looked_at_every_ten_seconds() -> None:
    gate, clock = new_gate()
    assert looks_until(gate, clock, 1051.0, BUSY) == [1000.0, 1010.0, 1020.0, 1030.0, 1040.0, 1050.0]


STILL = BUSY._replace(udp_inuse=0)


def after_a_quiet_minute(counters: Counters) -> tuple[Gate, ManualClock]:
    gate, clock = new_gate()
    looks_until(gate, clock, 1061.0, counters)
    return gate, clock


def test_a_namespace_still_for_a_minute_is_proven_unchanged_and_looked_at_once_a_minute() -> None:
    gate, clock = after_a_quiet_minute(STILL)
    looks = looks_until(gate, clock, 1300.0, STILL)
    assert looks == [1110.0, 1170.0, 1230.0, 1290.0]
    clock.advance(5.0)
    assert gate.check(NETNS, STILL, clock.now_s) is Verdict.UNCHANGED


def test_a_segment_may_have_changed_a_state_so_proof_waits_for_the_next_look() -> None:
    gate, clock = after_a_quiet_minute(STILL)
    moved = STILL._replace(tcp=STILL.tcp._replace(segments=9))
    clock.now_s = 1065.0
    assert gate.check(NETNS, moved, clock.now_s) is Verdict.LOOK  # the last one was at 1050
    clock.now_s = 1070.0
    assert gate.check(NETNS, moved, clock.now_s) is Verdict.UNCHANGED
    again = STILL._replace(tcp=STILL.tcp._replace(segments=10))
    clock.now_s = 1074.0
    assert gate.check(NETNS, again, clock.now_s) is Verdict.WAIT
    assert gate.check(NETNS, again, clock.now_s) is Verdict.WAIT
    clock.now_s = 1075.0
    assert gate.check(NETNS, again, clock.now_s) is Verdict.LOOK
    assert gate.due(clock.now_s) == []


def test_a_namespace_with_udp_sockets_is_never_still_since_connecting_one_moves_nothing() -> None:
    gate, clock = after_a_quiet_minute(BUSY)
    assert looks_until(gate, clock, 1101.0, BUSY) == [1070.0, 1080.0, 1090.0, 1100.0]


def test_sockets_in_any_counter_make_a_namespace_not_empty() -> None:
    assert EMPTY.is_empty
    one = SnmpTcp(0, 0, 1)
    for counters in (
        EMPTY._replace(tcp_inuse=1),
        EMPTY._replace(tcp_tw=1),
        EMPTY._replace(udp_inuse=1),
        EMPTY._replace(tcp=one),
    ):
        assert not counters.is_empty
    assert EMPTY._replace(tcp=SnmpTcp(100, 100, 0)).is_empty


def test_every_counter_that_moves_brings_a_look() -> None:
    gate, clock = new_gate()
    gate.check(NETNS, BUSY, clock.now_s)
    before = BUSY
    for counters in (
        BUSY._replace(tcp=SnmpTcp(8, 5, 4)),
        BUSY._replace(tcp=SnmpTcp(8, 6, 4)),
        BUSY._replace(tcp=SnmpTcp(8, 6, 5)),
        BUSY._replace(tcp=SnmpTcp(8, 6, 5), tcp_inuse=7),
        BUSY._replace(tcp=SnmpTcp(8, 6, 5), tcp_inuse=7, tcp_tw=1),
        BUSY._replace(tcp=SnmpTcp(8, 6, 5), tcp_inuse=7, tcp_tw=1, udp_inuse=2),
    ):
        clock.advance(1.0)
        assert gate.check(NETNS, before, clock.now_s) is Verdict.WAIT
        assert gate.check(NETNS, counters, clock.now_s) is Verdict.LOOK
        before = counters


def test_a_namespace_is_checked_each_second_for_a_minute_after_a_change_and_then_each_five() -> None:
    gate, clock = new_gate()
    checks = []
    while clock.now_s < 1090.0:
        for netns in gate.due(clock.now_s):
            checks.append(clock.now_s - 1000.0)
            gate.check(netns, EMPTY, clock.now_s)
        clock.advance(0.25)
    assert checks == [float(second) for second in range(60)] + [60.0, 65.0, 70.0, 75.0, 80.0, 85.0]


def test_a_namespace_that_was_there_at_the_start_is_quiet_after_five_seconds() -> None:
    gate, clock = Gate(GateSettings()), ManualClock(1000.0)
    gate.add(NETNS, clock.now_s, is_settled=True)
    checks = []
    while clock.now_s < 1020.0:
        for netns in gate.due(clock.now_s):
            checks.append(clock.now_s - 1000.0)
            gate.check(netns, STILL, clock.now_s)
        clock.advance(0.25)
    assert checks == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0]
    assert gate.check(NETNS, STILL, clock.now_s) is Verdict.UNCHANGED
    moved = STILL._replace(tcp_inuse=7)
    assert gate.check(NETNS, moved, clock.now_s) is Verdict.LOOK
    assert gate.busy(clock.now_s + 59.0) == {NETNS}


def test_a_look_that_is_due_although_nothing_changed_leaves_the_proof_as_it_is() -> None:
    gate, clock = after_a_quiet_minute(STILL)
    looks_until(gate, clock, 1110.0, STILL)
    assert gate.check(NETNS, STILL, clock.now_s) is Verdict.REFRESH


def test_a_change_in_a_quiet_namespace_makes_it_busy_again() -> None:
    gate, clock = new_gate()
    looks_until(gate, clock, 1200.0, EMPTY)
    assert gate.due(clock.now_s) == [NETNS]
    assert gate.check(NETNS, BUSY, clock.now_s) is Verdict.LOOK
    clock.advance(1.0)
    assert gate.due(clock.now_s) == [NETNS]


def test_a_check_that_comes_late_is_not_followed_by_a_burst() -> None:
    gate, clock = new_gate()
    gate.check(NETNS, EMPTY, clock.now_s)
    clock.advance(30.0)
    gate.check(NETNS, EMPTY, clock.now_s)
    assert gate.due(clock.now_s + 0.9) == []
    assert gate.due(clock.now_s + 1.0) == [NETNS]


def test_a_process_that_came_or_went_brings_a_look_at_once_though_no_counter_moved() -> None:
    gate, clock = new_gate()
    looks_until(gate, clock, 1003.0, EMPTY)
    clock.advance(0.3)
    gate.members_changed(NETNS, clock.now_s)
    assert gate.due(clock.now_s) == [NETNS]
    assert gate.check(NETNS, EMPTY, clock.now_s) is Verdict.LOOK


def test_without_counters_a_busy_namespace_is_looked_at_each_second_and_a_quiet_one_each_five() -> None:
    gate, clock = new_gate()
    assert len(looks_until(gate, clock, 1060.0, None)) == 60  # the last of them at 1059
    assert looks_until(gate, clock, 1080.0, None) == [1065.0, 1070.0, 1075.0]


def test_counters_that_can_be_read_again_bring_a_look() -> None:
    gate, clock = new_gate()
    gate.check(NETNS, EMPTY, clock.now_s)
    gate.check(NETNS, None, clock.now_s + 1.0)
    assert gate.check(NETNS, EMPTY, clock.now_s + 2.0) is Verdict.LOOK


def test_a_removed_namespace_is_never_due_again() -> None:
    gate, clock = new_gate()
    gate.remove(NETNS)
    gate.remove(NETNS)
    assert gate.due(clock.now_s + 100.0) == []


@given(st.lists(st.tuples(st.floats(0.05, 20), st.sampled_from([EMPTY, BUSY, None])), max_size=50))
def test_no_change_waits_and_no_state_is_unseen_for_long(steps: list[tuple[float, Counters | None]]) -> None:
    """A look follows each change of counters at the next check; without one, all that is not proven empty is
    looked at within the full interval and one check."""
    gate, clock = new_gate()
    before: Counters | None = None
    unproven_since_s = clock.now_s
    for wait_s, counters in steps:
        clock.advance(wait_s)
        if not gate.due(clock.now_s):
            continue
        verdict = gate.check(NETNS, counters, clock.now_s)
        assert gate.due(clock.now_s) == []
        if counters is not None and counters != before:
            assert verdict is Verdict.LOOK
        if verdict is Verdict.UNCHANGED:
            assert counters == before == EMPTY
        if verdict is Verdict.WAIT:
            assert clock.now_s - unproven_since_s < 10.0
        else:
            unproven_since_s = clock.now_s
        before = counters


def test_counters_are_read_through_the_first_member_that_is_alive() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    tasks = [Task(70, 70), Task(69, 69), Task(71, 71)]
    counters = read_counters(root, tasks)
    assert counters is not None
    assert counters == read_counters(root, [Task(71, 71)])
    assert not counters.is_empty


def test_counters_of_a_kernel_without_ipv6_are_read() -> None:
    assert read_counters(FakeRoot(f"{TREES}/two_namespaces"), [Task(72, 72)]) is not None


def test_the_counters_of_ipv6_are_read_again_when_the_number_of_sockets_changed_or_at_the_sixth_check() -> (
    None
):
    root, reader, tasks = FakeRoot(f"{TREES}/two_namespaces"), CounterReader(), [Task(71, 71)]
    read: list[str] = []
    root.on_access = read.append

    def checks(netns: int, count: int) -> list[int]:
        read.clear()
        numbers: list[int] = []
        for number in range(count):
            assert reader.read(netns, root, tasks) == read_counters(FakeRoot(root.path), tasks)
            numbers += [number] * (read.count("71/net/sockstat6") > len(numbers))
        return numbers

    assert checks(NETNS, 13) == [0, 6, 12]
    assert checks(NETNS, 1) == []
    assert checks(NETNS + 1, 1) == [0]
    tasks = [Task(72, 72)]
    assert reader.read(NETNS, root, tasks) == read_counters(
        root, tasks
    )  # which has another number of sockets
    reader.forget(NETNS + 1)
    tasks = [Task(71, 71)]
    assert checks(NETNS + 1, 1) == [0]


def test_counters_that_nobody_shows_are_none() -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    assert read_counters(root, []) is None
    assert read_counters(root, [Task(70, 70)]) is None
    root.denied["71"] = "CAP_SYS_PTRACE"
    assert read_counters(root, [Task(71, 71)]) is None
    assert read_counters(FakeRoot(f"{TREES}/broken"), [Task(71, 71), Task(72, 72)]) is None
