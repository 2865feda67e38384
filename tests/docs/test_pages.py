"""The outputs on docs' pages are what the code makes; `python -m tests.docs.blocks` makes them anew."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.query import CONNECTION_FIELDS, answer
from pipeline.store.filters import CONNECTION_FILTERS, EDGE_FILTERS, PROCESS_FILTERS
from tests.docs.blocks import DOCS, REPOSITORY, asked, renewed
from tests.docs.world import world

OPERATIONS = ["connections", "edges", "processes", "namespaces", "status", "sql", "explain", "wait"]
TOPICS = ["delta", "delta.edges", "event", "snapshot", "heartbeat"]


@pytest.mark.parametrize("name", ["protocol.md", "sql.md"])
def test_every_output_of_the_page_is_made_by_the_code(name: str) -> None:
    text = (DOCS / name).read_text()
    assert renewed(name, text) == text, "run `python -m tests.docs.blocks`"


def test_there_are_ten_questions_and_each_has_an_answer() -> None:
    text = (DOCS / "sql.md").read_text()
    answers = asked("sql.md", text)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("### ")] == [
        f"{number}." for number in range(1, 11)
    ]
    assert len(answers) == 10
    for _, printed in answers:
        assert len(printed.splitlines()) >= 2, "a header and at least a row"


def test_every_operation_and_every_kind_of_message_has_an_example() -> None:
    text = (DOCS / "protocol.md").read_text()
    requests = [json.loads(request) for request, _ in asked("protocol.md", text)]
    assert set(OPERATIONS) <= {request["op"] for request in requests}
    answers = [json.loads(answer) for _, answer in asked("protocol.md", text)]
    assert [answer["ok"] for answer in answers].count(False) == 1
    assert all(answer["rows"] for answer in answers if answer["ok"] and answer["columns"])
    kinds = [re.sub(r"\.\d+$", "", topic) for topic in re.findall(r"```json message (\S+)", text)]
    assert kinds == TOPICS


def test_the_protocol_page_names_every_field_and_filter() -> None:
    words = set(re.findall(r"`([a-z_]+)`", (DOCS / "protocol.md").read_text()))
    wanted = {*CONNECTION_FIELDS, *CONNECTION_FILTERS, *EDGE_FILTERS, *PROCESS_FILTERS}
    assert wanted - words == set()


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (*DOCS.glob("*.md"), *REPOSITORY.glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def readme_commands() -> list[str]:
    text = (REPOSITORY / "README.md").read_text()
    section = text[text.index("## Ask it") : text.index("## What it costs")]
    return [line.strip() for line in section.splitlines() if line.startswith("    sockscope ")]


@pytest.mark.parametrize("line", readme_commands())
def test_commands_of_the_readme_are_understood(line: str, tmp_path: Path) -> None:
    _, verb, *options = shlex.split(line, comments=True)
    command = [sys.executable, "-m", "pipeline.cli", verb, *options]
    if verb in ("snapshot", "probe"):
        assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0
    else:
        command += ["--runtime-dir", str(tmp_path)]
        assert subprocess.run(command, capture_output=True).returncode == 5, "not asked: nobody answers there"


def test_the_sql_page_names_every_column_of_every_table(tmp_path: Path) -> None:
    text = (DOCS / "sql.md").read_text()
    with world(tmp_path) as (store, _):
        for table in ("connections", "owners", "processes", "namespaces", "edges"):
            request = {"op": "sql", "sql": f"SELECT * FROM {table}"}
            (line,) = (line for line in text.splitlines() if line.startswith(f"| `{table}` "))
            named = re.findall(r"`([a-z_]+)`", line)[1:]
            if table == "edges":
                named.remove("server_")
                named += [name.replace("client_", "server_") for name in named if name.startswith("client_")]
            assert set(answer(store.reader(), request)["columns"]) == set(named)
