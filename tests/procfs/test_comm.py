"""The name that a process gives itself."""

from __future__ import annotations

import pytest

from pipeline.procfs.comm import write_own_comm
from tests.live import in_child


@pytest.mark.parametrize(
    "name, shown",
    [("netns 4026531840", b"netns 402653184"), ("nursery", b"nursery"), ("caf\udce9", b"caf\xe9")],
)
def test_the_name_of_a_process_shows_in_comm(name: str, shown: bytes) -> None:
    def comm() -> bytes:
        write_own_comm(name)
        with open("/proc/self/comm", "rb") as file:
            return file.read()

    assert in_child(comm) == shown + b"\n"
