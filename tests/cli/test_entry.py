"""What failures say and exit with, whatever the verb."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.conftest import Sockscope

VERBS = (
    "run", "snapshot", "connections", "edges", "processes", "namespaces", "status", "sql", "feed", "probe", "config",
)  # fmt: skip


def sentence(completed: subprocess.CompletedProcess[bytes]) -> str:
    """stderr, which must be one line and no traceback."""
    text = completed.stderr.decode()
    assert len(text.splitlines()) == 1, text
    assert text.startswith("sockscope: ")
    return text


def test_version_and_help_exit_0(sockscope: Sockscope) -> None:
    assert sockscope("--version").stdout == b"sockscope, version 0.1.0\n"
    listed = sockscope("--help").stdout.decode()
    for verb in VERBS:
        assert f"\n  {verb} " in listed
    assert "\n  5    no pipeline answers" in listed


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(sockscope: Sockscope, verb: str) -> None:
    completed = sockscope(verb, "--help")
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert f"Usage: sockscope {verb}" in completed.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["conections"], "connections"),
        (["connections", "--local-prt", "80"], "--local-port"),
        (["connections", "--limit", "0"], "--limit"),
        (["config", "--format", "yaml"], "'table', 'json', 'jsonl'"),
        (["config", "--fields", ","], "name at least one column"),
        (["config", "--fields", "colour"], "any of key, value"),
        (["config", "--log-level", "loud"], "one of debug, info, warning, error"),
        (["config", "--config", "/nonexistent"], "cannot read the config file /nonexistent"),
        (["connections", "--watch", "--explain"], "--watch and --explain exclude each other"),
        (["connections", "--top", "3", "--fields", "pid"], "--group-by or --top"),
        (["connections", "--group-by", "owners"], "pid, comm or container"),
        (["sql"], "STATEMENT"),
        (["feed", "--limit", "0"], "--limit"),
        (["feed", "--duration", "nan"], "--duration"),
        (["run", "--duration", "0"], "--duration"),
        (["run", "--duration", "soon"], "--duration"),
        (["run", "--duration", "nan"], "--duration"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_sentence(
    sockscope: Sockscope, arguments: list[str], says: str
) -> None:
    completed = sockscope(*arguments)
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert says in sentence(completed)


def test_no_verb_at_all_prints_the_verbs_and_exits_2(sockscope: Sockscope) -> None:
    completed = sockscope()
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert b"connections" in completed.stderr


def test_a_bad_variable_exits_2_and_is_named(sockscope: Sockscope) -> None:
    completed = sockscope("config", env={"SOCKSCOPE_WALK_FD_BLOCK": "0"})
    assert completed.returncode == 2
    assert "SOCKSCOPE_WALK_FD_BLOCK" in sentence(completed)


def test_control_bytes_of_an_argument_do_not_reach_the_terminal(sockscope: Sockscope) -> None:
    completed = sockscope("config", "--log-level", "\x1b[31mred")
    assert b"\x1b" not in completed.stderr
    assert completed.returncode == 2


def test_a_reader_that_goes_away_is_no_failure() -> None:
    command = f"{sys.executable} -m pipeline.cli config | true; exit ${{PIPESTATUS[0]}}"
    completed = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (completed.returncode, completed.stderr) == (0, b"")


def test_a_full_disk_under_stdout_is_one_sentence(sockscope: Sockscope) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "pipeline.cli", "config"]
        completed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert completed.returncode == 1
    assert "No space left on device" in completed.stderr.decode()
    assert len(completed.stderr.splitlines()) == 1


def test_config_shows_each_value_and_where_it_came_from(sockscope: Sockscope, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[walk]\nfd_block = 17\n")
    completed = sockscope(
        "config", "--config", str(path), "--runtime-dir", "/flag", "--json", "--fields", "key,value,origin"
    )
    rows = {row["key"]: (row["value"], row["origin"]) for row in json.loads(completed.stdout)}
    assert rows["walk.fd_block"] == (17, f"file {path}")
    assert rows["agent.runtime_dir"] == ("/flag", "flag --runtime-dir")
    assert rows["walk.target_s"] == (10.0, "default")


@pytest.mark.parametrize(
    "arguments",
    [
        ["connections"],
        ["connections", "--watch"],
        ["connections", "--explain"],
        ["connections", "--top", "3"],
        ["edges"],
        ["processes"],
        ["namespaces"],
        ["status"],
        ["sql", "SELECT 1"],
        ["feed"],
    ],
)
def test_without_a_running_pipeline_a_query_exits_5_and_names_the_directory(
    sockscope: Sockscope, tmp_path: Path, arguments: list[str]
) -> None:
    completed = sockscope(*arguments, "--runtime-dir", str(tmp_path / "none"))
    assert (completed.returncode, completed.stdout) == (5, b"")
    assert str(tmp_path / "none") in sentence(completed)


def test_a_relative_runtime_dir_is_taken_from_the_current_directory(sockscope: Sockscope) -> None:
    completed = sockscope("config", "--runtime-dir", "here", "--no-header", "--fields", "key,value")
    expected = os.path.join(os.getcwd(), "here")
    assert f"agent.runtime_dir          {expected}" in completed.stdout.decode()


def test_a_query_starts_without_what_only_the_pipeline_or_a_terminal_needs(sockscope: Sockscope) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try:\n"
        "    main(['connections', '--json'])\n"
        "except SystemExit as exited:\n"
        "    assert exited.code == 5\n"
        "print(*sorted({'pipeline.roles', 'pipeline.walk', 'rich', 'psutil', 'sqlite3'} & set(sys.modules)))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"SOCKSCOPE_RUNTIME_DIR": "/none"}
    )
    assert completed.stdout == b"\n"


def on_terminal(arguments: list[str], columns: int) -> str:
    """What `sockscope ARGUMENTS` shows on a terminal of that width."""
    main_fd, terminal_fd = pty.openpty()
    with open(main_fd, "rb", buffering=0) as main_end, open(terminal_fd, "wb", buffering=0) as terminal:
        termios.tcsetwinsize(terminal, (50, columns))
        env = {"TERM": "xterm-256color", "PATH": os.environ["PATH"]}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *arguments], stdout=terminal, env=env
        )
        terminal.close()
        shown = b""
        # A terminal whose other end is closed reads as EIO instead of as an end of file: pty(7).
        with contextlib.suppress(OSError):
            while chunk := main_end.read(4096):
                shown += chunk
        assert process.wait() == 0
    return shown.decode()


def test_on_a_terminal_the_header_is_bold_and_every_line_fits() -> None:
    shown = on_terminal(["config"], columns=60)
    assert "\x1b[1m" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    assert max(map(len, plain.splitlines())) <= 60
    assert "walk.fd_block" in plain


def test_on_a_terminal_json_stays_plain() -> None:
    shown = on_terminal(["config", "--json", "--fields", "key"], columns=60)
    assert json.loads(shown)[0] == {"key": "agent.runtime_dir"}
