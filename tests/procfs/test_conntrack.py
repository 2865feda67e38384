from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.kernel.enter import inside, open_netns
from pipeline.procfs.conntrack import has_conntrack, sends_events
from pipeline.procfs.root import ProcRoot
from tests.live import LiveNetns, needs_root


def tree(folder: Path, events: bytes) -> ProcRoot:
    """A recorded sys/net/netfilter."""
    netfilter = folder / "sys" / "net" / "netfilter"
    netfilter.mkdir(parents=True)
    (netfilter / "nf_conntrack_count").write_bytes(b"0\n")
    (netfilter / "nf_conntrack_events").write_bytes(events)
    return ProcRoot(str(folder))


@pytest.mark.parametrize(
    ("content", "sends"), [(b"0\n", False), (b"0", False), (b"1\n", True), (b"2\n", True)]
)
def test_only_a_zero_means_no_events_with_or_without_a_line_end(
    tmp_path: Path, content: bytes, sends: bool
) -> None:
    root = tree(tmp_path, content)
    assert (has_conntrack(root), sends_events(root)) == (True, sends)


def test_without_the_files_nothing_is_tracked(tmp_path: Path) -> None:
    assert (has_conntrack(ProcRoot(str(tmp_path))), sends_events(ProcRoot(str(tmp_path)))) == (False, True)


@needs_root
def test_the_setting_is_that_of_the_namespace_we_are_in() -> None:
    with LiveNetns() as live:
        live.run("sh", "-c", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_events")
        netns_fd = open_netns(live.path, live.inode)
        try:
            with inside(netns_fd):
                assert not sends_events(ProcRoot())
        finally:
            os.close(netns_fd)
        assert sends_events(ProcRoot())
