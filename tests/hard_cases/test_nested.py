"""Case 20: processes in pid and user namespaces of their own, and network namespaces that may not be entered.

The oracles are the pids of the host that fork and ps tell, and ss.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from tests.e2e.host import Pipeline, named_netns, pipeline, quick, seconds_until
from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root, wait_until

pytestmark = needs_root

# A process that is pid 1 where it lives. Says its pid on the host, the one it knows, and its socket's inode.
NESTED = """
import signal
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
unshare(CLONE_NEWUSER | CLONE_NEWPID)
r, w = os.pipe()
child = os.fork()
if child == 0:
    listener = listen()
    os.write(w, b"%d %d" % (os.getpid(), os.fstat(listener.fileno()).st_ino))
    signal.pause()
say(child, os.read(r, 100).decode())
told()
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_a_process_of_nested_namespaces_is_shown_with_its_pid_on_the_host(watched: Watched) -> None:
    with actor(watched.one, NESTED) as parent:
        pid, pid_inside, inode = parent.said
        assert pid_inside == 1 and f"\t{pid}\t1\n" in Path(f"/proc/{pid}/status").read_text()
        for kind in ("user", "pid"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/{os.getpid()}/ns/{kind}")
        assert f"pid={pid}," in watched.one.run("ss", "-Hltnp")
        owner = watched.owner(watched.one, inode)
        assert (owner["pid"], owner["netns"]) == (pid, watched.one.inode)


# A namespace that belongs to another user namespace, as those of rootless containers do.
ROOTLESS = """
CLONE_NEWUSER = 0x10000000
unshare(CLONE_NEWUSER | CLONE_NEWNET)
listener = socket.socket()
listener.bind(("0.0.0.0", 0))
listener.listen()
say(os.stat("/proc/self/ns/net").st_ino, os.fstat(listener.fileno()).st_ino)
told()
"""
# A pipeline that may read every process but enter no namespace.
NO_ENTRY = ("setpriv", "--bounding-set=-sys_admin")


def test_a_namespace_that_may_not_be_entered_is_read_as_text_and_says_so(
    watched: Watched, tmp_path: Path
) -> None:
    with named_netns(watched.mounts, "text-named") as named, actor(named, ROOTLESS) as process:
        netns, inode = process.said
        config = quick(watched.mounts, str(netns), str(named.inode))
        with pipeline(tmp_path, config=config, prefix=NO_ENTRY) as running:
            seconds_until(running.is_ready, 30.0, "ready")
            wait_until(lambda: len(running.connections(netns=netns, pid=process.pid)) == 1, 20.0)
            (row,) = running.connections(netns=netns)
            assert (row["inode"], row["state"], row["cookie"]) == (inode, "LISTEN", None)
            namespace = running.namespace(netns)
            assert namespace is not None
            assert (namespace["source"], namespace["netns_cookie"]) == ("proc", None)
            # Nobody lives there: without entering it there is no text either, and it is never called fresh.
            wait_until(partial(_is_stale, running, named.inode), 20.0)
    assert "Traceback" not in running.log


def _is_stale(running: Pipeline, netns: int) -> bool:
    namespace = running.namespace(netns)
    return namespace is not None and bool(namespace["stale"])


def test_a_namespace_of_another_user_namespace_is_entered_by_root(watched: Watched, tmp_path: Path) -> None:
    with actor(watched.one, ROOTLESS) as process:
        netns, inode = process.said
        with pipeline(tmp_path, config=quick(watched.mounts, str(netns))) as running:
            seconds_until(running.is_ready, 30.0, "ready")
            wait_until(lambda: len(running.connections(netns=netns, pid=process.pid)) == 1, 20.0)
            (row,) = running.connections(netns=netns)
            assert row["inode"] == inode and row["cookie"] is not None
