"""Namespaces that processes hold without living there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.kernel.enter import home_inode, inside, open_netns
from pipeline.model.process import Task
from pipeline.model.snapshot import Health
from pipeline.procfs.root import ProcRoot
from pipeline.walk.elsewhere import Elsewhere, ElsewhereSearch
from pipeline.walk.holdings import Holdings
from pipeline.walk.walker import Walker
from tests.fake_root import FakeRoot
from tests.live import LiveNetns, needs_root
from tests.walk.trees import write_process

NETNS, OTHER = 4026531840, 4026532417
OWN = Task(os.getpid(), os.getpid())


def walker_on(root: ProcRoot, netns: int) -> Walker:
    return Walker(root, netns, Holdings(), Health())


def test_descriptors_of_other_namespaces_are_found_and_a_few_of_many_are_enough(tmp_path: Path) -> None:
    root = FakeRoot(str(tmp_path))
    task = write_process(tmp_path, 71, {3: 100})
    for fd, netns in {4: OTHER, 5: NETNS, 6: OTHER, 7: OTHER, 8: OTHER, 9: OTHER, 10: OTHER + 1}.items():
        (tmp_path / f"71/fd/{fd}").symlink_to(f"net:[{netns}]")
    walker = walker_on(root, NETNS)
    walker.visit(task)
    folder = f"{tmp_path}/71/fd"
    assert ElsewhereSearch(root, walker).find(set()) == [
        Elsewhere(OTHER, [f"{folder}/{fd}" for fd in (4, 6, 7, 8)]),
        Elsewhere(OTHER + 1, [f"{folder}/10"]),
    ]


def test_sockets_of_a_foreign_proc_root_are_not_asked(tmp_path: Path) -> None:
    """The system calls that tell take pids of our own."""
    root = FakeRoot(str(tmp_path))
    with socket.socket() as sock:
        task = write_process(tmp_path, OWN.pid, {sock.fileno(): 100})
        walker = walker_on(root, NETNS)
        walker.visit(task)
        assert ElsewhereSearch(root, walker).find(set()) == []


@needs_root
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_was_opened_elsewhere_is_found_until_it_is_closed(kind: socket.SocketKind) -> None:
    root = ProcRoot()
    with LiveNetns() as live:
        netns_fd = open_netns(live.path, live.inode)
        with open(netns_fd, closefd=True), inside(netns_fd):
            sock = socket.socket(socket.AF_INET6, kind)
        walker = walker_on(root, home_inode())
        search = ElsewhereSearch(root, walker)
        with sock:
            walker.visit(OWN)
            found = [Elsewhere(live.inode, [f"/proc/{OWN.pid}/fd/{sock.fileno()}"])]
            assert [one for one in search.find(set()) if one.netns == live.inode] == found
            assert [one for one in search.find(set()) if one.netns == live.inode] == found
        walker.visit(OWN)
        assert [one for one in search.find(set()) if one.netns == live.inode] == []


@needs_root
def test_a_unix_socket_and_one_of_our_own_tables_say_nothing_of_another_namespace() -> None:
    root = ProcRoot()
    with LiveNetns() as live:
        netns_fd = open_netns(live.path, live.inode)
        with open(netns_fd, closefd=True), inside(netns_fd):
            unix, known = socket.socket(socket.AF_UNIX), socket.socket()
        with unix, known:
            walker = walker_on(root, home_inode())
            walker.visit(OWN)
            inodes = {os.fstat(known.fileno()).st_ino}
            found = ElsewhereSearch(root, walker).find(inodes)
            assert live.inode not in {one.netns for one in found}
