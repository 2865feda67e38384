"""Outputs inside docs/*.md, made by the real code: compared by the tests, rewritten by `python -m tests.docs.blocks`.

In protocol.md a block `json request` is followed by its `json answer`, and a block `json message TOPIC` shows what the
feed sends; in sql.md a block `sql` is followed by what `sockscope sql` prints.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.cli.render import Listing, Output, cell_text, plain_table
from pipeline.codec import decode_map, encode
from pipeline.query import answer_bytes
from pipeline.store import Reader
from tests.docs.feed import messages
from tests.docs.world import world

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
_EXCHANGE = re.compile(
    r"```json request\n(?P<asked>.*?)```\n\n(?:[^\n`]+\n\n)?```json answer\n(?P<told>.*?)```", re.S
)
_MESSAGE = re.compile(r"```json message (?P<asked>[^\n]+)\n(?P<told>.*?)```", re.S)
_STATEMENT = re.compile(r"```sql\n(?P<asked>.*?)```\n\n```\n(?P<told>.*?)```", re.S)


def renewed(name: str, text: str) -> str:
    """The page with every output as the code makes it now."""
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as (store, clock):
        reader = Reader(store.path, clock)

        def ask(request: Mapping[str, Any]) -> dict[str, Any]:
            return decode_map(answer_bytes(reader, encode(request)))

        if name == "sql.md":
            return _replaced(_STATEMENT, text, lambda statement: _table(ask({"op": "sql", "sql": statement})))
        text = _replaced(_EXCHANGE, text, lambda request: pretty(ask(json.loads(request))))
    sent = messages()
    return _replaced(_MESSAGE, text, lambda topic: pretty(sent[topic]))


def asked(name: str, text: str) -> list[tuple[str, str]]:
    """(request or statement, what the page shows as its answer), in the page's order."""
    pattern = _STATEMENT if name == "sql.md" else _EXCHANGE
    return [(found["asked"], found["told"]) for found in pattern.finditer(text)]


def pretty(value: Mapping[str, Any]) -> str:
    """A map as JSON, a key a line, and of a list of rows a row a line."""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_value(item)}" for key, item in value.items()) + "\n}\n"


def _value(item: Any) -> str:
    if isinstance(item, list) and item and isinstance(item[0], (list, dict)):
        return "[\n" + ",\n".join(f"    {json.dumps(one)}" for one in item) + "\n  ]"
    return json.dumps(item)


def _table(answer: Mapping[str, Any]) -> str:
    assert answer["ok"], answer
    listing = Listing(answer["columns"], answer["rows"])
    cells = [[cell_text(value) for value in row] for row in listing.rows]
    return plain_table(listing.columns, cells, Output("table", True))


def _replaced(pattern: re.Pattern[str], text: str, made: Callable[[str], str]) -> str:
    def one(found: re.Match[str]) -> str:
        begin, end = found.start("told") - found.start(), found.end("told") - found.start()
        return found[0][:begin] + made(found["asked"]) + found[0][end:]

    return pattern.sub(one, text)


if __name__ == "__main__":
    for name in ("protocol.md", "sql.md"):
        path = DOCS / name
        path.write_text(renewed(name, path.read_text()))
        print(path, file=sys.stderr)
