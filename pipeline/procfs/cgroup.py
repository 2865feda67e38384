"""PID/cgroup: in which container or service a process is, from the path of its control group.

The path is relative to the *reader's* cgroup namespace: read on the host, it holds the names that the container
runtimes gave; read inside a container, it may be no more than "/", and nothing is known then.
"""

from __future__ import annotations

import functools
import re

from pipeline.errors import Malformed, Vanished
from pipeline.model.container import Container
from pipeline.procfs.root import ProcRoot

# A container's folder: its id alone, or with its runtime's prefix, as a scope of systemd or not; and the form that
# runc makes where it was given systemd's way of naming without using systemd.
_ID = re.compile(r"(?:([a-z][a-z0-9_-]*)-)?([0-9a-f]{64})(?:\.scope)?")
_COLON_ID = re.compile(r"[^:]*:([^:]*):([0-9a-f]{64})")
# The uid of a static pod is a hash without hyphens; systemd's slices have _ for -, which nests slices.
_POD = re.compile(
    r"(?:.*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice(?::.*)?)?"
)
_NSPAWN = re.compile(r"systemd-nspawn@(.+)\.service|machine-(?!qemu\\x2d|lxc\\x2d)(.+)\.scope")
_LXC_PAYLOAD = "lxc.payload."
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")

# What stands before the id, or the folder that the id is in.
_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "k8s.io": "containerd",
    "default": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod_parent": "podman",
}


@functools.lru_cache(maxsize=512)
def parse_cgroup(data: bytes) -> Container | None:
    """The container of one cgroup file, the innermost of nested ones; where there is none the innermost service unit;
    else None (sessions, kernel threads). v1, v2 and hybrid. Raises: Malformed. Source: proc_cgroup_show(),
    kernel/cgroup/cgroup.c.
    """
    paths = []
    text = data.decode("utf-8", "backslashreplace").removesuffix("\n")
    for line in text.split("\n") if text else ():
        fields = line.split(":", 2)
        if len(fields) != 3 or not fields[2].startswith("/"):
            raise Malformed(f"cgroup: {line[:80]!r} is not hierarchy:controllers:/path")
        # The group was removed while the process was in it, as a zombie is.
        paths.append(fields[2].removesuffix(" (deleted)").split("/"))
    # v1 has a line for each controller, and not every runtime makes a group in each: the deepest find counts.
    found = max((_find_container(path) for path in paths), key=lambda one: one[0], default=(-1, None))
    if found[1] is not None:
        return found[1]
    units = (segment for path in paths for segment in reversed(path) if segment.endswith(".service"))
    unit = next(units, None)
    return Container(unit, "systemd") if unit is not None else None


def read_container(root: ProcRoot, pid: int) -> Container | None:
    """The container or service of process `pid`. Raises: Denied, Malformed.

    None also where there is no such file: a kernel without cgroups. That the process is gone, the caller's next
    read says.
    """
    try:
        return parse_cgroup(root.read(f"{pid}/cgroup"))
    except Vanished:
        return None


def _find_container(path: list[str]) -> tuple[int, Container | None]:
    """(depth, container) of the innermost one in the segments of one path; depth -1 where there is none."""
    pod_uid = None
    found: tuple[int, Container | None] = (-1, None)
    for depth, segment in enumerate(path):
        pod = _POD.fullmatch(segment)
        if pod is not None:
            pod_uid = pod[1].replace("_", "-")
        container = _container_of(segment, path[depth - 1], pod_uid)
        if container is not None:
            found = (depth, container)
    return found


def _container_of(segment: str, parent: str, pod_uid: str | None) -> Container | None:
    """The container whose folder `segment` is."""
    oci = _ID.fullmatch(segment) or _COLON_ID.fullmatch(segment)
    if oci is not None:
        prefix = oci[1] or parent
        # libpod-conmon-ID, crio-conmon-ID: the process that watches the container, outside it.
        return None if prefix.endswith("conmon") else Container(oci[2], _RUNTIMES.get(prefix), pod_uid)
    name = segment.removeprefix(_LXC_PAYLOAD)
    if name and (name != segment or parent in ("lxc", "lxc.payload")):
        return Container(name, "lxc")
    nspawn = _NSPAWN.fullmatch(segment)
    if nspawn is not None:
        return Container(_unescape(nspawn[1] or nspawn[2]), "systemd-nspawn")
    return None


def _unescape(name: str) -> str:
    """A machine's name as machinectl shows it: unit names have \\x2d for a hyphen."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)
