"""What works with which rights, and what is said where it does not."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config import Config, Ebpf
from pipeline.ebpf import EventRing, SocketIterator, probe_ebpf
from pipeline.ebpf.object import read_object
from pipeline.errors import Denied, Unsupported
from pipeline.kernel.support import Feature, cgroup2_dir
from pipeline.model.event import EventKind
from pipeline.roles.foreground import take
from tests.ebpf.rights import NOBODY, become_nobody
from tests.live import connect_pairs, in_child, needs_root

pytestmark = needs_root

RING_BYTES = 1 << 22


@pytest.fixture(autouse=True)
def objects_read_as_root() -> None:
    """The repository may lie where NOBODY may not read."""
    for name in ("sockets", "events", "events_release"):
        read_object(name)


class Seen(NamedTuple):
    """`held`: inodes that the iterator gave of the parent; `kinds`: of the events of the child's own connection."""

    uid: int
    held: set[int]
    kinds: set[int]


def test_two_capabilities_are_enough_to_see_every_process_and_every_connection() -> None:
    held = connect_pairs(socket.AF_INET, "127.0.0.1", 23)
    parent_pid, cgroup_dir = os.getpid(), cgroup2_dir()

    def as_nobody() -> Seen:
        become_nobody("CAP_BPF", "CAP_PERFMON")
        with pytest.raises(PermissionError):
            os.listdir(f"/proc/{parent_pid}/fd")
        with SocketIterator.open() as iterator, EventRing.open(RING_BYTES, cgroup_dir=cgroup_dir) as ring:
            # That needs CAP_NET_ADMIN.
            assert not ring.tells_udp_ends
            for one in connect_pairs(socket.AF_INET, "127.0.0.1", 1):
                one.close()
            inodes = {one[7][9] for one in iterator.read_process(parent_pid)}
            return Seen(os.getuid(), inodes, {one.kind for one in ring.drain() if one.pid == os.getpid()})

    seen = in_child(as_nobody)
    assert seen.uid == NOBODY
    assert {os.fstat(one.fileno()).st_ino for one in held} <= seen.held
    assert seen.kinds == {*EventKind}
    for one in held:
        one.close()


def test_two_capabilities_are_enough_for_a_snapshot_of_every_process_s_sockets() -> None:
    """It tells the owners of all that is held; what nobody holds is in tables that only CAP_SYS_ADMIN may enter."""
    held = connect_pairs(socket.AF_INET, "127.0.0.1", 23)
    inodes = {os.fstat(one.fileno()).st_ino for one in held}
    parent_pid = os.getpid()

    def as_nobody() -> set[int]:
        become_nobody("CAP_BPF", "CAP_PERFMON")
        taken = take(Config(ebpf=Ebpf(mode="require")), ())
        assert taken.by_kernel
        by_pid = [files for look in taken.looks for files in look.files if files.process.pid == parent_pid]
        return {inode for files in by_pid for inode in files.fds.values()}

    assert inodes <= in_child(as_nobody)
    for one in held:
        one.close()


def refusal(opening: Callable[[], object]) -> tuple[str, str, str]:
    """(name, message, capability) of the error that `opening` raises."""
    try:
        opening()
    except (Denied, Unsupported) as error:
        return type(error).__name__, str(error), getattr(error, "capability", "")
    return "none", "", ""


@pytest.mark.parametrize("capabilities", [(), ("CAP_BPF",), ("CAP_PERFMON",)])
@pytest.mark.parametrize("opening", [SocketIterator.open, lambda: EventRing.open(RING_BYTES)])
def test_without_one_of_the_two_it_is_denied_and_says_which_are_needed(
    opening: Callable[[], object], capabilities: tuple[str, ...]
) -> None:
    def as_nobody() -> tuple[str, str, str]:
        become_nobody(*capabilities)
        return refusal(opening)

    name, message, needed = in_child(as_nobody)
    assert name == "Denied"
    assert "Operation not permitted" in message
    assert needed == "CAP_BPF and CAP_PERFMON"


def test_the_probe_says_no_and_why_without_rights() -> None:
    def as_nobody() -> list[Feature]:
        become_nobody()
        return probe_ebpf()

    features = in_child(as_nobody)
    assert [(one.name, one.answer) for one in features] == [("ebpf_iterator", "no"), ("ebpf_events", "no")]
    for feature in features:
        assert "CAP_BPF and CAP_PERFMON" in feature.detail
        assert feature.instead != ""


@pytest.mark.parametrize("content", [None, b"no BTF"])
def test_without_the_kernels_type_information_it_is_not_supported(
    tmp_path: Path, content: bytes | None
) -> None:
    btf_path = tmp_path / "btf"
    if content is not None:
        btf_path.write_bytes(content)
    for opening in (
        lambda: SocketIterator.open(str(btf_path)),
        lambda: EventRing.open(RING_BYTES, str(btf_path)),
    ):
        name, message, _ = refusal(opening)
        assert name == "Unsupported"
        assert "type information is missing" in message and str(btf_path) in message
    features = probe_ebpf(str(btf_path))
    assert [(one.name, one.answer) for one in features] == [("ebpf_iterator", "no"), ("ebpf_events", "no")]


def test_the_probe_says_yes_to_both_where_root_may_load_programs() -> None:
    features = probe_ebpf()
    assert [(one.name, one.answer) for one in features] == [("ebpf_iterator", "yes"), ("ebpf_events", "yes")]


def test_nothing_stays_open_or_loaded_after_closing() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    iterator, ring = SocketIterator.open(), EventRing.open(RING_BYTES)
    iterator.read_all()
    iterator.read_process(os.getpid())
    ring.drain()
    assert count() > before
    for _ in range(2):
        iterator.close()
        ring.close()
    assert count() == before
