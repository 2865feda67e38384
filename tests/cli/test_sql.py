"""Questions in SQL, and why a connection has its owner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import BOX, Sockscope

pytestmark = pytest.mark.usefixtures("filled")

BY_STATE = "SELECT state, count(*) AS n FROM connections GROUP BY state ORDER BY n DESC, state"


def test_sql_prints_its_columns_as_any_table(sockscope: Sockscope) -> None:
    completed = sockscope("sql", BY_STATE)
    assert completed.stdout.decode().splitlines() == [
        "STATE        N", "ESTABLISHED  2", "CLOSE_WAIT   1", "LISTEN       1",
    ]  # fmt: skip


def test_sql_prints_json_picks_fields_limits_and_counts(sockscope: Sockscope) -> None:
    assert json.loads(sockscope("sql", BY_STATE, "--json").stdout)[0] == {"state": "ESTABLISHED", "n": 2}
    limited = sockscope("sql", BY_STATE, "--fields", "n", "--limit", "2", "--no-header")
    assert (limited.stdout, limited.stderr.decode().splitlines()[0]) == (b"2\n1\n", "2 of 3 rows")
    assert sockscope("sql", BY_STATE, "--count").stdout == b"3\n"
    assert sockscope("sql", "SELECT 1 AS one WHERE 0", "--exit-code").returncode == 3
    assert sockscope("sql", BY_STATE, "--fields", "m").returncode == 2


def test_sql_tells_columns_of_one_name_apart(sockscope: Sockscope) -> None:
    assert json.loads(sockscope("sql", "SELECT 1 AS a, 2 AS a, 3 AS b, 4 AS a", "--json").stdout) == [
        {"a": 1, "a_2": 2, "b": 3, "a_3": 4}
    ]


def test_sql_says_on_stderr_when_rows_were_left_out(sockscope: Sockscope) -> None:
    numbers = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100001) SELECT i FROM n"
    )
    completed = sockscope("sql", numbers, "--format", "jsonl")
    assert (completed.returncode, len(completed.stdout.splitlines())) == (0, 100_000)
    said = b"sockscope: there are more rows than an answer may have: these are the first\n"
    assert completed.stderr == said


def test_sql_reads_a_statement_from_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "sql", "-", "--no-header", "--runtime-dir"]
    asked = b"SELECT count(*) AS n\nFROM connections -- all\n"
    completed = subprocess.run(
        [*command, str(tmp_path / "run")], input=asked, capture_output=True, timeout=60
    )
    assert (completed.returncode, completed.stdout) == (0, b"4\n")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM connections",
        "ATTACH '/tmp/other.db' AS other",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM connection",
        "SELECT load_extension('x')",
        "SELECT 1; SELECT 2",
        "SELEC 1",
    ],
)
def test_sql_that_is_no_question_about_the_tables_exits_2_with_a_sentence(
    sockscope: Sockscope, statement: str
) -> None:
    completed = sockscope("sql", statement)
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert len(completed.stderr.splitlines()) == 1


@pytest.mark.parametrize("form", ["table", "json", "jsonl"])
def test_neither_values_nor_names_of_columns_reach_the_terminal_as_control_bytes(
    sockscope: Sockscope, form: str
) -> None:
    statement = 'SELECT comm AS "a\x1b[2Jb" FROM processes'
    shown = sockscope("sql", statement, "--format", form).stdout
    assert b"\x1b" not in shown
    assert b"rude" in shown


def test_explain_says_of_each_connection_why_this_owner(sockscope: Sockscope) -> None:
    completed = sockscope("connections", "--explain", "--netns", "box")
    lines = completed.stdout.decode().splitlines()
    assert lines[0] == "tcp ESTABLISHED 10.0.0.9:40001 10.0.0.1:80 in box"
    assert lines[1].startswith("    ") and lines[1].strip()
    assert any("702/\\x1b[31mrude" in line for line in lines[1:])
    assert b"\x1b" not in completed.stdout


def test_explain_as_json_has_the_explanation_and_the_holders(sockscope: Sockscope) -> None:
    fields = "netns,explanation,holders"
    (row,) = json.loads(
        sockscope("connections", "--explain", "--netns", "box", "--json", "--fields", fields).stdout
    )
    assert row["netns"] == BOX
    assert isinstance(row["explanation"], str) and row["explanation"]
    assert [holder["pid"] for holder in row["holders"]] == [702]
