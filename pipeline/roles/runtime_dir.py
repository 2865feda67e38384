"""The runtime directory: who holds it, what is in it, who may come in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from pipeline.errors import Denied, SockscopeError, Taken

_DIR_MODE = 0o750
_LOCK = "lock"
_LOCK_MODE = 0o640
# What the lock file begins with, held or not; behind it, the holder's pid.
_LOCK_MARK = b"sockscope"
# What one run leaves when it is killed, and removes when it ends.
_OWN_FILES = ("query.ipc", "feed.ipc", "ingest.ipc", "state.db", "state.db-wal", "state.db-shm", "segments")


class RuntimeDir:
    """A runtime directory that this process holds. Paths of what is in it, by name."""

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def acquire(cls, path: str, gid: int | None) -> RuntimeDir:
        """Makes and locks the directory, and clears what a killed predecessor left.

        Raises: Taken (by a running instance, named by its pid), Denied (not ours, or not writable).
        """
        try:
            os.makedirs(path, _DIR_MODE, exist_ok=True)
            _check_ours(path)
            _check_nobody_elses(path)
            if gid is not None:
                os.chown(path, -1, gid)
            os.chmod(path, _DIR_MODE)
            lock_fd = os.open(
                os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _LOCK_MODE
            )
        except PermissionError as error:
            if isinstance(error, Denied):
                raise
            raise Denied(
                f"the runtime directory {path} cannot be used: {error.strerror or error}",
                hint="run as root, or choose one of your own with --runtime-dir",
            ) from None
        except OSError as error:
            raise SockscopeError(
                f"the runtime directory {path} cannot be used: {error.strerror}",
                "choose another one with --runtime-dir",
            ) from None
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.pread(lock_fd, 32, 0).removeprefix(_LOCK_MARK)
            holder = said.decode("ascii", "replace").strip() or "unknown"
            os.close(lock_fd)
            raise Taken(
                f"the runtime directory {path} is held by a running instance, pid {holder}",
                "stop that one, or choose another with --runtime-dir",
            ) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, _LOCK_MARK + f" {os.getpid()}\n".encode(), 0)
        held = cls(path, lock_fd)
        held._clear()
        return held

    def path_of(self, name: str) -> str:
        return os.path.join(self.path, name)

    def link_segments(self, folder: str) -> None:
        """Leaves a link to the instance's segments, for readers of shared memory."""
        os.symlink(folder, self.path_of("segments"))

    @property
    def lock_fd(self) -> int:
        """To be closed in a forked child, so that the lock ends with the parent alone."""
        return self._lock_fd

    def release(self) -> None:
        """Removes what was made in it and gives up the lock; the directory and the lock file stay."""
        self._clear()
        os.ftruncate(self._lock_fd, len(_LOCK_MARK))
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _clear(self) -> None:
        for name in _OWN_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path_of(name))


def _check_ours(path: str) -> None:
    """Raises: Denied where another user could put files of his own into the directory, or where it is one that all
    share (/tmp): we would take it away from them."""
    found = os.stat(path)
    if found.st_mode & (stat.S_ISVTX | stat.S_IWOTH):
        raise Denied(
            f"the runtime directory {path} is shared with other users",
            hint="choose one of your own with --runtime-dir",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"the runtime directory {path} belongs to user {found.st_uid}",
            hint="choose one of your own with --runtime-dir",
        )


def _check_nobody_elses(path: str) -> None:
    """Raises: SockscopeError for a directory with files in it and no lock of ours among them: its mode would be
    changed, and files that happen to have our names removed."""
    try:
        # Neither through a link nor waiting for the other end of a pipe: whose directory it is, is not known yet.
        lock_fd = os.open(
            os.path.join(path, _LOCK), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
    else:
        try:
            if os.pread(lock_fd, len(_LOCK_MARK), 0) == _LOCK_MARK:
                return
        except OSError:
            pass  # a pipe or a directory: not ours
        finally:
            os.close(lock_fd)
    if os.listdir(path):
        raise SockscopeError(
            f"the runtime directory {path} is used for something else",
            "name one that does not exist yet, or an empty one, with --runtime-dir",
        )
