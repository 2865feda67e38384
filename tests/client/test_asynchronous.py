"""Asking from asyncio, against a real query socket over a real store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.client import AsyncClient
from pipeline.clock import ManualClock
from pipeline.errors import NoAggregator, Refused
from pipeline.query import answer_bytes
from pipeline.store import Reader, Store
from tests.client.serving import Server
from tests.sample_state import BLUE, HOST

T = TypeVar("T")


@pytest.fixture
def server(tmp_path: Path, store: Store) -> Iterator[Server]:
    server = Server(tmp_path, lambda: partial(answer_bytes, Reader(store.path, ManualClock(now_s=100.0))))
    yield server
    server.close()


def with_client(path: Path, asking: Callable[[AsyncClient], Awaitable[T]], timeout_s: float = 10.0) -> T:
    async def run() -> T:
        async with AsyncClient(str(path), timeout_s) as client:
            return await asking(client)

    return asyncio.run(run())


@pytest.mark.usefixtures("server")
def test_methods_are_those_of_the_client(tmp_path: Path) -> None:
    async def ask(client: AsyncClient) -> None:
        (row,) = await client.connections(listening=True)
        assert (row["netns"], [owner["comm"] for owner in row["owners"]]) == (HOST, ["nginx"])
        assert [one["netns"] for one in await client.namespaces(netns="blue")] == [BLUE]
        assert [one["pid"] for one in await client.processes()] == [8]
        assert (await client.status())["host"] == "testhost"

    with_client(tmp_path, ask)


@pytest.mark.usefixtures("server")
def test_each_of_many_questions_at_once_gets_its_own_answer(tmp_path: Path) -> None:
    async def ask(client: AsyncClient) -> list[int]:
        answers = await asyncio.gather(*(client.connections(limit=number % 4) for number in range(40)))
        return [len(answer) for answer in answers]

    assert with_client(tmp_path, ask) == [0, 1, 2, 3] * 10


@pytest.mark.usefixtures("server")
def test_refusal_is_raised_and_the_client_goes_on(tmp_path: Path) -> None:
    async def ask(client: AsyncClient) -> int:
        with pytest.raises(Refused) as refused:
            await client.connections(prot="tcp")
        assert refused.value.code == "unknown_filter"
        return (await client.connections(limit=0)).total

    assert with_client(tmp_path, ask) == 3


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(NoAggregator, match="no aggregator"):
        with_client(tmp_path, lambda client: client.status(), timeout_s=30.0)


def test_answer_to_a_question_given_up_is_not_taken_for_the_next_one(tmp_path: Path, store: Store) -> None:
    held_up = threading.Event()
    requests: list[bytes] = []

    def handler() -> Callable[[bytes], bytes]:
        reader = Reader(store.path)

        def answer(data: bytes) -> bytes:
            requests.append(data)
            if len(requests) == 1:
                held_up.wait(60.0)
            return answer_bytes(reader, data)

        return answer

    async def ask(client: AsyncClient) -> str:
        with pytest.raises(NoAggregator, match=r"within 0\.3 s"):
            await client.namespaces()
        held_up.set()
        client._requester.timeout_s = 60.0
        host: str = (await client.status())["host"]
        return host

    server = Server(tmp_path, handler)
    assert with_client(tmp_path, ask, timeout_s=0.3) == "testhost"
    server.close()


@pytest.mark.usefixtures("server")
def test_cancelled_question_leaves_the_client_usable(tmp_path: Path) -> None:
    async def ask(client: AsyncClient) -> int:
        task = asyncio.create_task(client.ask("connections", where={}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await client.connections(limit=0)).total

    assert with_client(tmp_path, ask) == 3


def test_question_reaches_the_successor_of_an_aggregator_that_goes(tmp_path: Path, store: Store) -> None:
    def make() -> Server:
        return Server(tmp_path, lambda: partial(answer_bytes, Reader(store.path)))

    async def ask(client: AsyncClient) -> str:
        await client.status()
        servers.pop().close()
        servers.append(make())
        host: str = (await client.status())["host"]
        return host

    servers = [make()]
    assert with_client(tmp_path, ask) == "testhost"
    servers.pop().close()
