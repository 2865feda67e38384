"""Lookups: requests that name a socket, answered by whoever receives them: any way to another thread takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.codec import decode_map, encode
from pipeline.errors import SockscopeError
from pipeline.query.answering import answer_wanted
from pipeline.query.operations import OPERATIONS
from pipeline.query.request import read_request
from pipeline.store.reader import Reader

# Filters by which a row is found through an index that few others share.
_NAMING = ("cookie", "inode")
_PORTS = ("local_port", "remote_port")


class Lookups:
    """From a packed request to its packed answer. None where it is no lookup, a large one, or wrong in any way: then a
    handler has all the time that a request may take."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        """`make_reader` is called by the thread that asks first, the only one to ask. Its reader limits the steps."""
        self._make_reader = make_reader
        self._reader: Reader | None = None

    def __call__(self, data: bytes) -> bytes | None:
        try:
            request = decode_map(data)
            if not _is_lookup(request):
                return None
            if self._reader is None:
                self._reader = self._make_reader()
            return encode(answer_wanted(self._reader, request, read_request(request, OPERATIONS)))
        except (SockscopeError, TypeError, ValueError):
            return None


def _is_lookup(request: dict[str, Any]) -> bool:
    where = request.get("where")
    if request.get("op") != "connections" or not isinstance(where, dict):
        return False
    named = {name for name, value in where.items() if isinstance(value, (int, str))}
    return any(name in named for name in _NAMING) or named.issuperset(_PORTS)
