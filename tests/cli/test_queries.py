"""Verbs that ask: against a real store behind a real query socket, filled with what two workers would publish."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.connections import CLOSED_FIELDS, closed_view
from pipeline.cli.render import Listing
from pipeline.store.writer import Store
from tests.cli.conftest import BOX, Sockscope, fill


@pytest.mark.usefixtures("filled")
def test_connections_is_a_table_of_who_talks_to_whom(sockscope: Sockscope) -> None:
    completed = sockscope("connections")
    assert completed.returncode == 0
    lines = [line.split() for line in completed.stdout.decode().splitlines()]
    assert lines[0] == ["NETNS", "PROTO", "STATE", "LOCAL", "REMOTE", "DIRECTION", "OWNERS"]
    assert sorted(lines[1:]) == [
        ["box", "tcp", "ESTABLISHED", "10.0.0.9:40001", "10.0.0.1:80", "outbound", "702/\\x1b[31mrude"],
        ["web", "tcp", "CLOSE_WAIT", "10.0.0.1:80", "10.1.0.9:40002", "inbound", "701/nginx"],
        ["web", "tcp", "ESTABLISHED", "10.0.0.1:80", "10.0.0.9:40001", "inbound", "701/nginx"],
        ["web", "tcp", "LISTEN", "0.0.0.0:80", "0.0.0.0:0", "listen", "701/nginx"],
    ]
    assert completed.stderr.decode() == "of 2 namespaces 0 are stale, 1 partial: see `sockscope namespaces`\n"


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--netns", "web"], [1, 2, 3]),
        (["--netns", str(BOX)], [4]),
        (["--pid", "701"], [1, 2, 3]),
        (["--comm", "nginx", "--established"], [2]),
        (["--state", "LISTEN", "--state", "close_wait"], [1, 3]),
        (["--remote", "10.1.0.0/16"], [3]),
        (["--local-port", "80-90"], [1, 2, 3]),
        (["--port", "40001"], [2, 4]),
        (["--listening"], [1]),
        (["--unowned"], []),
        (["--direction", "outbound"], [4]),
    ],
)
def test_filters_of_the_command_line_reach_the_query(
    sockscope: Sockscope, arguments: list[str], keys: list[int]
) -> None:
    completed = sockscope("connections", "--json", "--fields", "cookie", *arguments)
    assert sorted(row["cookie"] for row in json.loads(completed.stdout)) == keys


def test_closed_connections_name_their_last_owner_as_the_open_ones_do() -> None:
    ends = ("10.0.0.1", 40001, "fd00::2", 443)
    rows = [
        (7, "web", "tcp", *ends, "outbound", 701, "nginx", 0.25, 10, 20),
        (8, None, "tcp", *ends, "outbound", None, None, None, None, None),
    ]
    assert closed_view(Listing(CLOSED_FIELDS, rows)).rows == [
        ("web", "tcp", "10.0.0.1:40001", "[fd00::2]:443", "outbound", "701/nginx", 0.25, 10, 20),
        (8, "tcp", "10.0.0.1:40001", "[fd00::2]:443", "outbound", None, None, None, None),
    ]


@pytest.mark.usefixtures("filled")
def test_json_has_every_field_of_the_contract(sockscope: Sockscope) -> None:
    (row,) = json.loads(sockscope("connections", "--netns", "box", "--json").stdout)
    owner = {"pid": 702, "start_ticks": 12, "comm": "\\x1b[31mrude", "fd": 3, "netns": BOX, "container": None}
    assert row["owners"] == [owner]
    assert (row["netns"], row["netns_name"], row["netns_cookie"], row["stale"]) == (BOX, "box", 1200, False)
    assert (row["local_addr"], row["local_port"], row["inode"], row["nat"]) == ("10.0.0.9", 40001, 104, None)


@pytest.mark.usefixtures("filled")
def test_count_prints_a_number_whatever_the_format(sockscope: Sockscope) -> None:
    for form in ("table", "json", "jsonl"):
        assert sockscope("connections", "--count", "--format", form).stdout == b"4\n"
    assert sockscope("processes", "--count").stdout == b"2\n"
    assert sockscope("namespaces", "--count", "--netns", "web").stdout == b"1\n"


@pytest.mark.usefixtures("filled")
def test_limit_prints_that_many_rows_and_says_so(sockscope: Sockscope) -> None:
    completed = sockscope("connections", "--netns", "web", "--limit", "2", "--no-header")
    assert len(completed.stdout.splitlines()) == 2
    assert completed.stderr == b"2 of 3 rows\n"


@pytest.mark.usefixtures("filled")
def test_no_match_exits_3_only_if_asked_to(sockscope: Sockscope) -> None:
    assert sockscope("connections", "--uid", "7").returncode == 0
    assert sockscope("connections", "--uid", "7", "--exit-code").returncode == 3
    assert sockscope("connections", "--uid", "7", "--exit-code", "--count").returncode == 3
    assert sockscope("connections", "--uid", "0", "--exit-code", "--count").returncode == 0


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--local-port", "http"], "local_port"),
        (["--remote", "example.com"], "remote"),
        (["--state", "ESTABLISH"], "ESTABLISHED"),
        (["--fields", "local_prt"], "local_port"),
    ],
)
def test_a_refused_query_exits_2_with_the_server_s_sentence(
    sockscope: Sockscope, arguments: list[str], says: str
) -> None:
    completed = sockscope("connections", *arguments)
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert says in completed.stderr.decode()
    assert len(completed.stderr.splitlines()) == 1


@pytest.mark.usefixtures("filled")
def test_namespaces_and_processes_are_tables(sockscope: Sockscope) -> None:
    namespaces = json.loads(
        sockscope("namespaces", "--json", "--fields", "name,connections,partial,denied").stdout
    )
    assert sorted(namespaces, key=lambda row: str(row["name"])) == [
        {"name": "box", "connections": 1, "partial": True, "denied": 2},
        {"name": "web", "connections": 3, "partial": False, "denied": 0},
    ]
    assert b"web" in sockscope("namespaces").stdout
    processes = sockscope("processes", "--fields", "pid,comm,connections", "--comm", "nginx").stdout
    assert processes.decode().split() == ["PID", "COMM", "CONNECTIONS", "701", "nginx", "3"]


def test_status_exits_1_before_the_first_merged_state_and_0_after(
    sockscope: Sockscope, served: Store
) -> None:
    assert sockscope("status").returncode == 1
    fill(served)
    completed = sockscope("status")
    assert completed.returncode == 0
    words = dict(
        line.split()[:2] for line in completed.stdout.decode().splitlines() if len(line.split()) == 2
    )
    assert (words["ready"], words["namespaces.total"], words["connections"]) == ("yes", "2", "4")
    (row,) = json.loads(sockscope("status", "--json", "--fields", "connections,host").stdout)
    assert row == {"connections": 4, "host": "host"}
