"""Asking from asyncio: any number of questions at once."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.client.answer import Answer, Exchange, RequestIds
from pipeline.client.asking import QUERY_SOCKET
from pipeline.client.operations import Operations
from pipeline.transport.async_requester import AsyncRequester


class AsyncClient(Operations[Coroutine[Any, Any, Answer]]):
    """As Client, each method to be awaited; for one event loop. An async context manager."""

    def __init__(self, runtime_dir: str = "/run/sockscope", timeout_s: float = 3.0) -> None:
        self._requester = AsyncRequester(str(Path(runtime_dir) / QUERY_SOCKET), timeout_s)
        self._ids = RequestIds()

    async def status(self) -> dict[str, Any]:
        """How the pipeline does: the one row of `status`."""
        return (await self.ask("status")).rows[0]

    async def ask(self, op: str, **keys: Any) -> Answer:
        """Any operation; `keys` as in the contract (`where`, `fields`, `limit`, …), those that are None left out."""
        exchange = Exchange(self._ids.next(), op, keys)
        await self._requester.request(exchange.request, exchange.is_mine, exchange.patience_s)
        return exchange.answer()

    def close(self) -> None:
        """Closes the connections; the next call opens one again."""
        self._requester.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
