"""The runtime directory: one holder, nothing left behind, no entry for others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import Denied, SockscopeError, Taken
from pipeline.roles.runtime_dir import RuntimeDir
from tests.live import in_child, needs_root


def test_it_is_made_with_its_parents_and_modes_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    before = os.umask(0o077)
    try:
        held = RuntimeDir.acquire(str(path), None)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o750
    assert (path / "lock").read_text() == f"sockscope {os.getpid()}\n"
    held.release()


def test_a_second_holder_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    held = RuntimeDir.acquire(str(tmp_path), None)
    with pytest.raises(Taken, match=f"pid {os.getpid()}$"):
        RuntimeDir.acquire(str(tmp_path), None)
    held.release()
    RuntimeDir.acquire(str(tmp_path), None).release()


def test_what_a_killed_predecessor_left_is_cleared_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    for name in ("query.ipc", "ingest.ipc", "state.db", "state.db-wal", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "segments").symlink_to("/dev/shm/sockscope-0123456789abcdef")
    (tmp_path / "lock").write_text("sockscope 4194304\n")
    held = RuntimeDir.acquire(str(tmp_path), None)
    assert sorted(os.listdir(tmp_path)) == ["lock", "notes.txt"]
    held.link_segments("/dev/shm/sockscope-fedcba9876543210")
    assert os.readlink(held.path_of("segments")) == "/dev/shm/sockscope-fedcba9876543210"
    held.release()
    assert sorted(os.listdir(tmp_path)) == ["lock", "notes.txt"]
    assert (tmp_path / "lock").read_text() == "sockscope"


@pytest.mark.parametrize("lock", [None, b"", b"4711\n"])
def test_a_directory_that_is_used_for_something_else_is_left_as_it_is(
    tmp_path: Path, lock: bytes | None
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "state.db").write_text("precious")
    if lock is not None:
        (tmp_path / "lock").write_bytes(lock)
    with pytest.raises(SockscopeError, match="is used for something else"):
        RuntimeDir.acquire(str(tmp_path), None)
    assert (tmp_path / "state.db").read_text() == "precious"
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_the_lock_ends_with_its_holder_however_that_ends(tmp_path: Path) -> None:
    def hold_and_die() -> bool:
        RuntimeDir.acquire(str(tmp_path), None)
        return True

    assert in_child(hold_and_die)
    RuntimeDir.acquire(str(tmp_path), None).release()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to(victim)
    with pytest.raises(SockscopeError):
        RuntimeDir.acquire(str(tmp_path / "run"), None)
    assert victim.read_text() == "precious"


def test_a_lock_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(SockscopeError, match="is used for something else"):
        RuntimeDir.acquire(str(tmp_path), None)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_is_no_directory_is_an_error_with_a_hint(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SockscopeError) as caught:
        RuntimeDir.acquire(str(tmp_path / path), None)
    assert not isinstance(caught.value, Denied)
    assert "--runtime-dir" in caught.value.hint


@needs_root
def test_a_directory_of_another_user_is_denied(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(Denied, match="belongs to user 65534"):
        RuntimeDir.acquire(str(tmp_path), None)


@needs_root
def test_the_group_may_enter_where_one_is_named(tmp_path: Path) -> None:
    held = RuntimeDir.acquire(str(tmp_path / "run"), 65534)
    assert (tmp_path / "run").stat().st_gid == 65534
    held.release()
