"""What is read of a process beside passes of the iterator, of this very process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pipeline.procfs.root import ProcRoot
from pipeline.walk.beside import Beside, read_beside


def test_of_the_sockets_those_that_are_wanted_are_told() -> None:
    with socket.socket() as one, socket.socket() as other:
        wanted = {os.fstat(one.fileno()).st_ino}
        (told,) = read_beside(ProcRoot(), [os.getpid()], wanted, 1 << 30)
        assert told is not None and (told.pid, told.denied) == (os.getpid(), False)
        assert told.fds == {one.fileno(): os.fstat(one.fileno()).st_ino}
        assert other.fileno() not in told.fds


def test_descriptors_of_network_namespaces_are_told() -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    (told,) = read_beside(ProcRoot(), [os.getpid()], set(), 1 << 30)
    assert told is not None and told.netns_fds[fd] == os.fstat(fd).st_ino
    os.close(fd)


def test_it_rests_after_each_block_of_descriptors() -> None:
    held = [socket.socket() for _ in range(23)]
    told = list(read_beside(ProcRoot(), [os.getpid()], {os.fstat(one.fileno()).st_ino for one in held}, 5))
    assert told[:4] == [None] * 4
    assert isinstance(told[-1], Beside) and len(told[-1].fds) == 23
    for one in held:
        one.close()


def test_who_has_vanished_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert list(read_beside(ProcRoot(str(tmp_path)), [7, 8], set(), 5)) == []
