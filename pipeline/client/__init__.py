"""For other people's programs: ask a running pipeline, follow it, read its shared memory.

with Client("/run/sockscope") as client:
    for row in client.connections(local_port=443, established=True):
        print(row["remote_addr"], [owner["comm"] for owner in row["owners"]])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.client.answer import Answer
from pipeline.client.asking import FEED_SOCKET, QUERY_SOCKET, Client

if TYPE_CHECKING:
    from pipeline.client.asynchronous import AsyncClient
    from pipeline.client.feed import Feed
    from pipeline.client.replica import Change, Kind
    from pipeline.client.segments import NamespaceState, SegmentReader

__all__ = [
    "FEED_SOCKET", "QUERY_SOCKET", "Answer", "AsyncClient", "Change", "Client", "Feed", "Kind", "NamespaceState",
    "SegmentReader",
]  # fmt: skip

# Not imported before they are asked for: `sockscope connections` needs none of them, and asyncio takes its time.
_LATER = {
    "AsyncClient": "asynchronous", "Feed": "feed", "Change": "replica", "Kind": "replica",
    "NamespaceState": "segments", "SegmentReader": "segments",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
