"""Case 7: threads with descriptors or a namespace of their own; and processes whose leader has ended.

The oracle is /proc/PID/task/TID/fd, and ss for the sockets themselves.
"""

from __future__ import annotations

import os

from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root, wait_until

pytestmark = needs_root

OWN_FILES = """
def work():
    unshare(CLONE_FILES)
    listener = listen()
    say(threading.get_native_id(), listener.fileno(), os.fstat(listener.fileno()).st_ino)
    told()
threading.Thread(target=work).start()
"""


def test_a_thread_with_its_own_table_of_descriptors_makes_its_process_the_owner(watched: Watched) -> None:
    with actor(watched.one, OWN_FILES) as thread:
        tid, fd, inode = thread.said
        assert os.readlink(f"/proc/{thread.pid}/task/{tid}/fd/{fd}") == f"socket:[{inode}]"
        assert str(fd) not in os.listdir(f"/proc/{thread.pid}/fd")
        owner = watched.owner(watched.one, inode)
        assert (owner["pid"], owner["fd"], owner["netns"]) == (thread.pid, fd, watched.one.inode)


OTHER_NETNS = """
def work():
    enter(sys.argv[1])
    listener = listen()
    say(threading.get_native_id(), listener.fileno(), os.fstat(listener.fileno()).st_ino)
    told()
threading.Thread(target=work).start()
"""


def test_a_thread_in_another_namespace_opens_sockets_there_and_its_process_is_shown_with_its_own(
    watched: Watched,
) -> None:
    with actor(watched.one, OTHER_NETNS, str(watched.other.path)) as thread:
        tid, fd, inode = thread.said
        assert os.stat(f"/proc/{thread.pid}/ns/net").st_ino == watched.one.inode
        assert os.stat(f"/proc/{thread.pid}/task/{tid}/ns/net").st_ino == watched.other.inode
        assert f"ino:{inode} " in watched.other.run("ss", "-Hltne")
        owner = watched.owner(watched.other, inode)
        assert (owner["pid"], owner["fd"], owner["netns"]) == (thread.pid, fd, watched.one.inode)


DEAD_LEADER = """
def work():
    listener = listen()
    os.read(0, 1)
    say(threading.get_native_id(), listener.fileno(), os.fstat(listener.fileno()).st_ino)
    told()
    os._exit(0)
threading.Thread(target=work).start()
say()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


def test_a_process_whose_leader_has_ended_still_owns_what_its_threads_hold(watched: Watched) -> None:
    with actor(watched.one, DEAD_LEADER) as process:
        wait_until(lambda: _state(process.pid) == "Z")
        tid, fd, inode = process.tell("")
        assert os.listdir(f"/proc/{process.pid}/fd") == []
        assert os.readlink(f"/proc/{process.pid}/task/{tid}/fd/{fd}") == f"socket:[{inode}]"
        owner = watched.owner(watched.one, inode)
        assert (owner["pid"], owner["fd"], owner["netns"]) == (process.pid, fd, watched.one.inode)
    wait_until(lambda: not watched.running.connections(netns=watched.one.inode, inode=inode))


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]
