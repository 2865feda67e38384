"""Verbs that show one state after the other, against a live pipeline: --watch and feed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.e2e.host import CONNECTIONS, clean_environment
from tests.live import needs_root
from tests.watched import DEADLINE_S, Lines, Watched, watched

pytestmark = needs_root

CLEARED_LINE = "\x1b[K"


@pytest.fixture(scope="module")
def watched_netns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("cli"), "cli-watched") as found:
        yield found


def listening(found: Watched) -> int:
    return int(found.sockscope("connections", "--listening", "--count").stdout)


def test_watch_prints_a_table_for_each_change_and_ends_with_130(watched_netns: Watched) -> None:
    before = listening(watched_netns)
    with Lines(watched_netns.command("connections", "--watch", "--listening", "--no-header")) as watching:
        assert len(watching.block()) == before
        port = watched_netns.server.tell("listen")
        block = watching.block()
        while not any(f":{port} " in line and "/python" in line for line in block):
            block = watching.block()
        assert len(block) == before + 1
        assert watching.end(signal.SIGINT) == (130, "")


def test_watch_does_not_print_for_what_its_filters_leave_out(watched_netns: Watched) -> None:
    command = watched_netns.command(
        "connections", "--watch", "--listening", "--json", "--fields", "local_port"
    )
    with Lines(command) as watching:
        first = json.loads(watching.next())
        with Lines(watched_netns.command("connections", "--watch", "--established", "--json")) as others:
            assert len(json.loads(others.next())) == 2 * CONNECTIONS
            port = int(watched_netns.server.tell("listen"))
            assert json.loads(watching.next()) == [*first, {"local_port": port}]
            others.end(signal.SIGINT)
            assert others.rest() == []


def test_watch_counts_groups_and_goes_on_after_the_aggregator_s_death(watched_netns: Watched) -> None:
    command = watched_netns.command("connections", "--watch", "--group-by", "state", "--format", "jsonl")
    with Lines(command) as watching:
        first = json.loads(watching.next())
        watched_netns.kill_aggregator()
        watched_netns.server.tell("listen")
        wanted = {row["state"]: row["connections"] for row in first["rows"]}
        wanted["LISTEN"] += 1
        state = json.loads(watching.next())
        while {row["state"]: row["connections"] for row in state["rows"]} != wanted:
            state = json.loads(watching.next())
    assert state["epoch"] != first["epoch"]
    assert state["total"] == len(wanted)


def test_watch_redraws_a_terminal_in_place_and_stays_within_it(watched_netns: Watched) -> None:
    main_fd, terminal_fd = pty.openpty()
    termios.tcsetwinsize(terminal_fd, (12, 100))
    process = subprocess.Popen(
        watched_netns.command("connections", "--watch", "--listening"),
        stdout=terminal_fd, env=clean_environment() | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal_fd)
    try:
        shown = read_screen(main_fd, "in all")
        port = watched_netns.server.tell("listen")
        shown += read_screen(main_fd, port)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=DEADLINE_S)
        os.close(main_fd)
    assert code == 130
    screens = shown.split("\x1b[H")[1:]
    assert len(screens) >= 2
    for screen in screens[:-1]:
        assert screen.count("\n") <= 11
        assert screen.count(CLEARED_LINE) == screen.count("\n")


def read_screen(terminal: int, until: str) -> str:
    """What a terminal gets until it shows something that matches `until`."""
    shown = ""
    deadline_s = time.monotonic() + DEADLINE_S
    while not re.search(until, shown):
        assert time.monotonic() < deadline_s, shown
        shown += os.read(terminal, 65536).decode()
    return shown


def test_feed_prints_a_line_for_each_message_of_the_topics_asked_for(watched_netns: Watched) -> None:
    netns = watched_netns.netns.inode
    topic = f"event.{netns}"
    with Lines(watched_netns.command("feed", "--topic", topic, "--topic", "heartbeat")) as feed:
        assert "  heartbeat  seq " in feed.next()
        port = watched_netns.server.tell("listen")
        line = feed.next()
        while f"opened tcp LISTEN 127.0.0.1:{port} 0.0.0.0:0" not in line:
            assert "  heartbeat  seq " in line or f"  {topic}  seq " in line
            line = feed.next()
        assert f"  {topic}  seq " in line
        assert "  netns cli-watched  " in line
        code, said = feed.end(signal.SIGINT)
    assert (code, said) == (130, "")


def test_feed_prints_whole_messages_as_json_until_its_limit(watched_netns: Watched) -> None:
    completed = watched_netns.sockscope("feed", "--json", "--limit", "3")
    messages = [json.loads(line) for line in completed.stdout.splitlines()]
    assert (completed.returncode, completed.stderr, len(messages)) == (0, "", 3)
    for message in messages:
        assert message["schema"] == 1
        assert {"topic", "host", "epoch", "seq", "prev"} <= message.keys()


def test_feed_prints_only_the_fields_asked_for(watched_netns: Watched) -> None:
    completed = watched_netns.sockscope(
        "feed", "--json", "--topic", "heartbeat", "--fields", "seq,interval_s", "--limit", "1"
    )
    assert list(json.loads(completed.stdout)) == ["topic", "seq", "interval_s"]


@pytest.mark.parametrize("topic", ["nosuch", "delta.cli-watched", "delta.²", "events.1", "heartbeats"])
def test_feed_refuses_a_topic_that_no_message_has(watched_netns: Watched, topic: str) -> None:
    completed = watched_netns.sockscope("feed", "--topic", topic)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "no message has a topic that begins with" in completed.stderr


def test_feed_ends_after_its_duration(watched_netns: Watched) -> None:
    completed = watched_netns.sockscope("feed", "--topic", "snapshot.1", "--duration", "0.5")
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


def test_feed_says_what_it_missed(watched_netns: Watched) -> None:
    with Lines(watched_netns.command("feed", "--topic", "heartbeat", "--json")) as feed:
        first = json.loads(feed.next())
        watched_netns.kill_aggregator()
        while json.loads(feed.next())["epoch"] == first["epoch"]:
            pass
        code, said = feed.end(signal.SIGINT)
    assert code == 130
    assert said == "sockscope: another aggregator: what changed in between is not told\n"
