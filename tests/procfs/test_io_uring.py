"""Sockets registered with an io_uring, as fdinfo lists them. That it is so on this kernel: tests/hard_cases."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.process import Task
from pipeline.procfs.io_uring import parse_registered_sockets, read_registered_sockets
from tests.fake_root import FakeRoot

# Recorded on Linux 6.18.
FDINFO = b"""\
pos:\t0
flags:\t02000002
mnt_id:\t17
ino:\t5567862
SqMask:\t0x7
SqHead:\t0
CqTail:\t0
SQEs:\t0
CQEs:\t0
SqThread:\t-1
UserFiles:\t5
    0: socket:[5567863]
    2: pipe:[5567132]
    3: /srv/socket:[77]
    4: socket:[4294967295]
UserBufs:\t0
PollList:
CqOverflowList:
NAPI:\tdisabled

"""


def test_sockets_among_the_registered_files_are_found() -> None:
    assert parse_registered_sockets(FDINFO) == {5567863, 4294967295}


def test_a_ring_without_files_and_what_is_no_ring_have_none() -> None:
    assert parse_registered_sockets(FDINFO[: FDINFO.index(b"    0:")]) == set()
    assert parse_registered_sockets(b"pos:\t0\nflags:\t02\nmnt_id:\t15\n") == set()
    assert parse_registered_sockets(b"") == set()


@given(st.binary(max_size=60), st.integers(0, len(FDINFO)))
def test_any_bytes_give_inodes_and_no_error(data: bytes, cut: int) -> None:
    for text in (data, b"x\nUserFiles:\t1\n" + data, FDINFO[:cut] + data + FDINFO[cut:]):
        assert all(isinstance(inode, int) for inode in parse_registered_sockets(text))


def test_a_ring_that_is_closed_or_denied_has_none(tmp_path: Path) -> None:
    root = FakeRoot(str(tmp_path))
    (tmp_path / "7" / "fdinfo").mkdir(parents=True)
    (tmp_path / "7" / "fdinfo" / "4").write_bytes(FDINFO)
    assert read_registered_sockets(root, Task(7, 7), 4) == {5567863, 4294967295}
    assert read_registered_sockets(root, Task(7, 7), 5) == set()
    root.denied["7/fdinfo"] = "CAP_SYS_PTRACE"
    assert read_registered_sockets(root, Task(7, 7), 4) == set()
