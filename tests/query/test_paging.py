"""Cursors: every row that stays comes exactly once, whatever comes and goes meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.query import answer
from pipeline.store import Store
from tests.sample_state import HOST, connection, process, snapshot


def new_store(epoch: str = "epoch-1", count: int = 7) -> Store:
    store = Store(":memory:", epoch, "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    store.apply([snapshot(connections=[connection(key) for key in range(1, count + 1)],
                          processes=[process(pid, "sh") for pid in (5, 6, 7)])])  # fmt: skip
    return store


def ask(store: Store, op: str = "connections", **keys: Any) -> dict[str, Any]:
    answered = answer(store.reader(), {"op": op, **keys})
    assert answered["ok"], answered
    return answered


def test_pages_follow_each_other_to_the_end() -> None:
    store = new_store()
    pages, cursor = [], None
    while True:
        answered = ask(store, fields=["cookie"], limit=3, cursor=cursor)
        pages.append([row[0] for row in answered["rows"]])
        assert answered["total"] == 7
        if (cursor := answered["cursor"]) is None:
            break

    assert pages == [[1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize("limit", [7, 8, None, 0])
def test_answer_that_nothing_follows_has_no_cursor(limit: int | None) -> None:
    assert ask(new_store(), limit=limit)["cursor"] is None


def test_last_page_that_is_full_has_no_cursor() -> None:
    store = new_store(count=6)
    cursor = ask(store, limit=3)["cursor"]

    assert ask(store, limit=3, cursor=cursor)["cursor"] is None


def test_rest_comes_whole_without_a_limit() -> None:
    store = new_store()
    cursor = ask(store, limit=5)["cursor"]

    answered = ask(store, fields=["cookie"], cursor=cursor)

    assert (answered["rows"], answered["total"]) == ([[6], [7]], 7)


def test_each_page_says_of_which_commit_it_is() -> None:
    store = new_store()
    first = ask(store, limit=3)
    store.apply([snapshot(generation=2, base=False, gone_connections=[5])])

    second = ask(store, limit=3, cursor=first["cursor"])

    assert (first["seq"], second["seq"]) == (1, 2)


def test_processes_and_namespaces_have_pages_too() -> None:
    store = new_store()
    first = ask(store, "processes", fields=["pid"], limit=2)

    assert ask(store, "processes", fields=["pid"], limit=2, cursor=first["cursor"])["rows"] == [[7]]
    assert ask(store, "namespaces", fields=["netns"], limit=1)["rows"] == [[HOST]]


@pytest.mark.parametrize(
    ("cursor", "code"),
    [("epoch-0~connections~3", "cursor_expired"), ("", "bad_request"), ("nonsense", "bad_request"),
     ("epoch-1~connections~", "bad_request"), ("epoch-1~connections~1~2", "bad_request"),
     ("epoch-1~processes~1~2", "bad_request"), ("epoch-1~connections~-1", "bad_request"),
     ("epoch-1~connections~" + "9" * 19, "bad_request"), (7, "bad_request")],
)  # fmt: skip
def test_cursor_that_is_not_of_this_run_and_question_is_refused(cursor: Any, code: str) -> None:
    refused = answer(new_store().reader(), {"op": "connections", "limit": 1, "cursor": cursor})

    assert (refused["ok"], refused["error"]["code"]) == (False, code)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(1, 20), max_size=4), max_size=12), st.integers(1, 4))
def test_rows_that_live_through_all_pages_come_exactly_once(toggled: list[set[int]], limit: int) -> None:
    store = new_store()
    alive = set(range(1, 8))
    staying = set(alive)
    seen: list[int] = []
    cursor, steps = None, iter(toggled)
    for generation in range(2, 100):
        answered = ask(store, fields=["cookie"], limit=limit, cursor=cursor)
        seen += [row[0] for row in answered["rows"]]
        if (cursor := answered["cursor"]) is None:
            break
        toggle = next(steps, set())
        gone, new = toggle & alive, toggle - alive
        alive, staying = (alive - gone) | new, staying - gone
        store.apply([snapshot(generation=generation, base=False, gone_connections=sorted(gone),
                              connections=[connection(key) for key in sorted(new)])])  # fmt: skip

    assert all(seen.count(key) == 1 for key in staying)
    store.close()
