"""The client against a real query socket over a real store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.client import Client
from pipeline.clock import ManualClock
from pipeline.codec import encode
from pipeline.errors import NoAggregator, Refused
from pipeline.query import answer_bytes
from pipeline.store import Reader, Store
from tests.client.serving import Server
from tests.sample_state import BLUE, HOST, snapshot


@pytest.fixture
def client(tmp_path: Path, store: Store) -> Iterator[Client]:
    server = Server(tmp_path, lambda: partial(answer_bytes, Reader(store.path, ManualClock(now_s=100.0))))
    with Client(str(tmp_path), timeout_s=60.0) as client:
        yield client
    server.close()


def test_connections_are_maps_by_field_name_with_their_owners(client: Client) -> None:
    (row,) = client.connections(listening=True)

    assert (row["local_addr"], row["local_port"], row["state"], row["netns"]) == (
        "0.0.0.0",
        80,
        "LISTEN",
        HOST,
    )
    assert [owner["comm"] for owner in row["owners"]] == ["nginx"]


def test_answer_says_of_which_state_it_is(client: Client) -> None:
    answer = client.connections(fields=["netns", "cookie"], limit=1, netns="blue")

    assert (answer.columns, answer.rows, answer.total) == (
        ("netns", "cookie"),
        [{"netns": BLUE, "cookie": 3}],
        1,
    )
    assert (answer.host, answer.epoch, answer.seq, len(answer)) == ("testhost", "epoch-1", 1, 1)
    assert [row["name"] for row in answer.namespaces] == ["blue"]


def test_every_operation_has_its_method(client: Client) -> None:
    assert [row["netns"] for row in client.namespaces()] == [HOST, BLUE]
    assert [row["comm"] for row in client.processes(pid=8)] == ["nginx"]
    assert client.status()["connections"] == 3
    assert client.ask("namespaces", where={"netns": BLUE}, limit=0).total == 1


def test_answers_follow_the_store(client: Client, store: Store) -> None:
    assert client.connections(limit=0).total == 3

    store.apply([snapshot(BLUE, 2, base=False, gone_connections=[3])])

    answer = client.connections(limit=0)
    assert (answer.total, answer.seq) == (2, 2)


def test_refused_query_raises_the_servers_sentence_and_the_client_goes_on(client: Client) -> None:
    with pytest.raises(Refused, match="unknown filter 'prot'; the nearest known one is proto") as refused:
        client.connections(prot="tcp")

    assert refused.value.code == "unknown_filter"
    assert client.connections(limit=0).total == 3


def test_oversized_request_is_refused_and_the_client_goes_on(client: Client) -> None:
    with pytest.raises(Refused) as refused:
        client.connections(comm="x" * 5000)

    assert refused.value.code == "too_large"
    assert client.connections(limit=0).total == 3


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with Client(str(tmp_path), timeout_s=30.0) as client, pytest.raises(NoAggregator):
        client.status()


def test_late_answer_to_a_request_given_up_is_not_taken_for_the_next_one(
    tmp_path: Path, store: Store
) -> None:
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

    server = Server(tmp_path, handler)
    with Client(str(tmp_path), timeout_s=0.3) as client:
        with pytest.raises(NoAggregator):
            client.namespaces()
        held_up.set()
        client._requester.timeout_s = 60.0
        assert client.status()["host"] == "testhost"
    server.close()


def test_answer_in_another_language_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda: lambda data: encode({"id": "somebody else", "ok": True}))
    with Client(str(tmp_path), timeout_s=0.3) as client, pytest.raises(NoAggregator):
        client.status()
    server.close()
