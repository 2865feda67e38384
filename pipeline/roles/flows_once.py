"""The translated flows of namespaces, asked for once: what joins both ends of a connection in `snapshot`."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pipeline.clock import Clock
from pipeline.errors import Denied, Malformed, Unsupported, Vanished
from pipeline.kernel.enter import way_into
from pipeline.model.flow import Flow
from pipeline.model.flow_snapshot import FLOW_ROLE, FlowHealth, FlowSnapshot
from pipeline.model.netns import Netns
from pipeline.netlink.conntrack import count_entries, dump_translated, open_conntrack
from pipeline.netlink.conntrack_message import FlowDecoder
from pipeline.procfs.ns import ways_into
from pipeline.procfs.root import ProcRoot

_log = logging.getLogger(__name__)


def read_flows(
    namespaces: Iterable[tuple[Netns, int | None]], root: ProcRoot, clock: Clock, max_flows: int
) -> list[FlowSnapshot]:
    """A base of each namespace (and its cookie) that translates; one that may not be asked is left out, and what is
    above `max_flows` of one, and noted."""
    decoder = FlowDecoder()
    found: list[FlowSnapshot] = []
    noted = False
    for netns, cookie in namespaces:
        try:
            flows = _translated(netns, root, decoder)
        except Vanished:
            continue  # with all that went through it
        except (Denied, Unsupported, Malformed) as error:
            if not noted:
                _log.info("NAT is not resolved: %s", error, extra={"netns": netns.inode})
            noted = True
            continue
        over = max(0, len(flows) - max_flows)
        if over:
            _log.warning("%d flows are left out (conntrack.max_flows)", over, extra={"netns": netns.inode})
        if flows:
            health, now_s = FlowHealth(dumps=1, flows_over_limit=over), clock.monotonic_s()
            found.append(
                FlowSnapshot(FLOW_ROLE, netns.inode, cookie, 1, 1, True, now_s, health, flows[:max_flows])
            )
    return found


def _translated(netns: Netns, root: ProcRoot, decoder: FlowDecoder) -> list[Flow]:
    """Raises: Vanished, Denied, Unsupported, Malformed."""
    with way_into(ways_into(root, netns), netns.inode) as netns_fd, open_conntrack(netns_fd) as sock:
        entries = count_entries(sock)
        return dump_translated(sock, decoder, entries).flows if entries else []
