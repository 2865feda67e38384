"""What a process was started in: a container, or a service of systemd."""

from __future__ import annotations

from typing import NamedTuple

_SHORT_ID = 12
_HEX_ID = 64


class Container(NamedTuple):
    """One container or service, as the path of its cgroup tells of it.

    `id`: all 64 digits of a container's id, or the name of an LXC container, nspawn machine or service unit.
    `runtime`: docker, containerd, cri-o, podman, lxc, systemd-nspawn, systemd; None where the path does not say.
    `pod_uid`: of a Kubernetes pod, with hyphens as the API server writes it.
    """

    id: str
    runtime: str | None
    pod_uid: str | None = None

    @property
    def name(self) -> str:
        """What people call it: the first 12 digits of an id, as `docker ps` and `podman ps` print it and as `crictl`
        and `nerdctl` take it; else the whole name."""
        return self.id[:_SHORT_ID] if len(self.id) == _HEX_ID else self.id
