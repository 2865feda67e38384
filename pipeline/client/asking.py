"""Asking, one question after the other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.client.answer import Answer, Exchange, RequestIds
from pipeline.client.operations import Operations
from pipeline.transport.requester import Requester

QUERY_SOCKET = "query.ipc"
FEED_SOCKET = "feed.ipc"


class Client(Operations[Answer]):
    """A connection to the pipeline that runs in `runtime_dir`; for one thread at a time. A context manager.

    Every method raises: Refused (the server says why), NoAggregator (nobody answers within `timeout_s`), Denied (no
    right to ask), Malformed (an answer in another language).
    """

    def __init__(self, runtime_dir: str = "/run/sockscope", timeout_s: float = 3.0) -> None:
        self._requester = Requester(str(Path(runtime_dir) / QUERY_SOCKET), timeout_s)
        self._ids = RequestIds()

    def status(self) -> dict[str, Any]:
        """How the pipeline does: the one row of `status`."""
        return self.ask("status").rows[0]

    def ask(self, op: str, **keys: Any) -> Answer:
        """Any operation; `keys` as in the contract (`where`, `fields`, `limit`, …), those that are None left out."""
        exchange = Exchange(self._ids.next(), op, keys)
        self._requester.request(exchange.request, exchange.is_mine, exchange.patience_s)
        return exchange.answer()

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        self._requester.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
