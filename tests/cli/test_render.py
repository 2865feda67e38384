"""Rows as table, JSON and JSON lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.render import Listing, Output, cell_text, emit, project
from pipeline.errors import Refused

TWO_ROWS = Listing(("pid", "comm", "addr"), [(7, "nginx", None), (12345, "a\x1b[31mb", "10.0.0.1")])


def printed(
    capfdbinary: pytest.CaptureFixture[bytes], listing: Listing, form: str, header: bool = True
) -> bytes:
    emit(listing, Output(form, header))
    return capfdbinary.readouterr().out


def test_a_piped_table_is_aligned_and_plain(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capfdbinary, TWO_ROWS, "table") == (
        b"PID    COMM        ADDR\n"
        b"7      nginx       -\n"
        b"12345  a\\x1b[31mb  10.0.0.1\n"
    )  # fmt: skip


def test_a_table_without_header_starts_with_its_rows(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capfdbinary, TWO_ROWS, "table", header=False).startswith(b"7      nginx")


def test_an_empty_table_is_its_header_and_without_header_nothing(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    empty = Listing(("pid", "comm"), [])
    assert printed(capfdbinary, empty, "table") == b"PID  COMM\n"
    assert printed(capfdbinary, empty, "table", header=False) == b""
    assert printed(capfdbinary, empty, "json") == b"[]\n"
    assert printed(capfdbinary, empty, "jsonl") == b""


def test_a_piped_table_cuts_no_value_and_counts_wide_characters_twice(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    listing = Listing(("a", "b"), [("x" * 500, "1"), ("\u6f22", "2")])
    lines = printed(capfdbinary, listing, "table").decode().splitlines()
    assert lines[1] == "x" * 500 + "  1"
    assert lines[2] == "\u6f22" + " " * 498 + "  2"


def test_json_is_one_array_of_objects_in_column_order(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capfdbinary, TWO_ROWS, "json") == (
        b'[{"pid":7,"comm":"nginx","addr":null},{"pid":12345,"comm":"a\\\\x1b[31mb","addr":"10.0.0.1"}]\n'
    )


def test_jsonl_is_one_object_a_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = printed(capfdbinary, TWO_ROWS, "jsonl").splitlines()
    assert [json.loads(line)["pid"] for line in lines] == [7, 12345]


def test_what_cannot_be_printed_is_escaped_at_any_depth(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    listing = Listing(("owners",), [([{"comm": "x\n\udcff\u202e"}],)])
    assert json.loads(printed(capfdbinary, listing, "json")) == [{"owners": [{"comm": "x\\x0a\\xff\\u202e"}]}]


NESTED = st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.none(), st.lists, max_leaves=5)


@given(NESTED)
def test_no_text_whatever_puts_a_control_byte_into_a_cell(value: Any) -> None:
    assert cell_text(value).isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ([], "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (1.5, "1.5"),
        (2.0, "2"),
        (0.12345, "0.123"),
        ([{"pid": 1, "comm": "init"}, {"pid": 2, "comm": "b c"}], "1/init,2/b c"),
        ({"a": [1]}, '{"a":[1]}'),
    ],
)
def test_a_cell_shows_a_value_as_a_person_reads_it(value: Any, text: str) -> None:
    assert cell_text(value) == text


def test_project_picks_columns_in_the_order_asked_for() -> None:
    assert project(TWO_ROWS, ("comm", "pid")) == Listing(
        ("comm", "pid"), [["nginx", 7], ["a\x1b[31mb", 12345]]
    )


def test_project_refuses_a_column_that_is_not_there() -> None:
    with pytest.raises(Refused, match="unknown field user"):
        project(TWO_ROWS, ("user",))
