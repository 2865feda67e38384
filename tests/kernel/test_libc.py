from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import Denied, Unsupported
from pipeline.kernel.libc import CLONE_NEWNET, prctl_set_pdeathsig, setns, unshare
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
