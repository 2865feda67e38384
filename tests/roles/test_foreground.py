"""One walk of everything in this very process: what `snapshot` shows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.query import answer
from pipeline.roles.foreground import take
from tests.e2e.host import REPOSITORY, clean_environment, sockscope
from tests.fake_root import TREES
from tests.live import LiveNetns, connect_pairs, needs_root
from tests.translating import flows_through, listed, routed


def rows(config: Config, netns: tuple[str, ...], **where: Any) -> list[dict[str, Any]]:
    store = take(config, netns).store()
    try:
        found = answer(store.reader(), {"id": 1, "op": "connections", "where": where})
        return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    finally:
        store.close()


def test_every_own_connection_is_there_with_this_process_as_its_holder() -> None:
    sockets = connect_pairs(socket.AF_INET, "127.0.0.1", 23)
    try:
        inodes = {os.fstat(one.fileno()).st_ino for one in sockets}
        own = str(os.stat("/proc/self/ns/net").st_ino)
        found = rows(Config(), (own,), port=sockets[0].getsockname()[1])
    finally:
        for one in sockets:
            one.close()
    assert {row["inode"] for row in found} == inodes
    assert {owner["pid"] for row in found for owner in row["owners"]} == {os.getpid()}
    assert {row["owner_role"] for row in found} == {"holder"}


@needs_root
def test_only_the_namespaces_that_are_asked_for_are_read() -> None:
    with LiveNetns() as live, LiveNetns():
        store = take(Config(), (str(live.inode),)).store()
        found = answer(store.reader(), {"id": 1, "op": "namespaces"})
        store.close()
    column = found["columns"].index("netns")
    assert [row[column] for row in found["rows"]] == [live.inode]


@pytest.mark.parametrize("source", ["auto", "proc"])
def test_a_recorded_proc_root_is_read_by_its_text(source: str) -> None:
    flags = {
        "agent.proc_root": f"{TREES}/two_namespaces",
        "discovery.mount_dirs": [],
        "tables.source": source,
    }
    config = load(None, {}, flags).config
    # Its namespaces are not this host's: nobody can enter them.
    found = rows(config, ("4026532417",))
    assert {row["netns"] for row in found} <= {4026532417}


@needs_root
@pytest.mark.parametrize("filters", [[], ["--established"]])
def test_a_snapshot_shows_what_a_router_translates_on_both_ends(filters: list[str]) -> None:
    with routed() as router, flows_through(router, 3):
        # The end of the oracle's line: who answered, and to whom.
        wanted = {one[1:] for one in listed(router.router) if one[0] == "tcp"}
        only = [word for live in router for word in ("--netns", str(live.inode))]
        done = subprocess.run(
            [*sockscope("snapshot", *only, *filters), "--fields", "netns,proto,state,nat", "--json"],
            check=True, capture_output=True, cwd=REPOSITORY, env=clean_environment(),
        )  # fmt: skip
    assert len(wanted) == 6
    found = [row for row in json.loads(done.stdout) if (row["proto"], row["state"]) == ("tcp", "ESTABLISHED")]
    for live in (router.client, router.server):
        ways = [
            (row["nat"]["original"], row["nat"]["translated"]) for row in found if row["netns"] == live.inode
        ]
        assert len(ways) == 6
        assert {
            (
                sent["src"],
                sent["dst"],
                sent["sport"],
                sent["dport"],
                got["dst"],
                got["src"],
                got["dport"],
                got["sport"],
            )
            for sent, got in ways
        } == wanted


@needs_root
def test_of_the_flows_of_a_namespace_no_more_are_taken_than_is_set(caplog: pytest.LogCaptureFixture) -> None:
    with routed() as router, flows_through(router, 3):
        config = load(None, {}, {"conntrack.max_flows": 5}).config
        taken = take(config, (str(router.router.inode),))
    assert [len(one.flows) for one in taken.flows] == [5]
    assert "flows are left out (conntrack.max_flows)" in caplog.text


def test_a_pattern_that_matches_nothing_gives_an_empty_state() -> None:
    assert rows(Config(), ("no-such-namespace",)) == []
