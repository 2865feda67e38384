"""One namespace of the eBPF worker: what passes and sweeps say of its processes, here of this very one."""

from __future__ import annotations

import os

import pytest

from pipeline.clock import SystemClock
from pipeline.config import Config
from pipeline.model.connection import Family, Proto, State
from pipeline.model.held_socket import HeldSocket
from pipeline.model.process import Task
from pipeline.model.snapshot import Snapshot
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.stat import read_stat
from pipeline.roles.ebpf_namespace import EbpfNamespace
from pipeline.roles.ebpf_sweep import Sweep, unshown
from pipeline.walk.reading import TableReader

NETNS = 4026531840
PID = os.getpid()


def held(fd: int, inode: int) -> HeldSocket:
    stat = read_stat(ProcRoot(), PID)
    row = (Family.INET, State.LISTEN, b"\0\x50", b"\0\0", bytes(16), bytes(16), 0, inode + 1000, 0, inode)
    comm = stat.comm.encode().ljust(16, b"\0")
    return PID, stat.start_ticks, fd, comm, NETNS, 0, 0, row, Proto.TCP, NETNS, 5, 0, 0


@pytest.fixture
def namespace() -> EbpfNamespace:
    clock = SystemClock()
    reader = TableReader(ProcRoot(), NETNS, "sock_diag", clock)
    made = EbpfNamespace(NETNS, 1, ProcRoot(), reader, clock, Config())
    made.set_members([Task(PID, PID)], ())
    return made


def holdings_of(snapshot: Snapshot) -> set[tuple[int, int]]:
    return {(one.fd, one.inode) for one in snapshot.holdings}


def take_pass(namespace: EbpfNamespace, *rows: HeldSocket) -> None:
    namespace.take_pass(list(rows), {PID: list(rows)} if rows else {}, SystemClock().monotonic_s())


def test_a_thread_s_descriptor_hides_none_of_the_same_number(namespace: EbpfNamespace) -> None:
    take_pass(namespace, held(3, 10), held(3, 11))
    assert holdings_of(namespace.take_snapshot()) == {(3, 10), (3, 11)}


def test_what_a_sweep_told_stays_through_passes_until_the_next_sweep(namespace: EbpfNamespace) -> None:
    take_pass(namespace, held(3, 10))
    namespace.take_beside(PID, {8: 20}, {})
    take_pass(namespace, held(3, 10), held(4, 11))
    assert holdings_of(namespace.base()) == {(3, 10), (4, 11), (8, 20)}
    namespace.take_beside(PID, {}, {})
    assert holdings_of(namespace.base()) == {(3, 10), (4, 11)}


def test_what_a_pass_shows_by_now_is_left_to_passes(namespace: EbpfNamespace) -> None:
    take_pass(namespace, held(3, 10))
    namespace.take_beside(PID, {8: 20}, {})
    Sweep(ProcRoot(), Config()).prune({NETNS: namespace}, [held(9, 20)])
    assert holdings_of(namespace.base()) == {(3, 10)}


def test_only_a_sweep_that_missed_nothing_lets_a_socket_be_the_kernels(namespace: EbpfNamespace) -> None:
    take_pass(namespace, held(3, 10))
    assert namespace.take_snapshot().searched_since_s is None
    namespace.swept(set(), 7.0)
    assert namespace.take_snapshot().searched_since_s == 7.0
    namespace.swept(set(), None)
    assert namespace.take_snapshot().searched_since_s is None


def test_sockets_that_two_passes_left_without_holder_are_searched_once(namespace: EbpfNamespace) -> None:
    row = held(3, 10)
    namespace.sockets.take_dump({Proto.TCP: [row[7]]}, SystemClock().monotonic_s())
    assert unshown({NETNS: namespace}) == {10}
    take_pass(namespace)
    assert namespace.unsearched == set()
    take_pass(namespace)
    assert namespace.unsearched == {10}
    namespace.swept({10}, 7.0)
    take_pass(namespace)
    assert namespace.unsearched == set()
