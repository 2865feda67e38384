"""A proc root that loses or denies paths: for what a real procfs does only at the wrong moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pipeline.errors import Denied, Vanished
from pipeline.procfs.root import ProcRoot

TREES = os.path.join(os.path.dirname(__file__), "proc")


def recorded(scenario: str) -> ProcRoot:
    """The recorded tree tests/proc/`scenario`."""
    return ProcRoot(os.path.join(TREES, scenario))


class FakeRoot(ProcRoot):
    """A recorded tree in which paths vanish or are refused.

    `lost` and `denied` hold relative paths, each standing for all that is below it too. `on_access` is called with
    each path before it is touched and may add to them: that is how something vanishes between two calls.
    """

    __slots__ = ("denied", "live", "lost", "on_access")

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lost: set[str] = set()
        self.denied: dict[str, str] = {}
        self.on_access: Callable[[str], None] = lambda rel: None
        # It stands for a mounted procfs.
        self.live = True

    def is_live(self) -> bool:
        return self.live

    def read(self, rel: str, *, in_one: bool = False) -> bytes:
        self._check(rel)
        return super().read(rel, in_one=in_one)

    def list(self, rel: str) -> list[str]:
        self._check(rel)
        return super().list(rel)

    def readlink(self, rel: str) -> str:
        self._check(rel)
        return super().readlink(rel)

    def size(self, rel: str) -> int:
        self._check(rel)
        return super().size(rel)

    def owner(self, rel: str) -> int:
        self._check(rel)
        return super().owner(rel)

    def links(self, rel: str) -> int:
        self._check(rel)
        return super().links(rel)

    def open_dir(self, rel: str) -> int:
        self._check(rel)
        return super().open_dir(rel)

    def _check(self, rel: str) -> None:
        self.on_access(rel)
        for path in self.lost:
            if rel == path or rel.startswith(path + "/"):
                raise Vanished(os.strerror(errno.ENOENT))
        for path, capability in self.denied.items():
            if rel == path or rel.startswith(path + "/"):
                raise Denied(os.strerror(errno.EACCES), capability)
