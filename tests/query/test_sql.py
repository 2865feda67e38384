"""SQL from strangers: the contract's tables can be read, in bounds, and nothing else can be done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.clock import ManualClock, SystemClock
from pipeline.query import answer
from pipeline.store import Reader, Store
from tests.sample_state import BLUE, HOST, connection, holding, listener, process, roster_row, snapshot


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("sql") / "state.db")
    store = Store(path, "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)
    store.apply(
        [
            snapshot(HOST, connections=[connection(1, inode=5), connection(2), listener(3, 22)],
                     processes=[process(8, "sshd")], holdings=[holding(8, 3, 5), holding(8, 4, 5)]),
            snapshot(BLUE, connections=[connection(4, inode=6)]),
        ],
        [roster_row(HOST, ["host"]), roster_row(BLUE, ["blue"])],
    )  # fmt: skip
    yield path
    store.close()


@pytest.fixture(scope="module")
def reader(path: str) -> Iterator[Reader]:
    opened = Reader(path, ManualClock(now_s=100.0))
    yield opened
    opened.close()


def ask(reader: Reader, sql: str, **keys: Any) -> dict[str, Any]:
    return answer(reader, {"id": 1, "op": "sql", "sql": sql, **keys})


def rows(reader: Reader, sql: str) -> list[list[Any]]:
    answered = ask(reader, sql)
    assert answered["ok"], answered
    found: list[list[Any]] = answered["rows"]
    return found


def test_answer_has_the_statements_columns_and_says_that_it_is_whole(reader: Reader) -> None:
    answered = ask(
        reader, "SELECT netns_name AS name, count(*) AS n FROM connections GROUP BY 1 ORDER BY 2 DESC"
    )

    assert (answered["columns"], answered["rows"]) == (["name", "n"], [["host", 3], ["blue", 1]])
    assert (answered["total"], answered["truncated"], answered["seq"]) == (2, False, 1)
    assert len(answered["namespaces"]) == 2


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count(*) FROM connections", [[4]]),
        ("SELECT count(*) FROM owners", [[2]]),
        ("SELECT comm, connections FROM processes", [["sshd", 1]]),
        ("SELECT name FROM namespaces ORDER BY 1", [["blue"], ["host"]]),
        ("SELECT client_comm, server_port FROM edges WHERE client_pid = 8", [["sshd", 443]]),
        ("SELECT e.value FROM namespaces n, json_each(n.names) e WHERE n.name = 'blue'", [["blue"]]),
        ("WITH x AS (SELECT pid FROM connections WHERE pid NOT NULL) SELECT * FROM x", [[8]]),
        (
            "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t LIMIT 3) SELECT sum(n) FROM t",
            [[6]],
        ),
        ("WITH t(n) AS (VALUES (1), (2)) SELECT count(*) FROM t", [[2]]),
        ("SELECT rank() OVER (ORDER BY local_port) FROM connections LIMIT 1", [[1]]),
        ("SELECT c.cookie FROM connections c JOIN owners o USING (inode) WHERE o.fd = 4", [[1]]),
        ("-- why\nSELECT 'connections' /* here */", [["connections"]]),
    ],
)
def test_tables_of_the_contract_can_be_asked_in_any_way(
    reader: Reader, sql: str, expected: list[Any]
) -> None:
    assert rows(reader, sql) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO connections(netns) VALUES (1)", "INSERT INTO connection(netns, key) VALUES (1, 1)",
        "UPDATE meta SET seq = 0", "DELETE FROM connection", "REPLACE INTO loss VALUES ('x', 1)",
        "WITH x AS (SELECT 1) DELETE FROM connection", "DROP TABLE connection", "DROP VIEW connections",
        "CREATE TABLE mine(x)", "CREATE TEMP TABLE mine(x)", "CREATE TEMP VIEW connections AS SELECT 1",
        "CREATE VIRTUAL TABLE mine USING fts5(x)", "ALTER TABLE meta RENAME TO mine",
        "ATTACH '/tmp/sockscope-test.db' AS other", "DETACH main", "VACUUM", "VACUUM INTO '/tmp/sockscope-test.db'",
        "PRAGMA query_only = OFF", "PRAGMA journal_mode = DELETE", "PRAGMA writable_schema = ON", "PRAGMA table_list",
        "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK", "SAVEPOINT x", "ANALYZE", "REINDEX",
        "SELECT load_extension('libm.so.6')", "UPDATE sqlite_master SET sql = ''", "DELETE FROM sqlite_schema",
    ],
)  # fmt: skip
def test_nothing_can_be_changed_opened_or_switched(reader: Reader, path: str, sql: str) -> None:
    before = Path(path).read_bytes()

    refused = ask(reader, sql)

    assert (refused["id"], refused["ok"], refused["error"]["code"]) == (1, False, "sql_error")
    assert Path(path).read_bytes() == before
    assert not Path("/tmp/sockscope-test.db").exists()
    assert rows(reader, "SELECT count(*) FROM connections") == [[4]]


@pytest.mark.parametrize(
    "sql",
    [
        "WITH a AS (SELECT '--'), connections AS (SELECT * FROM x) SELECT * FROM connections",
        "WITH a AS (SELECT '/*'), owners AS (SELECT * FROM x) SELECT * FROM owners",
        "WITH a AS (SELECT 'it''s --'), \"connections\" AS (SELECT * FROM x) SELECT * FROM connections",
        "WITH 'connections' /* -- */ AS (SELECT * FROM x) SELECT * FROM connections",
        "WITH [a--] AS (SELECT 1), edges AS (SELECT * FROM x) SELECT * FROM edges",
        "WITH `a/*` AS (SELECT 1), edges(y) AS (SELECT * FROM x) SELECT * FROM edges",
    ],
)  # fmt: skip
def test_no_subquery_takes_a_table_s_name_behind_a_text_that_looks_like_a_comment(
    reader: Reader, sql: str
) -> None:
    message = ask(reader, sql)["error"]["message"]
    assert message.endswith("is the name of a table here, call the subquery something else")


def test_a_text_may_hold_what_looks_like_a_comment_or_a_private_table(reader: Reader) -> None:
    found = rows(reader, "SELECT 'FROM meta -- /*', count(*) FROM connections")
    assert found == [["FROM meta -- /*", 4]]


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("SELECT * FROM connection", "connection"), ("SELECT count(*) FROM holding", "holding"),
        ("SELECT seq FROM meta", "meta"), ("SELECT host, epoch, seq FROM meta", "meta"),
        ("SELECT * FROM (SELECT * FROM process) AS connections", "process"),
        ("SELECT (SELECT max(pid) FROM process) FROM connections", "process"),
        ("WITH x AS (SELECT local_ip FROM connection) SELECT * FROM x", "connection"),
        ("SELECT * FROM sqlite_master", "sqlite_master"), ("SELECT * FROM pragma_table_list", "pragma_table_list"),
        ("SELECT * FROM past", "past"), ("SELECT (SELECT count(*) FROM past), netns FROM connections", "past"),
        ("SELECT 1 FROM connections, worker", "worker"), ("SELECT count(*) FROM main.[meta]", "meta"),
    ],
)  # fmt: skip
def test_private_tables_are_refused_with_the_names_of_the_others(
    reader: Reader, sql: str, table: str
) -> None:
    message = ask(reader, sql)["error"]["message"]

    assert message == (
        f"SQL: {table} cannot be read; the tables are connections, owners, processes, namespaces, edges, closed,"
        " containers"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "WITH connections AS (SELECT * FROM connection) SELECT * FROM connections",
        'WITH x AS (SELECT 1), "edges" (a) AS MATERIALIZED (SELECT cookie FROM connection) SELECT * FROM edges',
        "WITH owners/**/AS--\n(SELECT * FROM holding) SELECT * FROM owners",
    ],
)
def test_names_of_the_tables_cannot_be_given_to_something_else(reader: Reader, sql: str) -> None:
    assert "is the name of a table here" in ask(reader, sql)["error"]["message"]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", 'SQL: near "SELEC": syntax error'), ("SELECT whatever FROM edges", "SQL: no such column: whatever"),
        ("SELECT 1; SELECT 2", "SQL: You can only execute one statement at a time."), ("", "expected one SELECT"),
        ("SELECT '\0'", "SQL: "), ("SELECT '\ud800'", "SQL: "), ("SELECT ?", "SQL: "),
        ("SELECT 1" + " " * 100_000, "a statement of more than 100000 bytes"),
    ],
)  # fmt: skip
def test_wrong_statement_gets_what_sqlite_says_of_it(reader: Reader, sql: str, message: str) -> None:
    refused = ask(reader, sql)

    assert not refused["ok"]
    assert refused["error"]["message"].startswith(message)


def test_rows_end_at_the_limit_and_the_answer_says_so(reader: Reader) -> None:
    many = "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT n FROM t"

    whole, cut = ask(reader, many), ask(reader, many, limit=2)

    assert (len(whole["rows"]), whole["truncated"]) == (100_000, True)
    assert (cut["rows"], cut["truncated"]) == ([[1], [2]], True)


def test_bytes_of_an_answer_are_bounded(reader: Reader) -> None:
    million = "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT printf('%1000000d', n) FROM t"

    answered = ask(reader, million)

    assert (len(answered["rows"]), answered["truncated"]) == (16, True)


def test_value_too_large_for_an_answer_is_not_even_made(reader: Reader) -> None:
    assert ask(reader, "SELECT zeroblob(1000000000)")["error"]["message"] == "SQL: string or blob too big"


def test_statement_without_end_is_ended(path: str) -> None:
    impatient = Reader(path, SystemClock(), time_limit_s=0.05)
    endless = "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"

    refused = ask(impatient, endless)

    assert refused["error"]["code"] == "timeout"
    assert rows(impatient, "SELECT 1") == [[1]]
    impatient.close()


def test_other_operations_go_on_after_a_refused_statement(reader: Reader) -> None:
    ask(reader, "SELECT * FROM connection")

    assert answer(reader, {"op": "connections"})["total"] == 4


@pytest.mark.parametrize("key", ["where", "fields", "cursor", "max_age_s"])
def test_keys_that_mean_nothing_to_sql_are_refused(reader: Reader, key: str) -> None:
    value = {"where": {"netns": 1}, "fields": ["n"], "cursor": "x", "max_age_s": 1}[key]

    assert ask(reader, "SELECT 1", **{key: value})["error"]["message"] == f"{key}: not for op sql"
