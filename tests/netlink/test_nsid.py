from __future__ import annotations

import os

from pipeline.kernel.enter import open_netns
from pipeline.netlink.nsid import open_route, read_nsid
from tests.live import LiveNetns, needs_root
from tests.translating import join_with_host


@needs_root
def test_a_namespace_has_an_nsid_once_a_device_of_ours_has_its_peer_in_it() -> None:
    with LiveNetns() as live, open_route() as route:
        netns_fd = open_netns(live.path, live.inode)
        try:
            assert read_nsid(route, netns_fd) is None
            join_with_host(live)
            nsid = read_nsid(route, netns_fd)
        finally:
            os.close(netns_fd)
        listed = live.run("sh", "-c", "ip -o link show to-host")
        assert "to-host" in listed
        assert isinstance(nsid, int) and nsid >= 0
