"""Cases 1 to 5, 11 and 12: who owns a socket that no process holds yet, or none any more, or several, or none at all.

The oracle is ss: the cookie of a socket (sk:), whether it has an inode, and which processes hold it.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.host import NamedNetns, Pipeline, pipeline, quick
from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root, wait_until

pytestmark = needs_root


class Seen(NamedTuple):
    """A socket as ss shows it; `inode` 0 where it shows none."""

    state: str
    inode: int
    cookie: int
    pids: set[int]


def seen_by_ss(netns: NamedNetns, local_port: int, remote_port: int = 0) -> Seen | None:
    what = ["-Htanpe", f"sport = :{local_port} and dport = :{remote_port}"]
    if not remote_port:
        what = ["-Htlnpe", f"sport = :{local_port}"]
    for line in netns.run("ss", "-O", *what).splitlines():
        inode, cookie = re.search(r"ino:(\d+)", line), re.search(r"sk:([0-9a-f]+)", line)
        assert cookie is not None, line
        pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
        return Seen(line.split()[0], int(inode[1]) if inode else 0, int(cookie[1], 16), pids)
    return None


def seen_in_state(netns: NamedNetns, state: str, local_port: int, remote_port: int) -> Seen:
    """What `ss` shows once the connection is in `state`: the other end's answer takes a moment."""
    seen: list[Seen | None] = []

    def is_there() -> bool:
        seen[:] = [seen_by_ss(netns, local_port, remote_port)]
        return seen[0] is not None and seen[0].state == state

    wait_until(is_there)
    assert seen[0] is not None
    return seen[0]


def comm_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


def row_when(watched: Watched, cookie: int, role: str, pids: list[int]) -> dict[str, Any]:
    """The row of a socket as soon as it has these owners in this role."""
    rows: list[dict[str, Any]] = []

    def as_wanted() -> bool:
        rows[:] = watched.running.connections(netns=watched.one.inode, cookie=cookie)
        return [(row["owner_role"], [one["pid"] for one in row["owners"]]) for row in rows] == [(role, pids)]

    try:
        wait_until(as_wanted)
    except AssertionError as error:
        raise AssertionError(rows) from error
    return rows[0]


# A listener and a client of its own; on a word the server accepts, then closes.
UNACCEPTED = """
server = listen()
client = socket.create_connection(server.getsockname())
say(server.getsockname()[1], client.getsockname()[1])
while word := told():
    if word == "accept":
        accepted = server.accept()[0]
    if word == "close":
        accepted.close()
        client.close()
    say()
"""


def test_connection_that_waits_has_the_listeners_holders_then_its_own_then_its_last(watched: Watched) -> None:
    with actor(watched.one, UNACCEPTED) as server:
        port, client_port = server.said
        before = seen_in_state(watched.one, "ESTAB", port, client_port)
        assert before.inode == 0
        row = row_when(watched, before.cookie, "pending", [server.pid])
        assert (row["inode"], row["direction"]) == (0, "inbound")

        server.tell("accept")
        after = seen_by_ss(watched.one, port, client_port)
        assert after is not None and after.cookie == before.cookie and after.inode != 0
        assert row_when(watched, before.cookie, "holder", [server.pid])["inode"] == after.inode

        server.tell("close")
        closed = seen_in_state(watched.one, "TIME-WAIT", port, client_port)
        assert (closed.inode, closed.cookie) == (0, before.cookie)
        (owner,) = row_when(watched, before.cookie, "last", [server.pid])["owners"]
        assert (owner["fd"], owner["netns"], owner["comm"]) == (None, watched.one.inode, comm_of(server.pid))


# The other end never closes, so that what the server closed stays in FIN_WAIT2, without a process.
HALF_CLOSED = """
server = listen()
client = socket.create_connection(server.getsockname())
accepted = server.accept()[0]
say(server.getsockname()[1], client.getsockname()[1])
told()
accepted.close()
say()
told()
"""


def test_orphan_in_fin_wait2_has_its_last_owner(watched: Watched) -> None:
    with actor(watched.one, HALF_CLOSED) as server:
        port, client_port = server.said
        held = seen_by_ss(watched.one, port, client_port)
        assert held is not None
        row_when(watched, held.cookie, "holder", [server.pid])

        server.tell("close")
        orphan = seen_in_state(watched.one, "FIN-WAIT-2", port, client_port)
        assert (orphan.inode, orphan.cookie) == (0, held.cookie)
        # That it closed is told by events, what the kernel keeps of it after that by a dump.
        wait_until(lambda: row_when(watched, held.cookie, "last", [server.pid])["state"] == "FIN_WAIT2")


PREFORK = """
import signal
server = listen()
children = [os.fork()]
if children[0] == 0:
    signal.pause()
children.append(os.fork())
if children[1] == 0:
    signal.pause()
say(server.getsockname()[1], *children)
told()
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_prefork_listener_has_all_holders_and_the_one_that_bound_it_first(watched: Watched) -> None:
    with actor(watched.one, PREFORK) as parent:
        port, *children = parent.said
        shown = seen_by_ss(watched.one, port)
        assert shown is not None and shown.pids == {parent.pid, *children}
        row_when(watched, shown.cookie, "holder", [parent.pid, *children])


# As inetd: the parent accepts, forks, and closes its copy when told to.
INETD = """
import signal, time
server = listen()
client = socket.create_connection(server.getsockname())
accepted = server.accept()[0]
say(server.getsockname()[1], client.getsockname()[1])
told()
time.sleep(0.02)  # in another clock tick than its parent: start times tell them apart
child = os.fork()
if child == 0:
    signal.pause()
say(child)
told()
accepted.close()
say()
told()
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_connection_handed_to_a_child_is_the_childs(watched: Watched) -> None:
    with actor(watched.one, INETD) as parent:
        port, client_port = parent.said
        shown = seen_by_ss(watched.one, port, client_port)
        assert shown is not None
        row_when(watched, shown.cookie, "holder", [parent.pid])
        (child,) = parent.tell("fork")
        row_when(watched, shown.cookie, "holder", [child, parent.pid])

        parent.tell("close")
        handed = seen_by_ss(watched.one, port, client_port)
        assert handed is not None and handed.pids == {child}
        row_when(watched, shown.cookie, "holder", [child])


# As socket activation: pid 1 of a namespace of processes keeps the listener that it hands to its service. Only the
# pid of the host is shown, so the manager is no pid 1 there; that rule is in tests/merge/test_owners.py.
ACTIVATION = """
server = listen()
os.set_inheritable(server.fileno(), True)
child = os.fork()
if child == 0:
    os.execvp("sleep", ["sleep", "60"])
say(server.getsockname()[1], child)
told()
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_activated_listener_has_both_holders(watched: Watched) -> None:
    with actor(watched.one, ACTIVATION) as manager:
        port, service = manager.said
        shown = seen_by_ss(watched.one, port)
        assert shown is not None and shown.pids == {manager.pid, service}

        def names() -> list[str]:
            row = row_when(watched, shown.cookie, "holder", [manager.pid, service])
            return [one["comm"] for one in row["owners"]]

        # It may have been looked at before it became another program.
        wait_until(lambda: names() == [comm_of(manager.pid), "sleep"])


def test_sockets_of_a_killed_process_have_it_as_their_last_owner(watched: Watched) -> None:
    with actor(watched.one, HALF_CLOSED) as other, actor(watched.one, PEER, str(other.said[0])) as killed:
        (client_port,) = killed.said
        held = seen_by_ss(watched.one, client_port, other.said[0])
        assert held is not None
        row_when(watched, held.cookie, "holder", [killed.pid])

        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait(timeout=60)
        orphan = seen_in_state(watched.one, "FIN-WAIT-2", client_port, other.said[0])
        assert (orphan.inode, orphan.cookie) == (0, held.cookie)
        (owner,) = row_when(watched, held.cookie, "last", [killed.pid])["owners"]
        assert not os.path.exists(f"/proc/{killed.pid}") and owner["start_ticks"] > 0


# Connects to the port given, and is not accepted.
PEER = """
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
say(client.getsockname()[1])
told()
"""


VXLAN = ("ip", "link", "add", "tunnel", "type", "vxlan", "id", "7", "local", "127.0.0.1", "dstport", "4789")


def test_socket_of_a_tunnel_is_the_kernels(watched: Watched, tmp_path: Path) -> None:
    """Case 11. Only where every process may be read: with one that nobody may look into (some sandboxes hide theirs
    even from root), or from inside a pid namespace, nothing is called the kernel's, and that is said instead; the rest
    is in tests/store/test_owner_roles.py. A pipeline of its own: where namespaces are left out, nothing is either.
    """
    watched.other.run(*VXLAN)
    try:
        watched.other.run("ip", "link", "set", "tunnel", "up")
        (line,) = watched.other.run("ss", "-HuanpO", "sport = :4789").splitlines()
        assert "pid=" not in line
        wait_until(
            lambda: _explained(watched.running, watched.other) == [(None, _why_nobody(watched.running), [])],
            20.0,
        )
        with pipeline(tmp_path, config=quick(watched.mounts)) as running:
            wait_until(running.is_ready, 60.0)
            wait_until(lambda: _explained(running, watched.other) == [(*_expected(running), [])], 90.0)
    finally:
        watched.other.run("ip", "link", "del", "tunnel")


KERNEL = (
    "Every process was looked at since it appeared and none holds it: the kernel itself owns it (as NFS, tunnels"
    " and the like do), or it is on its way from one process to another."
)


def _expected(running: Pipeline) -> tuple[str | None, str]:
    """Role and explanation, by what this machine lets anybody see."""
    losses = running.status()["losses"]
    if losses["processes_denied"] or losses["namespaces_left_out"]:
        return None, _why_nobody(running)
    return "kernel", KERNEL


def _why_nobody(running: Pipeline) -> str:
    denied = running.status()["losses"]["processes_denied"]
    if denied:
        return (
            "No process that may be read was found to hold it; elsewhere the descriptors of"
            f" {denied} process{'es' * (denied > 1)} may not be."
        )
    return (
        "No process that is looked at holds it; one that is not may: there are namespaces that were left out, or"
        " processes that are hidden from here."
    )


def _explained(running: Pipeline, netns: NamedNetns) -> list[tuple[Any, Any, Any]]:
    where = {"netns": netns.inode, "local_port": 4789}
    with running.client() as client:
        rows = client.ask("explain", where=where).rows
    return [(row["owner_role"], row["explanation"], row["owners"]) for row in rows]
