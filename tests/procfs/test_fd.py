from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Denied, Vanished
from pipeline.kernel.libc import CLONE_FILES, unshare
from pipeline.model.process import Task
from pipeline.procfs.fd import FdDir, fd_count, fd_path, socket_protocol
from pipeline.procfs.ns import read_netns_inode
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.stat import read_stat
from tests.fake_root import TREES, FakeRoot, recorded
from tests.live import connect_pairs, in_child, needs_root, wait_until

LIVE = ProcRoot()


def own_task() -> Task:
    return Task(os.getpid(), os.getpid())


def test_socket_inodes_of_a_recorded_process_with_zero_for_what_is_no_socket() -> None:
    with FdDir(recorded("two_namespaces"), Task(71, 71)) as fd_dir:
        names = sorted(fd_dir.names(), key=int)
        assert names == ["0", "5", "6", "7", "8", "12"]
        # fd 8 is a file named "socket:[9]".
        assert fd_dir.socket_inodes(names) == [(0, 0), (5, 5107), (6, 0), (7, 321), (8, 0), (12, 36856710)]


def test_a_thread_with_its_own_descriptors_is_read_by_its_tid() -> None:
    with FdDir(recorded("two_namespaces"), Task(1, 9)) as fd_dir:
        assert fd_dir.socket_inodes(fd_dir.names()) == [(3, 402)]


def test_descriptors_closed_between_listing_and_reading_are_left_out() -> None:
    with FdDir(recorded("two_namespaces"), Task(71, 71)) as fd_dir:
        assert fd_dir.socket_inodes(["4", "5", "9", "7"]) == [(5, 5107), (7, 321)]
        assert fd_dir.socket_inodes([]) == []


def test_a_process_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        FdDir(recorded("two_namespaces"), Task(99, 99))
    with pytest.raises(Vanished):
        fd_count(recorded("two_namespaces"), Task(99, 99))


def test_a_folder_that_may_not_be_listed_is_denied() -> None:
    root = FakeRoot(os.path.join(TREES, "two_namespaces"))
    root.denied["71/fd"] = "CAP_DAC_READ_SEARCH"
    with pytest.raises(Denied) as caught:
        FdDir(root, Task(71, 71))
    assert caught.value.capability == "CAP_DAC_READ_SEARCH"


def test_leaving_the_block_closes_the_folder_once(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with FdDir(LIVE, own_task()) as fd_dir:
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
        fd_dir.close()
    assert os.listdir("/proc/self/fd") == before


def test_all_sockets_of_a_live_process_are_found() -> None:
    sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 23)
    try:
        with FdDir(LIVE, own_task()) as fd_dir:
            pairs = fd_dir.socket_inodes(fd_dir.names())
        found = {fd: inode for fd, inode in pairs if inode}
        expected = {sock.fileno(): os.fstat(sock.fileno()).st_ino for sock in sockets}
        assert {fd: found[fd] for fd in expected} == expected
        assert len(expected) == 47
        in_tables = {entry.fd for entry in psutil.Process().net_connections(kind="all")}
        assert in_tables <= set(found)
    finally:
        for sock in sockets:
            sock.close()


def test_fd_count_follows_the_number_of_descriptors() -> None:
    before = fd_count(LIVE, own_task())
    if before == 0:
        # Linux before 6.2: 0 for everyone, as documented.
        return
    with socket.socket():
        assert fd_count(LIVE, own_task()) == before + 1
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        # An echo: by now it has loaded its libraries and closed their files.
        process.stdin.write(b"echo")
        assert process.stdout.read(4) == b"echo"
        assert fd_count(LIVE, Task(process.pid, process.pid)) == psutil.Process(process.pid).num_fds()


def test_a_process_that_dies_under_the_open_folder_vanished_or_has_nothing() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with FdDir(LIVE, Task(process.pid, process.pid)) as fd_dir:
        names = fd_dir.names()
        assert "0" in names
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(Vanished):
            fd_dir.names()
        try:
            assert fd_dir.socket_inodes(names) == []
        except Vanished:
            return


def test_a_zombie_has_no_descriptors_to_show() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with FdDir(LIVE, Task(pid, pid)) as fd_dir:
            assert fd_dir.names() == []
    finally:
        os.waitpid(pid, 0)


@needs_root
def test_a_live_thread_with_an_own_table_differs_from_its_leader() -> None:
    def inodes() -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        opened, end = threading.Event(), threading.Event()
        inode = 0

        def open_apart() -> None:
            nonlocal inode
            unshare(CLONE_FILES)
            with socket.socket() as sock:
                inode = os.fstat(sock.fileno()).st_ino
                opened.set()
                end.wait()

        thread = threading.Thread(target=open_apart)
        thread.start()
        opened.wait()
        tid = thread.native_id
        assert tid is not None
        with FdDir(LIVE, own_task()) as leader, FdDir(LIVE, Task(os.getpid(), tid)) as other:
            pairs = (leader.socket_inodes(leader.names()), other.socket_inodes(other.names()))
        end.set()
        thread.join()
        return inode, *pairs

    inode, leader, other = in_child(inodes)
    assert inode not in {found for _, found in leader}
    assert inode in {found for _, found in other}


def test_a_dead_leader_shows_nothing_while_its_live_thread_has_the_sockets() -> None:
    # The number of exit(2), which ends the calling thread only: the rest of the process lives on.
    exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        sock = socket.socket()

        def report_and_wait() -> None:
            os.write(writer, f"{threading.get_native_id()} {os.fstat(sock.fileno()).st_ino}".encode())
            signal.pause()

        threading.Thread(target=report_and_wait).start()
        ctypes.CDLL(None).syscall(exit_thread, 0)
    try:
        tid, inode = (int(word) for word in os.read(reader, 100).split())
        wait_until(lambda: read_stat(LIVE, pid).state == "Z")
        with FdDir(LIVE, Task(pid, pid)) as leader, FdDir(LIVE, Task(pid, tid)) as thread:
            assert leader.names() == []
            assert inode in {found for _, found in thread.socket_inodes(thread.names())}
        with pytest.raises(Vanished):
            read_netns_inode(LIVE, Task(pid, pid))
        assert read_netns_inode(LIVE, Task(pid, tid)) == os.stat("/proc/self/ns/net").st_ino
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


@needs_root
def test_another_users_folder_is_denied_to_an_ordinary_user() -> None:
    parent = own_task()

    def capability() -> str:
        os.setuid(65534)
        try:
            FdDir(LIVE, parent)
        except Denied as error:
            return error.capability
        return "opened"

    assert in_child(capability) == "CAP_DAC_READ_SEARCH"


def test_descriptors_of_network_namespaces_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "71/fd"
    folder.mkdir(parents=True)
    links = {
        3: "socket:[402]",
        4: "net:[4026532417]",
        5: "/dev/null",
        6: "mnt:[4026531841]",
        7: "net:[4026531840]",
    }
    for fd, link in links.items():
        (folder / str(fd)).symlink_to(link)
    with FdDir(ProcRoot(str(tmp_path)), Task(71, 71)) as fd_dir:
        pairs = fd_dir.socket_inodes(["3", "4", "5"])
        assert pairs == [(3, 402), (4, 0), (5, 0)]
        assert fd_dir.netns_fds == {4: 4026532417}
        fd_dir.socket_inodes(["6", "7"])
        assert fd_dir.netns_fds == {4: 4026532417, 7: 4026531840}


def test_a_socket_tells_its_protocol_whatever_it_is() -> None:
    kinds = {
        "TCP": (socket.AF_INET, socket.SOCK_STREAM),
        "TCPv6": (socket.AF_INET6, socket.SOCK_STREAM),
        "UDP": (socket.AF_INET, socket.SOCK_DGRAM),
        "UDPv6": (socket.AF_INET6, socket.SOCK_DGRAM),
        "NETLINK": (socket.AF_NETLINK, socket.SOCK_DGRAM),
    }
    for name, (family, kind) in kinds.items():
        with socket.socket(family, kind) as sock:
            assert socket_protocol(LIVE, own_task(), sock.fileno()) == name


def test_the_protocol_of_what_is_no_socket_vanished() -> None:
    with open("/dev/null") as file:
        for fd in (file.fileno(), 4099):
            with pytest.raises(Vanished):
                socket_protocol(LIVE, own_task(), fd)


def test_the_path_of_a_descriptor_is_that_of_its_task() -> None:
    assert fd_path(LIVE, Task(71, 71), 5) == "/proc/71/fd/5"
    assert fd_path(LIVE, Task(71, 72), 5) == "/proc/71/task/72/fd/5"
