"""The instance folder: held while its owner lives, swept after, and never anybody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pipeline.segment import InstanceFolder, SegmentWriter, sweep
from tests.live import needs_root


@pytest.fixture
def shm(tmp_path: Path) -> str:
    folder = tmp_path / "shm"
    folder.mkdir()
    return str(folder)


def dead_folder(shm: str, name: str = "sockscope-0123456789abcdef") -> Path:
    """What an instance that was killed leaves: a folder with an unlocked lock and two segments."""
    folder = Path(shm, name)
    folder.mkdir()
    for entry in ("lock", "netns-1", "netns-1.new"):
        (folder / entry).write_bytes(b"left")
    return folder


def test_folder_is_for_owner_and_group(shm: str) -> None:
    umask = os.umask(0o077)
    try:
        folder = InstanceFolder.create(shm)
    finally:
        os.umask(umask)
    assert os.stat(folder.path).st_mode & 0o777 == 0o750
    assert os.listdir(folder.path) == ["lock"]
    folder.remove()
    assert os.listdir(shm) == []


@needs_root
def test_members_of_the_group_may_read_what_is_in_the_folder(shm: str) -> None:
    folder = InstanceFolder.create(shm, gid=65534)
    writer = SegmentWriter(folder.path_of("netns-1"))
    writer.write_base(1, 1, b"payload")
    writer.close()
    found = os.stat(folder.path_of("netns-1"))
    assert (os.stat(folder.path).st_gid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)
    folder.remove()


def test_removing_twice_or_after_someone_else_is_harmless(shm: str) -> None:
    folder = InstanceFolder.create(shm)
    other = InstanceFolder.create(shm)
    folder.remove()
    folder.remove()
    Path(other.path, "lock").unlink()
    Path(other.path).rmdir()
    other.remove()
    assert os.listdir(shm) == []


def test_segment_names_stay_inside_the_folder(shm: str) -> None:
    folder = InstanceFolder.create(shm)
    assert folder.path_of("netns-4026531840") == f"{folder.path}/netns-4026531840"
    for name in ("", ".", "..", "a/b", "../a", "lock", "a.new", "-a", "a\n", "a\0"):
        with pytest.raises(ValueError, match="not a segment name"):
            folder.path_of(name)
    folder.remove()


def test_sweep_removes_dead_folders_and_leaves_live_ones(shm: str) -> None:
    live = InstanceFolder.create(shm)
    Path(live.path_of("netns-1")).write_bytes(b"alive")
    dead = dead_folder(shm)
    assert sweep(shm) == [str(dead)]
    assert os.listdir(shm) == [os.path.basename(live.path)]
    assert sorted(os.listdir(live.path)) == ["lock", "netns-1"]
    live.remove()


def test_sweep_removes_the_folder_of_a_starter_that_died_before_its_lock(shm: str) -> None:
    Path(shm, "sockscope-0123456789abcdef").mkdir()
    assert sweep(shm) == [f"{shm}/sockscope-0123456789abcdef"]
    assert os.listdir(shm) == []


def test_sweep_touches_no_other_names_no_links_and_no_files(shm: str, tmp_path: Path) -> None:
    victim = dead_folder(str(tmp_path), "elsewhere")
    Path(shm, "sockscope-00000000000000aa").symlink_to(victim)
    Path(shm, "sockscope-00000000000000bb").write_bytes(b"a file")
    for name in (
        "sockscope-",
        "sockscope-0123",
        "sockscope-0123456789abcdef0",
        "sockscope-0123456789ABCDEF",
        "other",
    ):
        dead_folder(shm, name)
    before = sorted(os.listdir(shm))
    assert sweep(shm) == []
    assert sorted(os.listdir(shm)) == before
    assert sorted(os.listdir(victim)) == ["lock", "netns-1", "netns-1.new"]


def test_sweep_follows_no_link_inside_a_dead_folder(shm: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep")
    (tmp_path / "folder-outside").mkdir()
    dead = dead_folder(shm)
    (dead / "netns-2").symlink_to(outside)
    (dead / "netns-3").symlink_to(tmp_path / "folder-outside")
    assert sweep(shm) == [str(dead)]
    assert outside.read_bytes() == b"keep"
    assert (tmp_path / "folder-outside").is_dir()


def test_sweep_takes_no_lock_through_a_link(shm: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep")
    folder = Path(shm, "sockscope-0123456789abcdef")
    folder.mkdir()
    (folder / "lock").symlink_to(outside)
    assert sweep(shm) == []
    assert (folder / "lock").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_sweep_leaves_the_folders_of_other_users(shm: str) -> None:
    dead = dead_folder(shm)
    os.chown(dead, 65534, 65534)
    assert sweep(shm) == []
    assert dead.is_dir()


def test_lock_ends_with_its_process_even_by_sigkill(shm: str) -> None:
    ready, ready_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            InstanceFolder.create(shm)
            os.write(ready_fd, b"1")
            signal.pause()
        finally:
            os._exit(0)
    os.close(ready_fd)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    assert sweep(shm) == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(sweep(shm)) == 1
    assert os.listdir(shm) == []


def test_children_that_closed_their_copy_do_not_hold_the_lock(shm: str) -> None:
    folder = InstanceFolder.create(shm)
    ready, ready_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(folder.lock_fd)
            os.write(ready_fd, b"1")
            signal.pause()
        finally:
            os._exit(0)
    os.close(ready_fd)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    # A child that closes its copy does not take the lock from the parent.
    assert sweep(shm) == []
    os.close(folder.lock_fd)
    assert sweep(shm) == [folder.path]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_full_memory_refuses_a_start_and_leaves_nothing(shm: str) -> None:
    # Four inodes: the root, and what the test makes before.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=4", "sockscope-test", shm], check=True)
    try:
        folder = InstanceFolder.create(shm)
        Path(shm, "sockscope-0123456789abcdef").mkdir()
        before = sorted(os.listdir(shm))
        assert sweep(shm) == []  # no inode for the missing lock
        with pytest.raises(OSError, match="No space"):
            InstanceFolder.create(shm)
        assert sorted(os.listdir(shm)) == before
        Path(shm, "sockscope-0123456789abcdef").rmdir()
        with pytest.raises(OSError, match="No space"):
            InstanceFolder.create(shm)  # room for the folder, none for its lock
        assert os.listdir(shm) == [os.path.basename(folder.path)]
        folder.remove()
    finally:
        subprocess.run(["umount", shm], check=True)


def test_starters_and_sweepers_at_once_leave_exactly_the_live_folders(shm: str) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def sweep_on() -> None:
        try:
            while not stop.is_set():
                sweep(shm)
        except BaseException as error:
            failures.append(error)

    sweepers = [threading.Thread(target=sweep_on) for _ in range(3)]
    for thread in sweepers:
        thread.start()
    folders = []
    try:
        for number in range(150):
            folder = InstanceFolder.create(shm)
            Path(folder.path_of("netns-1")).write_bytes(b"mine")
            if number % 3 == 0:
                os.close(folder.lock_fd)  # as if its owner had died
            else:
                folders.append(folder)
    finally:
        stop.set()
        for thread in sweepers:
            thread.join()
    assert failures == []
    sweep(shm)
    assert sorted(os.listdir(shm)) == sorted(os.path.basename(folder.path) for folder in folders)
    for folder in folders:
        assert sorted(os.listdir(folder.path)) == ["lock", "netns-1"]
        folder.remove()
    assert os.listdir(shm) == []
