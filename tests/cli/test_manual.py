"""The man page says what --help says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def made() -> str:
    command = [sys.executable, str(ROOT / "scripts" / "man"), "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_page_is_what_scripts_man_makes_of_the_help_texts() -> None:
    assert (ROOT / "docs" / "sockscope.1").read_text() == made(), "run scripts/man"


def test_every_verb_and_exit_code_is_in_it() -> None:
    page = made()
    for verb in ("run", "snapshot", "connections", "edges", "sql", "feed", "status"):
        assert f"\n.SS {verb}\n" in page
    assert "\n\\fB\\-\\-group\\-by FIELD[,FIELD]\\fR\n" in page
    assert "\n.TP\n\\fB5\\fR\nno pipeline answers at that runtime directory\n" in page


def test_no_line_is_taken_for_a_macro_that_is_none() -> None:
    macros = {line.split()[0] for line in made().splitlines() if line.startswith(".")}
    assert macros == {'.\\"', ".TH", ".nh", ".SH", ".SS", ".PP", ".TP"}
