"""The log relay: one line a record, from every process, and no process that stops another."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.codec import encode
from pipeline.errors import ConfigError
from pipeline.roles.log_queue import DatagramQueue, RateLimit
from pipeline.roles.log_relay import Relay, become, start_relay

# The relay has a thread by design, and its children only ever write to a socket: what Python 3.12 warns of (a lock
# held by another thread at the fork) is in none of their ways.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

DEADLINE_S = 60.0
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[A-Z]+) (?P<role>[a-z]+)\[(?P<pid>\d+)\]"
    r"(?: netns=(?P<netns>\d+))? (?P<text>.*)"
)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "sockscope.log"


@pytest.fixture
def relay(log_file: Path) -> Iterator[Relay]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    relay = start_relay("info", str(log_file))
    yield relay
    relay.stop()
    root.handlers[:] = handlers
    root.setLevel(level)


def in_child(work: Callable[[], object]) -> int:
    """The pid of a forked child that does `work` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def texts(log_file: Path, role: str) -> list[str]:
    """What processes of that role said, in order; every line has to have the documented form."""
    matches = [LINE.fullmatch(line) for line in log_file.read_text().splitlines()]
    assert None not in matches
    return [match["text"] for match in matches if match is not None and match["role"] == role]


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        os.sched_yield()


def test_line_has_time_level_role_pid_netns_and_message(relay: Relay, log_file: Path) -> None:
    record = logging.makeLogRecord(
        {
            "levelno": logging.WARNING,
            "msg": "%d rows",
            "args": (23,),
            "created": 1767225600.1239,
            "netns": 4026531840,
        }
    )
    logging.getLogger().handle(record)
    logging.info("without a namespace")
    relay.stop()
    first, second = log_file.read_text().splitlines()
    assert first == f"2026-01-01T00:00:00.123Z WARNING supervisor[{os.getpid()}] netns=4026531840 23 rows"
    assert second.endswith(f"Z INFO supervisor[{os.getpid()}] without a namespace")


def test_children_write_to_the_same_place_under_their_own_names(relay: Relay, log_file: Path) -> None:
    def work() -> None:
        become("netns", 4026531999)
        logging.info("from the worker")
        logging.info("about another namespace", extra={"netns": 7})

    pid = in_child(work)
    os.waitpid(pid, 0)
    relay.stop()
    lines = [line.split("Z ", 1)[1] for line in log_file.read_text().splitlines()]
    assert lines == [
        f"INFO netns[{pid}] netns=4026531999 from the worker",
        f"INFO netns[{pid}] netns=7 about another namespace",
    ]


def test_records_below_the_level_are_not_sent(relay: Relay, log_file: Path) -> None:
    logging.debug("unheard")
    relay.stop()
    assert log_file.read_text() == ""


def test_one_record_is_one_line_whatever_is_in_it(relay: Relay, log_file: Path) -> None:
    logging.info("a\nb\x1b[31m\udcff%s", "\x00\u202e")
    relay.stop()
    assert texts(log_file, "supervisor") == [r"a\x0ab\x1b[31m\udcff\x00\u202e"]


def test_traceback_travels_in_the_line_of_its_record(relay: Relay, log_file: Path) -> None:
    def work() -> None:
        become("netns")
        try:
            raise ValueError("the reason")
        except ValueError:
            logging.exception("failed")

    os.waitpid(in_child(work), 0)
    relay.stop()
    (text,) = texts(log_file, "netns")
    assert text.startswith(r"failed | Traceback (most recent call last):\x0a")
    assert text.endswith(r"\x0aValueError: the reason")


def test_long_messages_are_cut_and_say_so(relay: Relay, log_file: Path) -> None:
    logging.info("x" * 1_000_000)
    relay.stop()
    assert texts(log_file, "supervisor") == ["x" * 8192 + "… (1000000 bytes)"]


def test_stop_writes_what_has_arrived(relay: Relay, log_file: Path) -> None:
    for number in range(97):
        logging.info("%d", number)
    relay.stop()
    assert texts(log_file, "supervisor") == [str(number) for number in range(97)]


def test_process_over_its_rate_loses_lines_and_says_how_many(log_file: Path) -> None:
    clock = ManualClock()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    relay = start_relay("info", str(log_file), clock)
    try:
        for number in range(150):
            logging.info("%d", number)
        clock.advance(0.1)  # two more
        logging.info("later")
        relay.stop()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert texts(log_file, "supervisor") == [
        *(str(number) for number in range(100)),
        "50 log lines lost: 50 over the rate limit, 0 for want of room",
        "later",
    ]


def test_each_child_has_a_rate_of_its_own(relay: Relay, log_file: Path) -> None:
    def flood() -> None:
        become("netns")
        for _ in range(300):
            logging.info("flood")

    def speak() -> None:
        become("aggregator")
        logging.info("calm")

    os.waitpid(in_child(flood), 0)
    os.waitpid(in_child(speak), 0)
    relay.stop()
    assert texts(log_file, "aggregator") == ["calm"]
    assert 100 <= len(texts(log_file, "netns")) < 300


def test_rate_limit_allows_a_burst_then_its_rate() -> None:
    clock = ManualClock()
    limit = RateLimit(clock, per_s=10, burst=5)
    assert [limit.allows() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.advance(0.25)
    assert [limit.allows() for _ in range(4)] == [True, True, False, False]
    clock.advance(1000)
    assert [limit.allows() for _ in range(6)] == [True] * 5 + [False]


def test_queue_that_nobody_reads_drops_and_counts_instead_of_blocking() -> None:
    clock = ManualClock()
    records = DatagramQueue(clock)
    record = logging.makeLogRecord({"levelno": logging.INFO, "msg": "x" * 8000})
    while records.dropped < 10:
        clock.advance(1)
        records.put_nowait(record)
    assert records.get(0.0).getMessage() == "x" * 8000
    clock.advance(1)
    records.put_nowait(logging.makeLogRecord({"levelno": logging.INFO, "msg": "room again"}))
    assert records.dropped == 0
    records.wake()
    received = []
    while records.qsize():
        received.append(records.get(0.0).getMessage())
    assert received[-2:] == ["10 log lines lost: 0 over the rate limit, 10 for want of room", "room again"]
    records.close()


def test_garbage_from_a_child_is_skipped(relay: Relay, log_file: Path) -> None:
    wrong_types = encode(([], "now", 1, None, {}, 2.5, [], ({}, {})))
    for garbage in (b"", b"\xc1", b"\x00", b"\x98\x01\x02\x03\x04\x05\x06\x07\x08", wrong_types, bytes(100)):
        relay.records._writer.send(garbage)
    logging.info("after it")
    relay.stop()
    assert texts(log_file, "supervisor") == ["after it"]


def test_writers_killed_in_a_flood_never_stop_their_siblings(relay: Relay, log_file: Path) -> None:
    clock = ManualClock()

    def flood() -> None:
        become("flood")
        # Without the rate limit: the more of its life a writer spends sending, the better the kill hits.
        relay.records._limit = RateLimit(clock, burst=1e18)
        while True:
            logging.info("flood")

    def speak() -> None:
        become("sibling")
        relay.records._limit = RateLimit(clock, burst=1e18)
        for number in range(50):
            logging.info("%d", number)

    def say_alive() -> None:
        become("last")
        logging.info("alive")

    for number in range(20):
        victim = in_child(flood)
        wait_until(lambda: f"flood[{victim}]" in log_file.read_text()[-20_000:])  # noqa: B023
        os.kill(victim, signal.SIGKILL)
        sibling = in_child(speak)
        os.waitpid(victim, 0)
        # Ends, and its last word arrives: sent again with nobody in the way any more.
        assert os.waitpid(sibling, 0)[1] == 0, number
        # On a busy machine the relay may be late, and there may be no room for a word more.
        wait_until(lambda: not relay.records.qsize())
        last = in_child(say_alive)
        os.waitpid(last, 0)
        wait_until(lambda: f"last[{last}] alive" in log_file.read_text()[-200_000:])  # noqa: B023


def test_child_goes_on_without_a_word_when_the_supervisor_is_gone(relay: Relay, tmp_path: Path) -> None:
    go, go_fd = os.pipe()
    done = tmp_path / "done"

    def work() -> None:
        become("netns")
        os.close(relay.records.reader_fd)
        os.close(go_fd)
        os.read(go, 1)
        for _ in range(10):
            logging.info("to nobody")
        done.write_text(str(relay.records.dropped))

    pid = in_child(work)
    relay.stop()
    os.close(go)
    os.close(go_fd)
    os.waitpid(pid, 0)
    assert done.read_text() == "10"


def test_log_file_goes_on_after_rotation(relay: Relay, log_file: Path) -> None:
    logging.info("before")
    wait_until(lambda: log_file.read_text().endswith("before\n"))
    log_file.rename(log_file.with_suffix(".1"))
    logging.info("after")
    relay.stop()
    assert texts(log_file, "supervisor") == ["after"]


def test_log_file_or_level_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    handlers = logging.getLogger().handlers[:]
    with pytest.raises(ConfigError, match=r"agent\.log_file: cannot open .*: No such file"):
        start_relay("info", str(tmp_path / "missing" / "log"))
    with pytest.raises(ConfigError, match="'loud' is none of"):
        start_relay("loud")
    assert logging.getLogger().handlers == handlers
