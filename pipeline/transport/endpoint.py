"""Paths of ipc sockets: bound with the right mode from the first moment, errors sorted."""

from __future__ import annotations

import contextlib
import errno
import os

import zmq

from pipeline.errors import ConfigError, Denied, NoAggregator

# sun_path of struct sockaddr_un, without the final NUL.
_MAX_PATH_BYTES = 107


def bind_ipc(socket: zmq.Socket[bytes], path: str, mode: int, gid: int | None = None) -> os.stat_result:
    """Binds at `path`, replacing whatever a dead predecessor left there: the caller holds the directory's lock.
    Returns the status of the socket file, for `unlink_ipc`.

    Raises: ConfigError for a path that is too long, Denied where the directory or the group is not ours to use,
    FileNotFoundError without a directory.
    """
    check_path(path)
    # libzmq makes the file under the umask; nobody may connect before the mode is right.
    umask = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        socket.bind("ipc://" + path)
        os.chmod(path, mode)
        if gid is not None:
            os.chown(path, -1, gid)
        return os.stat(path)
    except (OSError, zmq.ZMQError) as error:
        raise _as_ours(error.errno or 0, path) from None
    finally:
        os.umask(umask)


def unlink_ipc(path: str, bound: os.stat_result | None) -> None:
    """Removes the socket file made by `bind_ipc`, which libzmq leaves, unless another has taken the path since."""
    with contextlib.suppress(OSError):
        if bound is not None and os.path.samestat(os.stat(path), bound):
            os.unlink(path)


def check_path(path: str) -> None:
    """Raises: ConfigError for a path that a socket address cannot hold."""
    length = len(os.fsencode(path))
    if length > _MAX_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} has {length} bytes, the kernel allows {_MAX_PATH_BYTES}",
            "choose a shorter --runtime-dir",
        )


def check_server(path: str) -> None:
    """Raises: NoAggregator where nothing was bound at `path`, Denied where we may not connect to it.

    libzmq tells neither: it tries again in the background for ever.
    """
    check_path(path)
    try:
        os.stat(path)
        allowed = os.access(path, os.W_OK, effective_ids=True)
    except (FileNotFoundError, NotADirectoryError):
        raise NoAggregator(
            f"no aggregator at {os.path.dirname(path)}",
            "start one with `sockscope run`, or name its directory with --runtime-dir",
        ) from None
    except PermissionError:
        allowed = False
    if not allowed:
        raise Denied(
            f"may not connect to {path}", hint="ask as root, or as a member of the configured agent.group"
        )


def _as_ours(number: int, path: str) -> OSError:
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(
            f"cannot make the socket {path}", hint="run as root, or choose a --runtime-dir of your own"
        )
    return OSError(number, os.strerror(number), path)
