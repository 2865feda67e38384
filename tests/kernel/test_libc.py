from __future__ import annotations

import os
import signal
import threading

import pytest

from pipeline.errors import Denied, Unsupported, Vanished
from pipeline.kernel.libc import (
    CLONE_FILES,
    CLONE_NEWNET,
    effective_capabilities,
    pidfd_getfd,
    prctl_set_pdeathsig,
    setns,
    share_files,
    unshare,
)
from tests.live import in_child, needs_root


@needs_root
def test_unshare_makes_a_new_network_namespace() -> None:
    here = os.stat("/proc/self/ns/net").st_ino

    def inode() -> int:
        unshare(CLONE_NEWNET)
        return os.stat("/proc/self/ns/net").st_ino

    assert in_child(inode) != here


@needs_root
def test_refusals_name_the_capability() -> None:
    def refusals() -> list[str]:
        netns_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        os.setuid(65534)
        capabilities = []
        for call, arguments in ((unshare, (CLONE_NEWNET,)), (setns, (netns_fd, CLONE_NEWNET))):
            try:
                call(*arguments)
            except Denied as error:
                capabilities.append(error.capability)
        return capabilities

    assert in_child(refusals) == ["CAP_SYS_ADMIN", "CAP_SYS_ADMIN"]


def test_a_descriptor_of_another_kind_is_unsupported_and_a_closed_one_passes_as_it_is() -> None:
    with open("/dev/null") as file:
        with pytest.raises(Unsupported):
            setns(file.fileno(), CLONE_NEWNET)
        closed = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        setns(closed, CLONE_NEWNET)


def test_a_child_dies_with_the_parent_that_it_asked_to_follow() -> None:
    # The grandchild holds the pipe's only writing end: end of file is its death.
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(reader)
        if os.fork() == 0:
            prctl_set_pdeathsig(signal.SIGKILL)
            os.write(writer, b"ready")
            signal.pause()
        os.close(writer)
        signal.pause()
    os.close(writer)
    assert os.read(reader, 5) == b"ready"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_threads_share_a_table_of_descriptors_until_one_unshares_it() -> None:
    shared: list[bool] = []

    def work() -> None:
        own = threading.get_native_id()
        shared.append(share_files(own, os.getpid()))
        unshare(CLONE_FILES)
        shared.append(share_files(own, os.getpid()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert shared == [True, False]


def test_comparing_with_a_task_that_is_gone_vanished() -> None:
    with pytest.raises(Vanished):
        share_files(os.getpid(), 2**22)


@needs_root
def test_comparing_with_another_user_s_process_is_denied() -> None:
    def refusal() -> str:
        os.setuid(65534)
        try:
            share_files(os.getpid(), 1)
        except Denied as error:
            return error.capability
        return ""

    assert in_child(refusal) == "CAP_SYS_PTRACE"


def test_a_descriptor_is_copied_from_a_process_and_a_closed_one_vanished() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        with open("/dev/null") as file:
            copy = pidfd_getfd(pidfd, file.fileno())
            assert os.path.sameopenfile(copy, file.fileno())
            os.close(copy)
            closed = file.fileno()
        with pytest.raises(Vanished):
            pidfd_getfd(pidfd, closed)
    finally:
        os.close(pidfd)


def test_the_effective_capabilities_are_those_of_the_status_file() -> None:
    def line() -> int:
        with open("/proc/self/status") as file:
            (digits,) = [one.split()[1] for one in file if one.startswith("CapEff:")]
        return int(digits, 16)

    assert effective_capabilities() == line()
