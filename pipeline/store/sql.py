"""Statements of strangers: one SELECT on the contract's views, with bounds on what it may read, return and use."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.errors import Refused
from pipeline.store.closed import CLOSED_TABLES
from pipeline.store.containers import CONTAINER_TABLES
from pipeline.store.schema import TABLES

VIEWS = ("connections", "owners", "processes", "namespaces", "edges", "closed", "containers")
MAX_ROWS = 100_000
MAX_BYTES = 16 * 1024 * 1024
_MAX_STATEMENT_BYTES = 100_000
# Of one value, wherever it occurs: zeroblob(1e9) would be a gigabyte in one step.
_MAX_VALUE_BYTES = MAX_BYTES
_FETCHED_AT_ONCE = 256
# What a value costs beside its text.
_VALUE_BYTES = 9

_TABLE_FUNCTIONS = ("json_each", "json_tree")
# Functions that do more than compute, or show more than the state.
_REFUSED_FUNCTIONS = frozenset(
    ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "sqlite_log")
)
# A name of ours given to something else would read as our view to the authorizer.
_TAKEN_NAME = re.compile(
    rf"""["'`\[]?\b({"|".join(VIEWS)})\b["'`\]]?\s*(\([^()]*\)\s*)?AS\s*((NOT\s+)?MATERIALIZED\s*)?\(""",
    re.IGNORECASE,
)
_OUR_TABLES = "|".join(re.findall(r"CREATE TABLE (\w+)", TABLES + CLOSED_TABLES + CONTAINER_TABLES))
_PRIVATE = re.compile(rf"({_OUR_TABLES}|sqlite_\w+|pragma_\w+|dbstat)$")
# What a statement is made of besides words: quoted names and texts, in which nothing is a comment, and comments.
_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)""", re.DOTALL
)
# A private table where rows come from: even how many they are is nobody's business.
_PRIVATE_SOURCE = re.compile(
    rf"""(?:\bFROM|\bJOIN|,)\s*\(*\s*(?:["'`\[]?\w+["'`\]]?\s*\.\s*)?["'`\[]?({_OUR_TABLES}|sqlite_\w+)\b""",
    re.IGNORECASE,
)


class Result(NamedTuple):
    """`truncated`: there were more rows than the limits let through."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


def select_sql(database: sqlite3.Connection, statement: str, limit: int | None) -> Result:
    """What one SELECT gives, on a connection of which nothing else is asked meanwhile.

    Raises: Refused for anything but a SELECT on VIEWS, and for what SQLite says is wrong; sqlite3.OperationalError
    when interrupted.
    """
    if len(statement.encode(errors="replace")) > _MAX_STATEMENT_BYTES:
        raise Refused(f"a statement of more than {_MAX_STATEMENT_BYTES} bytes")
    code = _TOKEN.sub(_code_of, statement)
    taken = _TAKEN_NAME.search(code)
    if taken:
        raise Refused(f"{taken[1]} is the name of a table here, call the subquery something else")
    private = _PRIVATE_SOURCE.search(code)
    if private:
        raise Refused(f"SQL: {private[1]} cannot be read; the tables are {', '.join(VIEWS)}", "sql_error")
    authorizer = _Authorizer()
    with _restricted(database, authorizer):
        try:
            cursor = database.execute(statement)
            if cursor.description is None:
                raise Refused("expected one SELECT")
            columns = _told_apart(name for name, *_ in cursor.description)
            rows, truncated = _fetch(cursor, MAX_ROWS if limit is None else min(limit, MAX_ROWS))
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError) as error:
            if _is_interrupted(error):
                raise
            raise Refused(f"SQL: {authorizer.refused or error}", "sql_error") from None
    return Result(columns, rows, truncated)


def _code_of(token: re.Match[str]) -> str:
    """A token as far as names go: comments are blank, and so are texts, unless SQLite could take one for a name."""
    text = token[0]
    if text.startswith(("--", "/*")):
        return " "
    return "''" if text[0] == "'" and not text[1:-1].isidentifier() else text


def _told_apart(names: Iterable[str]) -> list[str]:
    """The names, a second `netns` as `netns_2`: rows become objects at the other end, and would lose one."""
    told: list[str] = []
    for name in names:
        number, distinct = 1, name
        while distinct in told:
            number += 1
            distinct = f"{name}_{number}"
        told.append(distinct)
    return told


def _fetch(cursor: sqlite3.Cursor, limit: int) -> tuple[list[list[Any]], bool]:
    rows: list[list[Any]] = []
    size = 0
    while found := cursor.fetchmany(_FETCHED_AT_ONCE):
        for row in found:
            size += sum(
                _VALUE_BYTES + (len(value) if isinstance(value, (str, bytes)) else 0) for value in row
            )
            if len(rows) >= limit or size > MAX_BYTES:
                return rows, True
            rows.append(list(row))
    return rows, False


def _is_interrupted(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


@contextmanager
def _restricted(database: sqlite3.Connection, authorizer: Callable[..., int]) -> Iterator[None]:
    longest = database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    database.set_authorizer(authorizer)
    try:
        yield
    finally:
        database.set_authorizer(None)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)


class _Authorizer:
    """Called by SQLite while it compiles a statement, once for each thing that it would do. `refused`: a sentence."""

    def __init__(self) -> None:
        self.refused = ""
        self._in_view = False

    def __call__(
        self, action: int, first: str | None, second: str | None, schema: str | None, inside: str | None
    ) -> int:
        """`inside`: the view whose text asks for it."""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in _REFUSED_FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            self._in_view |= inside in VIEWS
            if first in VIEWS or first in _TABLE_FUNCTIONS or inside in VIEWS:
                return sqlite3.SQLITE_OK
            # No column: only its rows count. SQLite does not say whether a view wants them, but it has seen to the
            # view by now. Names of the statement's own (WITH) are asked for in the same way.
            if not second and (self._in_view or not _PRIVATE.match(str(first))):
                return sqlite3.SQLITE_OK
            # Using a table function makes SQLite declare it, which looks like reading its own schema table's ROWID.
            if first == "sqlite_master" and second == "ROWID":
                return sqlite3.SQLITE_OK
            self.refused = f"{first} cannot be read; the tables are {', '.join(VIEWS)}"
            return sqlite3.SQLITE_DENY
        if (
            action == sqlite3.SQLITE_UPDATE
            and first == "sqlite_master"
            and schema == "main"
            and inside is None
        ):
            return sqlite3.SQLITE_OK  # as above; the connection is read-only
        self.refused = "only SELECT is allowed"
        return sqlite3.SQLITE_DENY
