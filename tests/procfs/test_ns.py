from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Denied, Malformed, Vanished
from pipeline.kernel.libc import CLONE_NEWNET, unshare
from pipeline.model.process import Task
from pipeline.procfs.ns import netns_path, parse_netns_link, read_netns_inode
from pipeline.procfs.root import ProcRoot
from tests.fake_root import recorded
from tests.live import LiveNetns, in_child, needs_root


def test_read_netns_inode_of_a_process_and_of_a_thread_that_differs() -> None:
    root = recorded("two_namespaces")
    assert read_netns_inode(root, Task(1, 1)) == 4026531840
    assert read_netns_inode(root, Task(1, 9)) == 4026532417


@pytest.mark.parametrize(
    "link", ["", "net:[]", "net:[12", "net:[-1]", "net:[²]", "mnt:[4026531840]", "/net:[1]"]
)
def test_other_links_are_malformed(link: str) -> None:
    with pytest.raises(Malformed):
        parse_netns_link(link)


@pytest.mark.parametrize("pid", [71, 72])
def test_links_of_the_broken_tree_are_malformed(pid: int) -> None:
    with pytest.raises(Malformed):
        read_netns_inode(recorded("broken"), Task(pid, pid))


@given(st.text(max_size=40))
def test_any_text_gives_an_inode_or_malformed(link: str) -> None:
    try:
        assert link == f"net:[{link[5:-1]}]" and parse_netns_link(link) >= 0
    except Malformed:
        return
    except AssertionError:
        with pytest.raises(Malformed):
            parse_netns_link(link)


def test_a_process_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        read_netns_inode(recorded("two_namespaces"), Task(99, 99))


def test_netns_path_stands_below_the_proc_root_given() -> None:
    assert netns_path(ProcRoot("/host/proc/"), Task(7, 8)) == "/host/proc/7/task/8/ns/net"


@needs_root
def test_read_netns_inode_agrees_with_stat_for_a_live_namespace() -> None:
    with LiveNetns() as netns:
        assert read_netns_inode(ProcRoot(), Task(netns.pid, netns.pid)) == netns.inode


@needs_root
def test_a_thread_in_another_namespace_than_its_leader_is_seen() -> None:
    def inodes() -> tuple[int, int, int]:
        here = os.stat("/proc/self/ns/net").st_ino
        moved, end = threading.Event(), threading.Event()

        def move() -> None:
            unshare(CLONE_NEWNET)
            moved.set()
            end.wait()

        thread = threading.Thread(target=move)
        thread.start()
        moved.wait()
        tid = thread.native_id
        assert tid is not None
        leader = read_netns_inode(ProcRoot(), Task(os.getpid(), os.getpid()))
        other = read_netns_inode(ProcRoot(), Task(os.getpid(), tid))
        end.set()
        thread.join()
        return here, leader, other

    here, leader, other = in_child(inodes)
    assert leader == here
    assert other != here


@needs_root
def test_another_users_namespace_link_is_denied_without_ptrace() -> None:
    parent = os.getpid()

    def capability() -> str:
        os.setuid(65534)
        try:
            read_netns_inode(ProcRoot(), Task(parent, parent))
        except Denied as error:
            return error.capability
        return "read"

    assert in_child(capability) == "CAP_SYS_PTRACE"
