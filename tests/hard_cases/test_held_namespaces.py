"""Cases 14 and 15: sockets opened in another namespace, and namespaces that live by nothing but a descriptor.

The oracles are stat and readlink of /proc, `ss` run inside, and a veth that the kernel frees with its namespace.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.query import answer
from pipeline.roles.foreground import take
from tests.e2e.host import Pipeline, named_netns, pipeline, quick, seconds_until
from tests.hard_cases.actors import Actor, actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root

pytestmark = needs_root

THERE_AND_BACK = """
home = os.open("/proc/self/ns/net", os.O_RDONLY)
enter(sys.argv[1])
listener = listen()
enter(f"/proc/self/fd/{home}")
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""


def test_a_socket_opened_after_setns_is_shown_where_it_is_and_its_holder_where_that_lives(
    watched: Watched,
) -> None:
    """Case 14."""
    with actor(watched.one, THERE_AND_BACK, str(watched.other.path)) as holder:
        fd, inode = holder.said
        assert f"ino:{inode} " in watched.other.run("ss", "-Hltne")
        assert f"ino:{inode} " not in watched.one.run("ss", "-Hltne")
        owner = watched.owner(watched.other, inode)
        assert (owner["pid"], owner["fd"], owner["netns"]) == (holder.pid, fd, watched.one.inode)
        assert watched.running.connections(netns=watched.one.inode, inode=inode) == []


# Makes a namespace in which nobody lives afterwards. "fd": held by a descriptor of it; "socket": by a listener.
HOLDER = """
how = sys.argv[1]
home = os.open("/proc/self/ns/net", os.O_RDONLY)
unshare(CLONE_NEWNET)
os.system("ip link set lo up")
held = os.open("/proc/self/ns/net", os.O_RDONLY)
inode = os.fstat(held).st_ino
listener = listen() if how == "socket" else None
enter(f"/proc/self/fd/{home}")
os.close(home)
if listener is None:
    say(inode, held)
else:
    say(inode, listener.fileno(), os.fstat(listener.fileno()).st_ino)
    told()
    os.close(held)
    say()
told()
if listener is None:
    os.close(held)
else:
    listener.close()
say()
told()
"""


@contextlib.contextmanager
def held(folder: Path, how: str, ebpf: str) -> Iterator[tuple[Actor, Pipeline]]:
    """A process in a namespace of its own that holds another one, and a pipeline that was told to watch both."""
    mounts = folder / "netns"
    mounts.mkdir()
    with named_netns(mounts, "home") as home, actor(home, HOLDER, how) as holder:
        config = quick(mounts, "home", str(holder.said[0]))
        with pipeline(folder / "p", "--ebpf", ebpf, config=config) as running:
            yield holder, running


BOTH_WAYS = pytest.mark.parametrize("ebpf", ["off", "require"], ids=["walking", "ebpf"])


@BOTH_WAYS
def test_a_namespace_that_lives_by_a_held_descriptor_is_listed_and_goes_with_it(
    tmp_path: Path, ebpf: str
) -> None:
    """Case 15."""
    with held(tmp_path, "fd", ebpf) as (holder, running):
        inode, fd = holder.said
        seconds_until(running.is_ready, 30.0, "ready")
        seconds_until(lambda: _is_read(running, inode), 10.0, "found")
        namespace = running.namespace(inode)
        assert namespace is not None
        source = "sock_diag" if ebpf == "off" else "ebpf"
        assert (namespace["name"], namespace["processes"], namespace["source"]) == (None, 0, source)
        device, cookie = _veth_into(f"/proc/{holder.pid}/fd/{fd}"), namespace["netns_cookie"]
        holder.tell("close")
        seconds_until(lambda: not device.exists(), 5.0, "devices free")
        seconds_until(lambda: _is_gone(running, inode, cookie), 20.0, "gone")
        assert "Traceback" not in running.log


@BOTH_WAYS
def test_a_namespace_that_lives_by_one_open_socket_is_read_and_the_socket_has_its_owner(
    tmp_path: Path, ebpf: str
) -> None:
    """Case 15."""
    with held(tmp_path, "socket", ebpf) as (holder, running):
        inode, fd, socket_inode = holder.said
        device = _veth_into(_descriptor_of(holder.pid, inode))
        holder.tell("close the descriptor")
        assert not _descriptors_of(holder.pid, inode)
        seconds_until(running.is_ready, 30.0, "ready")
        seconds_until(lambda: bool(running.connections(netns=inode, pid=holder.pid)), 10.0, "attributed")
        (row,) = running.connections(netns=inode)
        (owner,) = row["owners"]
        home = os.stat(f"/proc/{holder.pid}/ns/net").st_ino
        assert (row["inode"], row["state"], row["netns_name"]) == (socket_inode, "LISTEN", None)
        assert (owner["pid"], owner["fd"], owner["netns"]) == (holder.pid, fd, home)
        # It is looked at again and again, by way of that socket.
        before_s = _seen_at(running, inode)
        seconds_until(lambda: _seen_at(running, inode) > before_s, 10.0, "looked at again")
        assert device.exists()
        namespace = running.namespace(inode)
        assert namespace is not None
        cookie = namespace["netns_cookie"]
        holder.tell("close the socket")
        seconds_until(lambda: not device.exists(), 5.0, "devices free")
        seconds_until(lambda: _is_gone(running, inode, cookie), 20.0, "gone")
        assert "Traceback" not in running.log


@pytest.mark.parametrize("how", ["fd", "socket"])
def test_a_snapshot_without_a_daemon_finds_it_too(tmp_path: Path, how: str) -> None:
    """Case 15."""
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with named_netns(mounts, "home") as home, actor(home, HOLDER, how) as holder:
        inode = holder.said[0]
        if how == "socket":
            holder.tell("close the descriptor")
        store = take(Config(), (str(home.inode), str(inode))).store()
        found = answer(store.reader(), {"id": 1, "op": "namespaces", "where": {"netns": inode}})
        rows = answer(store.reader(), {"id": 1, "op": "connections", "where": {"pid": holder.pid}})
        store.close()
        (namespace,) = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
        assert (namespace["names"], namespace["source"]) == ([], "sock_diag")
        assert len(rows["rows"]) == (how == "socket")


def _is_gone(running: Pipeline, inode: int, cookie: int) -> bool:
    """Its number may be another namespace's at once."""
    namespace = running.namespace(inode)
    return namespace is None or namespace["netns_cookie"] not in (None, cookie)


def _is_read(running: Pipeline, inode: int) -> bool:
    namespace = running.namespace(inode)
    return namespace is not None and (namespace["generation"] or 0) > 0


def _seen_at(running: Pipeline, inode: int) -> float:
    namespace = running.namespace(inode)
    assert namespace is not None
    return float(namespace["seen_at"])


def _descriptors_of(pid: int, inode: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    return [
        f"{folder}/{fd}" for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}") == f"net:[{inode}]"
    ]


def _descriptor_of(pid: int, inode: int) -> str:
    (path,) = _descriptors_of(pid, inode)
    return path


def _veth_into(path: str) -> Path:
    """The end here of a veth whose other end is in the namespace at `path`: the kernel frees both with it."""
    device = Path("/sys/class/net", f"hard-{secrets.token_hex(4)}")
    veth = ["ip", "link", "add", device.name, "type", "veth", "peer", "name", "eth0", "netns", path]
    subprocess.run(veth, check=True)
    return device
