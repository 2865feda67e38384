"""Which process talks to which, as the command shows it."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import BOX, WEB, Sockscope

pytestmark = pytest.mark.usefixtures("filled")


def test_edges_is_a_table_of_both_ends_with_a_dash_for_what_is_not_here(sockscope: Sockscope) -> None:
    completed = sockscope("edges")
    assert completed.returncode == 0
    lines = [line.split() for line in completed.stdout.decode().splitlines()]
    assert lines[0] == [
        "PROTO", "CLIENT_NETNS", "CLIENT", "FROM", "SERVER_NETNS", "SERVER", "TO", "CONNECTIONS",
    ]  # fmt: skip
    assert sorted(lines[1:]) == [
        ["tcp", "-", "-", "10.1.0.9:40002", "web", "701/nginx", "10.0.0.1:80", "1"],
        ["tcp", "box", "702/\\x1b[31mrude", "10.0.0.9:40001", "web", "701/nginx", "10.0.0.1:80", "1"],
    ]


@pytest.mark.parametrize("netns", ["box", "web"])
def test_both_ends_have_the_names_of_their_namespaces_where_one_of_them_is_asked_for(
    sockscope: Sockscope, netns: str
) -> None:
    lines = [line.split() for line in sockscope("edges", "--netns", netns).stdout.decode().splitlines()]
    assert ["box", "web"] in [[line[1], line[4]] for line in lines]


def test_edges_as_json_have_both_ends_as_maps(sockscope: Sockscope) -> None:
    (row,) = json.loads(sockscope("edges", "--netns", "box", "--json").stdout)
    assert (row["proto"], row["connections"], row["ambiguous"], row["nat"]) == ("tcp", 1, False, None)
    assert row["client"] == {
        "netns": BOX, "pid": 702, "start_ticks": 12, "comm": "\\x1b[31mrude", "container": None,
        "addr": "10.0.0.9", "port": 40001,
    }  # fmt: skip
    assert (row["server"]["netns"], row["server"]["pid"], row["server"]["port"]) == (WEB, 701, 80)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 2),
        (["--pid", "702"], 1),
        (["--comm", "nginx"], 2),
        (["--port", "80"], 2),
        (["--proto", "udp"], 0),
    ],
)
def test_filters_of_edges_hold_for_either_end(sockscope: Sockscope, arguments: list[str], count: int) -> None:
    assert sockscope("edges", "--count", *arguments).stdout.decode() == f"{count}\n"


def test_fields_and_limit_of_edges(sockscope: Sockscope) -> None:
    completed = sockscope("edges", "--fields", "proto,connections", "--limit", "1")
    assert completed.stdout.decode().split() == ["PROTO", "CONNECTIONS", "tcp", "1"]
    assert completed.stderr.decode().splitlines()[0] == "1 of 2 rows"


def test_group_by_netns_adds_up_what_is_between_two_namespaces(sockscope: Sockscope) -> None:
    completed = sockscope("edges", "--group-by", "netns")
    lines = [line.split()[:5] for line in completed.stdout.decode().splitlines()]
    assert lines[0] == ["CLIENT_NETNS", "SERVER_NETNS", "PROTO", "EDGES", "CONNECTIONS"]
    assert sorted(lines[1:]) == [["-", "web", "tcp", "1", "1"], ["box", "web", "tcp", "1", "1"]]


def test_group_by_container_names_the_namespaces_too(sockscope: Sockscope) -> None:
    rows = json.loads(sockscope("edges", "--group-by", "container", "--json").stdout)
    names = ("client_netns", "client_container", "server_netns", "connections")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("box", None, "web", 1), (None, None, "web", 1),
    ]  # fmt: skip
    assert sockscope("edges", "--group-by", "netns", "--count").stdout == b"2\n"
