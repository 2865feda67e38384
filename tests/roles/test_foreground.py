"""One walk of everything in this very process: what `snapshot` shows."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.query import answer
from pipeline.roles.foreground import take
from tests.fake_root import TREES
from tests.live import LiveNetns, connect_pairs, needs_root


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


def test_a_pattern_that_matches_nothing_gives_an_empty_state() -> None:
    assert rows(Config(), ("no-such-namespace",)) == []
