"""Which requests are answered where they arrive, and that their answers are those of any handler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.codec import decode_map, encode
from pipeline.query import Lookups, answer_bytes
from pipeline.store import Reader, Store
from tests.sample_state import BLUE, HOST, connection, holding, process, roster_row, snapshot

ROWS = 2003


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("store") / "state.db"
    store = Store(str(path), "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    store.apply(
        [
            snapshot(HOST, connections=[connection(key, inode=0) for key in range(1, ROWS + 1)]),
            snapshot(
                BLUE, connections=[connection(9001, inode=5)], processes=[process(8, "sshd")],
                holdings=[holding(8, 3, 5)],
            ),
        ],
        [roster_row(HOST, ["host"]), roster_row(BLUE, ["blue"])],
    )  # fmt: skip
    yield str(path)
    store.close()


def lookups(path: str) -> Lookups:
    return Lookups(lambda: Reader(path, ManualClock(now_s=100.0), max_steps=50_000))


def request(where: Any, **keys: Any) -> bytes:
    return encode({"id": 7, "op": "connections", "where": where, **keys})


@pytest.mark.parametrize(
    "where",
    [
        {"cookie": 17},
        {"cookie": "17", "proto": "tcp"},
        {"inode": 5},
        {"cookie": 17, "netns": "host"},
        {"inode": 9},
    ],
)
def test_a_lookup_is_answered_as_by_a_handler(path: str, where: dict[str, Any]) -> None:
    found = lookups(path)(request(where))
    assert found is not None
    handler = Reader(path, ManualClock(now_s=100.0))
    assert decode_map(found) == decode_map(answer_bytes(handler, request(where)))


@pytest.mark.parametrize(
    "asked",
    [
        request({}),
        request({"port": 80}),
        request({"cookie": [1, 2]}),
        request({"cookie": "not a number"}),
        request({"cookie": 17, "colour": "red"}),
        request({"cookie": 17}, fields=["colour"]),
        request([17]),
        encode({"id": 7, "op": "namespaces", "where": {"cookie": 17}}),
        encode({"op": "wait", "where": {"cookie": 17}}),
        b"garbage",
        b"",
    ],
)
def test_what_is_no_lookup_or_wrong_is_left_to_a_handler(path: str, asked: bytes) -> None:
    assert lookups(path)(asked) is None


def test_a_lookup_that_selects_many_rows_is_given_up(path: str) -> None:
    asked = lookups(path)
    assert asked(request({"inode": 0})) is None
    assert asked(request({"cookie": 17})) is not None
