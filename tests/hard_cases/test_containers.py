"""Case 19: containers on the host's network share one namespace, which is counted once; their cgroups tell them apart.

The containers are processes in cgroups named as the runtimes name them: the same to the kernel. The oracle is
/proc/PID/cgroup, and the names that `docker ps` and `systemctl` would print.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.e2e.host import seconds_until
from tests.hard_cases.actors import actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root

pytestmark = needs_root

ID = uuid.uuid4().hex * 2
OTHER_ID = uuid.uuid4().hex * 2
POD = str(uuid.uuid4())

LISTENER = """
listener = listen()
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""


def hierarchy() -> Path:
    """Where groups can be made: the root of cgroup v2, or else of some hierarchy of v1."""
    roots: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2") and "ro" not in options.split(",") and "cpuset" not in options:
            roots.setdefault(kind, Path(path))
    return roots.get("cgroup2") or roots["cgroup"]


@contextlib.contextmanager
def cgroup(name: str, pid: int) -> Iterator[None]:
    """Puts a process into a new group, for the length of the block; below a folder that no other run of these tests
    has."""
    root = hierarchy()
    name = f"hard-{os.getpid()}/{name}"
    folder = root / name
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True)
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        assert f":/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            (root / "cgroup.procs").write_text(str(pid))
        for path in missing:
            path.rmdir()


def test_containers_that_share_a_namespace_are_told_apart(watched: Watched) -> None:
    names = {
        f"docker/{ID}": ID[:12],
        f"system.slice/cri-containerd-{OTHER_ID}.scope": OTHER_ID[:12],
        "system.slice/hard-case.service": "hard-case.service",
        "user.slice/session-71.scope": None,
    }
    with contextlib.ExitStack() as opened:
        listeners: list[tuple[int, str | None]] = []
        for path, name in names.items():
            process = opened.enter_context(actor(watched.one, LISTENER))
            opened.enter_context(cgroup(path, process.pid))
            listeners.append((process.said[1], name))
        for inode, name in listeners:
            seconds_until(partial(_is_shown_in, watched, inode, name), 20.0, f"in {name}")
            if name is not None:
                # As a user asks who has read the name from `docker ps`.
                (row,) = watched.running.connections(container=name)
                assert (row["inode"], row["netns"]) == (inode, watched.one.inode)


def test_a_process_that_is_put_into_a_container_while_it_runs_is_seen_there(watched: Watched) -> None:
    with actor(watched.one, LISTENER) as process:
        _, inode = process.said
        assert not _is_shown_in(watched, inode, ID[:12])
        with cgroup(f"kubepods/pod{POD}/{ID}", process.pid):
            seconds_until(partial(_is_shown_in, watched, inode, ID[:12]), 30.0, "in its container")


def _is_shown_in(watched: Watched, inode: int, container: str | None) -> bool:
    return bool(watched.owner(watched.one, inode)["container"] == container)
