"""The folder in /dev/shm that holds one running pipeline's segments, and the sweep of dead ones' folders.

Whoever holds an flock on the folder's current `lock` file owns the folder: the supervisor while it runs, a sweeper
while it removes. The kernel drops the lock when its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets

_LOCK = "lock"
_PREFIX = "sockscope-"
_FOLDER_NAME = re.compile(_PREFIX + "[0-9a-f]{16}")
_SEGMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NETNS_PREFIX = "netns-"
_FLOWS_PREFIX = "flows-"
# With the set-group-ID bit: what is made in the folder belongs to the folder's group.
_FOLDER_MODE = 0o2750
_FILE_MODE = 0o640
_EMPTY_ATTEMPTS = 3
_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class InstanceFolder:
    """A folder of our own below `shm_dir`, locked until `remove` or the end of the process."""

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, shm_dir: str = "/dev/shm", gid: int | None = None) -> InstanceFolder:
        """A fresh, locked, empty folder; members of group `gid`, if given, may read what is in it.

        Raises: OSError where `shm_dir` cannot be written or is full.
        """
        while True:
            path = os.path.join(shm_dir, _PREFIX + secrets.token_hex(8))
            os.mkdir(path, _FOLDER_MODE)
            try:
                if gid is not None:
                    os.chown(path, -1, gid)
                os.chmod(
                    path, _FOLDER_MODE
                )  # mkdir's mode is cut by the umask, and chown drops the set-group-ID bit
                lock_fd = _lock_folder(path)
            except FileNotFoundError:
                continue  # a sweeper came between and took it for a dead one's
            except OSError:
                os.rmdir(path)
                raise
            if lock_fd is not None:
                return cls(path, lock_fd)

    def path_of(self, name: str) -> str:
        """Where the segment `name` (letters, digits, _ and -) lives. Raises: ValueError on any other name."""
        if not _SEGMENT_NAME.fullmatch(name) or name == _LOCK:
            raise ValueError(f"not a segment name: {name!r}")
        return os.path.join(self.path, name)

    @property
    def lock_fd(self) -> int:
        """To be closed in a forked child, so that the lock ends with the parent alone. -1 once removed."""
        return self._lock_fd

    def unlink(self, name: str) -> None:
        """Removes one segment; harmless where it is not there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path_of(name))

    def remove(self) -> None:
        """Removes the folder with all segments, then gives up the lock. Twice is harmless."""
        if self._lock_fd >= 0:
            parent_fd = os.open(os.path.dirname(self.path), _OPEN_FOLDER)
            try:
                folder_fd = os.open(self.path, _OPEN_FOLDER)
                try:
                    _empty(folder_fd, parent_fd, os.path.basename(self.path))
                finally:
                    os.close(folder_fd)
            except FileNotFoundError:
                pass  # someone cleaned /dev/shm by hand
            finally:
                os.close(parent_fd)
            os.close(self._lock_fd)
            self._lock_fd = -1


def netns_segment(netns: int) -> str:
    """The name of the segment of a namespace, by inode."""
    return f"{_NETNS_PREFIX}{netns}"


def flows_segment(netns: int) -> str:
    """The name of the segment of a namespace's translated flows; there is one only where it translates, or did."""
    return f"{_FLOWS_PREFIX}{netns}"


def netns_of_segment(name: str) -> int | None:
    """The namespace whose segment has this name; None for any other file."""
    number = name.removeprefix(_NETNS_PREFIX)
    return int(number) if number != name and number.isdecimal() else None


def sweep(shm_dir: str = "/dev/shm") -> list[str]:
    """Removes the folders of dead instances and returns their paths, sorted.

    Only real directories of our own user with our kind of name, and only while nobody holds their lock: safe beside
    live instances, beside one that is just starting, and beside another sweep.
    """
    swept: list[str] = []
    shm_fd = os.open(shm_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in sorted(os.listdir(shm_fd)):
            if _FOLDER_NAME.fullmatch(name) and _sweep_one(shm_fd, name):
                swept.append(os.path.join(shm_dir, name))
    finally:
        os.close(shm_fd)
    return swept


def _lock_folder(path: str) -> int | None:
    folder_fd = os.open(path, _OPEN_FOLDER)
    try:
        return _try_lock(folder_fd)
    finally:
        os.close(folder_fd)


def _sweep_one(shm_fd: int, name: str) -> bool:
    """Whether the folder was a dead instance's and is gone. What cannot be swept, for whatever reason (gone, a link,
    no folder, not ours, no room to make its lock), is left: it is never a reason not to start."""
    try:
        folder_fd = os.open(name, _OPEN_FOLDER, dir_fd=shm_fd)
    except OSError:
        return False
    lock_fd = None
    try:
        if os.fstat(folder_fd).st_uid == os.geteuid():
            lock_fd = _try_lock(folder_fd)
        return lock_fd is not None and _empty(folder_fd, shm_fd, name)
    except OSError:
        return False
    finally:
        if lock_fd is not None:
            os.close(lock_fd)
        os.close(folder_fd)


def _try_lock(folder_fd: int) -> int | None:
    """An fd that holds the lock on the folder's current lock file, or None where another holds it or the folder is
    being removed. Makes the file where it is missing: a starter that died between mkdir and lock left none."""
    try:
        lock_fd = os.open(_LOCK, _OPEN_LOCK, _FILE_MODE, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock may be on a file that its last holder has unlinked meanwhile: then it protects nothing.
        if os.path.samestat(os.fstat(lock_fd), os.stat(_LOCK, dir_fd=folder_fd, follow_symlinks=False)):
            return lock_fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock_fd)
    return None


def _empty(folder_fd: int, parent_fd: int, name: str) -> bool:
    """Unlinks everything in a folder whose lock we hold, the lock last, and the folder. False: not empty after all,
    because someone goes on writing into it; the next sweep finds it again."""
    for attempt in range(_EMPTY_ATTEMPTS):
        for entry in os.listdir(folder_fd):
            if entry != _LOCK:
                _unlink(entry, folder_fd)
        if attempt == 0:
            _unlink(_LOCK, folder_fd)
        try:
            os.rmdir(name, dir_fd=parent_fd)
            return True
        except OSError:
            # A killed supervisor's workers outlive it, and its lock, by a moment, and may have made a file.
            continue
    return False


def _unlink(entry: str, folder_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(entry, dir_fd=folder_fd)
