"""Namespaces found in proc trees and mount folders, and what changed from scan to scan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.discover import Changes, Discovery, Membership, diff
from pipeline.model.netns import Netns, NetnsInode
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot
from tests.fake_root import TREES, FakeRoot
from tests.live import LiveNetns, needs_root

HOST, OTHER = NetnsInode(4026531840), NetnsInode(4026532417)


def write_task(root: FakeRoot, pid: int, netns: int, threads: dict[int, int] | None = None) -> None:
    """A process in a namespace, and its other threads with theirs."""
    folder = Path(root.path) / str(pid)
    for task, inode in (
        (folder, netns),
        *((folder / f"task/{tid}", ns) for tid, ns in (threads or {}).items()),
    ):
        (task / "ns").mkdir(parents=True, exist_ok=True)
        link = task / "ns/net"
        link.unlink(missing_ok=True)
        link.symlink_to(f"net:[{inode}]")
    (folder / "task" / str(pid) / "ns").mkdir(parents=True, exist_ok=True)
    (folder / "task" / str(pid) / "ns/net").unlink(missing_ok=True)
    (folder / "task" / str(pid) / "ns/net").symlink_to(f"net:[{netns}]")


@pytest.fixture
def tree(tmp_path: Path) -> FakeRoot:
    (tmp_path / "proc").mkdir()
    return FakeRoot(str(tmp_path / "proc"))


def test_processes_are_grouped_by_namespace_and_a_thread_elsewhere_is_a_task_there() -> None:
    found = Discovery(FakeRoot(f"{TREES}/two_namespaces"), ()).scan(0.0)
    assert found == {
        HOST: Netns(HOST, (), (), frozenset({Task(1, 1), Task(2, 2), Task(71, 71)})),
        OTHER: Netns(OTHER, (), (), frozenset({Task(72, 72), Task(1, 9)})),
    }


def test_a_thread_that_goes_elsewhere_and_comes_back_is_seen_while_its_process_is_young(
    tree: FakeRoot,
) -> None:
    write_task(tree, 10, HOST, {11: HOST})
    discovery = Discovery(tree, ())
    assert set(discovery.scan(0.0)) == {HOST}
    write_task(tree, 10, HOST, {11: OTHER})
    assert discovery.scan(1.0)[OTHER].tasks == {Task(10, 11)}
    write_task(tree, 10, HOST, {11: HOST})
    assert set(discovery.scan(2.0)) == {HOST}


def test_a_process_that_moves_is_a_member_of_its_new_namespace_only(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST)
    write_task(tree, 12, HOST)
    discovery = Discovery(tree, ())
    before = discovery.scan(0.0)
    write_task(tree, 10, OTHER)
    after = discovery.scan(60.0)
    assert diff(before, after) == Changes(
        [OTHER],
        [],
        {HOST: Membership([], [Task(10, 10)]), OTHER: Membership([Task(10, 10)], [])},
        [],
    )


def test_a_scan_that_finds_nothing_new_gives_what_the_one_before_gave(tree: FakeRoot) -> None:
    for pid in range(1, 30):
        write_task(tree, pid, HOST)
    discovery = Discovery(tree, ())
    first = discovery.scan(0.0)
    assert discovery.scan(1.0) is first
    write_task(tree, 30, OTHER)
    assert discovery.scan(2.0).keys() == {HOST, OTHER}


def test_every_process_of_many_is_read_again_within_five_scans_when_it_is_two_minutes_old(
    tree: FakeRoot,
) -> None:
    for pid in range(1, 100):
        write_task(tree, pid, HOST)
    discovery = Discovery(tree, ())
    discovery.scan(0.0)
    moved = range(1, 100, 11)
    for pid in moved:
        write_task(tree, pid, OTHER)
    for number in range(4):
        discovery.scan(121.0 + number)
    assert discovery.scan(125.0)[OTHER].tasks == {Task(pid, pid) for pid in moved}


def test_every_settled_process_of_many_is_read_again_within_two_scans(tree: FakeRoot) -> None:
    for pid in range(1, 1100):
        write_task(tree, pid, HOST)
    discovery = Discovery(tree, ())
    discovery.scan(0.0)
    moved = range(1, 1100, 11)
    for pid in moved:
        write_task(tree, pid, OTHER)
    discovery.scan(100.0)
    assert discovery.scan(101.0)[OTHER].tasks == {Task(pid, pid) for pid in moved}


def test_processes_that_vanish_or_are_denied_are_no_members_and_the_denied_are_counted(
    tree: FakeRoot,
) -> None:
    for pid in (10, 12, 14):
        write_task(tree, pid, HOST)
    discovery = Discovery(tree, ())
    discovery.scan(0.0)
    tree.lost.add("10/ns")
    tree.denied["12/ns"] = "CAP_SYS_PTRACE"
    assert discovery.scan(1.0)[HOST].tasks == {Task(14, 14)}
    assert discovery.denied == 1
    tree.denied.clear()
    assert discovery.scan(2.0)[HOST].tasks == {Task(12, 12), Task(14, 14)}
    assert discovery.denied == 0


def test_threads_that_vanish_between_listing_and_reading_are_left_out(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST, {11: OTHER, 13: OTHER})
    tree.lost.add("10/task/11/ns")
    assert Discovery(tree, ()).scan(0.0)[OTHER].tasks == {Task(10, 13)}


def test_a_namespace_link_that_is_not_one_counts_as_denied(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST)
    (Path(tree.path) / "10/ns/net").unlink()
    (Path(tree.path) / "10/ns/net").symlink_to("nonsense")
    discovery = Discovery(tree, ())
    assert discovery.scan(0.0) == {}
    assert discovery.denied == 1


@pytest.mark.parametrize(
    ("include", "exclude", "inodes"),
    [
        ([], [], {HOST, OTHER}),
        (["40265318*"], [], {HOST}),
        ([], [str(HOST)], {OTHER}),
        (["4026*"], ["*417"], {HOST}),
        (["no-such-name"], [], set()),
    ],
)
def test_include_and_exclude_are_patterns_on_inodes(
    include: list[str], exclude: list[str], inodes: set[int]
) -> None:
    root = FakeRoot(f"{TREES}/two_namespaces")
    assert set(Discovery(root, (), include, exclude).scan(0.0)) == inodes


def test_mount_folders_may_be_missing_or_hold_what_is_no_namespace(tree: FakeRoot, tmp_path: Path) -> None:
    mounts = tmp_path / "netns"
    mounts.mkdir()
    (mounts / "plain").touch()
    os.mkfifo(mounts / "fifo")
    (mounts / "loop").symlink_to("loop")
    (mounts / "dangling").symlink_to("nowhere")
    (mounts / "folder").mkdir()
    (mounts / "uts").symlink_to("/proc/self/ns/uts")
    discovery = Discovery(tree, (str(mounts), str(tmp_path / "missing"), str(mounts / "plain")))
    assert discovery.scan(0.0) == {}
    assert discovery.scan(1.0) == {}


@pytest.fixture
def named(tmp_path: Path) -> Iterator[tuple[Path, LiveNetns]]:
    """A mount folder with one live namespace bound as `blue` and as `azure`."""
    mounts = tmp_path / "netns"
    mounts.mkdir()
    names = [mounts / "blue", mounts / "azure"]
    with LiveNetns() as live:
        for name in names:
            name.touch()
            subprocess.run(["mount", "--bind", live.path, str(name)], check=True)
        try:
            yield mounts, live
        finally:
            for name in names:
                subprocess.run(["umount", str(name)], check=False, capture_output=True)


@needs_root
def test_a_bound_namespace_has_its_names_sorted_with_their_paths(
    tree: FakeRoot, named: tuple[Path, LiveNetns]
) -> None:
    mounts, live = named
    (mounts / "plain").touch()
    discovery = Discovery(tree, (str(mounts),))
    inode = NetnsInode(live.inode)
    both = discovery.scan(0.0)
    assert both == {
        inode: Netns(inode, ("azure", "blue"), (str(mounts / "azure"), str(mounts / "blue")), frozenset())
    }
    subprocess.run(["umount", str(mounts / "blue")], check=True)
    one = discovery.scan(1.0)
    assert one[inode].names == ("azure",)
    assert diff(both, one) == Changes([], [], {}, [inode])
    assert set(Discovery(tree, (str(mounts),), ["az*"]).scan(0.0)) == {inode}
    assert Discovery(tree, (str(mounts),), [], ["azure"]).scan(0.0) == {}
    subprocess.run(["umount", str(mounts / "azure")], check=True)
    assert diff(one, discovery.scan(2.0)) == Changes([], [inode], {}, [])


@needs_root
def test_names_that_come_and_go_are_not_remembered_for_ever(
    tree: FakeRoot, named: tuple[Path, LiveNetns]
) -> None:
    mounts, _ = named
    discovery = Discovery(tree, (str(mounts),))
    for number in range(23):
        name = mounts / f"cni-{number}"
        name.touch()
        discovery.scan(0.0)
        name.unlink()
    discovery.scan(1.0)
    assert set(discovery._mounted) == {str(mounts / "blue"), str(mounts / "azure")}


@needs_root
def test_a_live_namespace_is_found_with_its_process_and_gone_with_it() -> None:
    discovery = Discovery(ProcRoot(), ())
    with LiveNetns() as live:
        inode = NetnsInode(live.inode)
        assert discovery.scan(0.0)[inode].tasks == {Task(live.pid, live.pid)}
    assert inode not in discovery.scan(1.0)


def test_scans_that_find_the_same_differ_in_nothing() -> None:
    found = Discovery(FakeRoot(f"{TREES}/two_namespaces"), ()).scan(0.0)
    assert diff(found, found) == Changes([], [], {}, [])
    assert diff({}, found).members == {
        HOST: Membership([Task(1, 1), Task(2, 2), Task(71, 71)], []),
        OTHER: Membership([Task(1, 9), Task(72, 72)], []),
    }


def end_leader(root: FakeRoot, pid: int) -> None:
    """What a zombie leader has left."""
    for folder in (Path(root.path) / str(pid), Path(root.path) / str(pid) / "task" / str(pid)):
        (folder / "ns/net").unlink()


def test_a_process_whose_leader_has_ended_is_where_its_first_living_thread_is(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST, {11: HOST, 13: HOST, 15: OTHER})
    discovery = Discovery(tree, ())
    assert discovery.scan(0.0)[HOST].tasks == {Task(10, 10)}
    end_leader(tree, 10)
    found = discovery.scan(1.0)
    (stand_in,) = found[HOST].tasks
    assert stand_in in (Task(10, 11), Task(10, 13))
    assert found[OTHER].tasks == {Task(10, 15)}
    (Path(tree.path) / f"10/task/{stand_in.tid}/ns/net").unlink()
    assert discovery.scan(2.0)[HOST].tasks == {Task(10, 11), Task(10, 13)} - {stand_in}


def test_a_zombie_without_threads_is_nobody_s_member(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST)
    end_leader(tree, 10)
    discovery = Discovery(tree, ())
    assert discovery.scan(0.0) == {}
    assert discovery.denied == 0


OWN_FILES = """
import ctypes, sys, threading
def work():
    if len(sys.argv) > 1:
        assert ctypes.CDLL(None).unshare(0x400) == 0
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
threading.Thread(target=work).start()
"""


@needs_root
@pytest.mark.parametrize("own", [True, False])
def test_a_thread_is_a_task_beside_its_leader_only_with_descriptors_of_its_own(own: bool) -> None:
    with LiveNetns() as live:
        inside = ["nsenter", f"--net={live.path}", sys.executable, "-S", "-c", OWN_FILES, *["own"] * own]
        process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            tid = int(process.stdout.readline())
            discovery = Discovery(ProcRoot(), ())
            expected = {Task(live.pid, live.pid), Task(process.pid, process.pid)}
            if own:
                expected.add(Task(process.pid, tid))
            for scan in range(3):
                # Every scan, whether it compares or remembers.
                assert discovery.scan(scan * 10.0)[NetnsInode(live.inode)].tasks == expected
        finally:
            process.communicate(timeout=60)


@needs_root
def test_a_namespace_that_only_a_descriptor_holds_is_found_when_that_is_reported_and_gone_with_it(
    tree: FakeRoot,
) -> None:
    write_task(tree, 10, HOST)
    discovery = Discovery(tree, ())
    with LiveNetns() as live:
        inode, held = NetnsInode(live.inode), os.open(live.path, os.O_RDONLY)
    path = f"/proc/{os.getpid()}/fd/{held}"
    before = discovery.scan(0.0)
    discovery.note_held(HOST, [(inode, [path, f"/proc/{os.getpid()}/fd/4099"])])
    found = discovery.scan(1.0)
    assert found[inode] == Netns(inode, (), (), frozenset(), (path,))
    assert found[inode].paths == (path,)
    assert diff(before, found) == Changes([inode], [], {}, [])
    os.close(held)
    assert diff(found, discovery.scan(2.0)) == Changes([], [inode], {}, [])


@needs_root
def test_what_holds_a_namespace_matters_only_while_nothing_else_does(
    tree: FakeRoot, named: tuple[Path, LiveNetns]
) -> None:
    mounts, live = named
    inode = NetnsInode(live.inode)
    write_task(tree, 10, HOST)
    discovery = Discovery(tree, (str(mounts),))
    with open(live.path) as held:
        discovery.note_held(HOST, [(inode, [f"/proc/{os.getpid()}/fd/{held.fileno()}"])])
        with_name = discovery.scan(0.0)
        assert with_name[inode].held == ()
        for name in ("azure", "blue"):
            subprocess.run(["umount", str(mounts / name)], check=True)
        without = discovery.scan(1.0)
        assert without[inode].paths == (f"/proc/{os.getpid()}/fd/{held.fileno()}",)
        assert diff(with_name, without).remounted == [inode]
        write_task(tree, 12, inode)
        assert discovery.scan(2.0)[inode].held == ()


@needs_root
def test_what_a_namespace_reported_is_forgotten_with_it(tree: FakeRoot) -> None:
    write_task(tree, 10, HOST)
    write_task(tree, 12, OTHER)
    discovery = Discovery(tree, ())
    with LiveNetns() as live:
        held = os.open(live.path, os.O_RDONLY)
        inode = NetnsInode(live.inode)
    discovery.note_held(OTHER, [(inode, [f"/proc/{os.getpid()}/fd/{held}"])])
    assert inode in discovery.scan(0.0)
    write_task(tree, 12, HOST)
    discovery.scan(10.0)
    discovery.scan(11.0)
    assert inode not in discovery.scan(12.0)
    os.close(held)


def test_namespaces_that_are_left_out_are_counted(tree: FakeRoot) -> None:
    write_task(tree, 1, HOST)
    write_task(tree, 12, OTHER)
    everything, some, none = (
        Discovery(tree, (), *patterns) for patterns in ((), ((), [str(OTHER)]), (["nosuch"],))
    )
    for discovery in (everything, some, none):
        discovery.scan(0.0)
    assert (everything.left_out, some.left_out, none.left_out) == (0, 1, 2)


def test_one_more_is_left_out_where_processes_are_hidden(tree: FakeRoot) -> None:
    write_task(tree, 12, HOST)
    discovery = Discovery(tree, ())
    discovery.scan(0.0)
    assert discovery.left_out == 1  # others' processes are not shown: not even pid 1
    write_task(tree, 1, HOST)
    (Path(tree.path) / "1/ns/pid").symlink_to("pid:[4026532701]")
    discovery.scan(1.0)
    assert discovery.left_out == 1  # a pid namespace that is not the host's
    (Path(tree.path) / "1/ns/pid").unlink()
    (Path(tree.path) / "1/ns/pid").symlink_to("pid:[4026531836]")
    discovery.scan(2.0)
    assert discovery.left_out == 0


def test_what_is_mounted_here_has_nothing_to_do_with_a_recorded_tree(tree: FakeRoot, tmp_path: Path) -> None:
    tree.live = False
    write_task(tree, 1, HOST)
    (tmp_path / "netns").mkdir()
    (tmp_path / "netns" / "blue").touch()
    discovery = Discovery(tree, [str(tmp_path / "netns")])
    assert discovery.scan(0.0)[HOST].names == ()
