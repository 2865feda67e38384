from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.kernel.enter import (
    EXIT_STRANDED,
    home_inode,
    inside,
    netns_inode_at,
    netns_of_socket,
    open_netns,
    way_into,
)
from pipeline.kernel.libc import CLONE_FILES, CLONE_NEWNET, unshare
from tests.live import LiveNetns, in_child, needs_root


def current_inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@needs_root
def test_inside_is_in_the_other_namespace_and_back_home_afterwards() -> None:
    home = current_inode()
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with open(netns_fd, closefd=True), inside(netns_fd):
            assert current_inode() == netns.inode
            assert [name for _, name in socket.if_nameindex()] == ["lo"]
            assert home_inode() == home
        assert current_inode() == home


@needs_root
def test_the_first_way_that_leads_there_is_taken() -> None:
    with LiveNetns() as other, LiveNetns() as wanted:
        with way_into(["/proc/0/ns/net", other.path, wanted.path], wanted.inode) as netns_fd:
            assert netns_fd is not None
            assert os.fstat(netns_fd).st_ino == wanted.inode
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(netns_fd)
        with pytest.raises(Vanished, match="is namespace"), way_into([other.path], wanted.inode):
            pass


def test_there_is_no_way_into_our_own_namespace_and_none_without_a_way() -> None:
    with way_into([], current_inode()) as netns_fd:
        assert netns_fd is None
    with pytest.raises(Vanished, match="no way into"), way_into([], 1):
        pass


@needs_root
def test_an_error_inside_comes_out_at_home() -> None:
    home = current_inode()
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with open(netns_fd, closefd=True):
            with pytest.raises(ZeroDivisionError), inside(netns_fd):
                raise ZeroDivisionError
            assert current_inode() == home


@needs_root
def test_a_process_that_cannot_come_back_ends_with_its_own_status() -> None:
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with open(netns_fd, closefd=True):
            pid = os.fork()
            if pid == 0:
                with inside(netns_fd):
                    os.setuid(65534)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == EXIT_STRANDED


@needs_root
def test_entering_without_the_right_is_denied_and_stays_home() -> None:
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)

        def outcome() -> tuple[str, bool]:
            home = current_inode()
            os.setuid(65534)
            try:
                with inside(netns_fd):
                    return "entered", False
            except Denied as error:
                return error.capability, current_inode() == home

        with open(netns_fd, closefd=True):
            assert in_child(outcome) == ("CAP_SYS_ADMIN", True)


def test_a_file_that_is_no_namespace_is_unsupported() -> None:
    with open("/dev/null") as file, pytest.raises(Unsupported), inside(file.fileno()):
        pass


def test_open_netns_of_a_path_that_is_gone_vanished() -> None:
    for path in ("/proc/0/ns/net", "/dev/null/net", "/run/no-such-netns"):
        with pytest.raises(Vanished):
            open_netns(path, 1)


def test_open_netns_of_another_namespace_than_meant_vanished_and_leaks_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Vanished, match="not 4711"):
        open_netns("/proc/self/ns/net", 4711)
    assert os.listdir("/proc/self/fd") == before


@needs_root
def test_open_netns_of_another_user_is_denied() -> None:
    path, inode = f"/proc/{os.getpid()}/ns/net", current_inode()

    def capability() -> str:
        os.setuid(65534)
        try:
            open_netns(path, inode)
        except Denied as error:
            return error.capability
        return "opened"

    assert in_child(capability) == "CAP_SYS_PTRACE"


@needs_root
def test_a_forked_child_finds_its_own_way_home_after_closing_what_it_inherited() -> None:
    home = home_inode()
    with LiveNetns() as netns:

        def outcome() -> tuple[int, int]:
            with open("/dev/null") as null:
                # Every inherited descriptor, the parent's way home among them, becomes another file.
                for name in os.listdir("/proc/self/fd"):
                    if int(name) > 2 and int(name) != null.fileno() and is_netns(int(name)):
                        os.dup2(null.fileno(), int(name))
                netns_fd = open_netns(netns.path, netns.inode)
                with inside(netns_fd), open(netns_fd, closefd=True):
                    there = current_inode()
                return there, current_inode()

        assert in_child(outcome) == (netns.inode, home)


@needs_root
def test_netns_inode_at_is_the_namespace_or_none_for_anything_else(tmp_path: Path) -> None:
    plain, fifo = tmp_path / "plain", tmp_path / "fifo"
    plain.touch()
    os.mkfifo(fifo)
    with LiveNetns() as netns:
        assert netns_inode_at(netns.path) == netns.inode
    for path in (plain, fifo, tmp_path, tmp_path / "missing", "/proc/self/ns/mnt"):
        assert netns_inode_at(str(path)) is None


def is_netns(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("net:[")
    except FileNotFoundError:
        return False


def inode_through(path: str, expected_inode: int) -> int:
    """The inode of what open_netns opens."""
    with open(open_netns(path, expected_inode), closefd=True) as file:
        return os.fstat(file.fileno()).st_ino


@needs_root
def test_a_descriptor_of_a_namespace_and_a_socket_opened_there_are_ways_into_it() -> None:
    with LiveNetns() as netns:
        netns_fd = open_netns(netns.path, netns.inode)
        with open(netns_fd, closefd=True):
            with inside(netns_fd):
                sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            with sock:
                for fd in (netns_fd, sock.fileno()):
                    assert inode_through(f"/proc/{os.getpid()}/fd/{fd}", netns.inode) == netns.inode
                    assert inode_through(f"/proc/{os.getpid()}/task/{os.getpid()}/fd/{fd}", netns.inode)
                assert netns_of_socket(os.getpid(), os.getpid(), sock.fileno()) == netns.inode


@needs_root
def test_a_descriptor_that_is_another_file_by_now_is_no_way_in_and_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with LiveNetns() as netns, open(fifo, "r+b", 0) as other, socket.socket() as sock:
        for fd in (other.fileno(), sock.fileno(), 4099):
            # Opening the FIFO would take it for reading; it says nothing of whom it asks.
            with pytest.raises(Vanished):
                open_netns(f"/proc/{os.getpid()}/fd/{fd}", netns.inode)


@needs_root
def test_the_namespace_of_what_is_no_socket_or_of_nobody_vanished() -> None:
    own = os.getpid()
    with open("/dev/null") as file:
        for pid, fd in ((own, file.fileno()), (own, 4099), (2**22, 3)):
            with pytest.raises(Vanished):
                netns_of_socket(pid, pid, fd)


@needs_root
def test_an_ordinary_user_is_told_which_capability_he_lacks_for_a_socket_s_namespace() -> None:
    with socket.socket() as sock:
        fd, owner = sock.fileno(), os.getpid()

        def refusal() -> str:
            os.setuid(65534)
            try:
                netns_of_socket(owner, owner, fd)
            except Denied as error:
                return error.capability
            return ""

        assert in_child(refusal) == "CAP_SYS_PTRACE"


@needs_root
def test_a_socket_in_a_thread_s_own_table_is_asked_by_its_tid() -> None:
    found: list[int] = []

    def work() -> None:
        unshare(CLONE_FILES | CLONE_NEWNET)
        with socket.socket() as sock:
            tid = threading.get_native_id()
            found.append(netns_of_socket(os.getpid(), tid, sock.fileno()))
            found.append(os.stat(f"/proc/{os.getpid()}/task/{tid}/ns/net").st_ino)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == found[1] != current_inode()
