"""Case 23: a foreign proc root is used for every read, whichever way it is given.

The host's procfs is bound elsewhere, and /proc shows a process that is not there: who reads that gives itself away.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config import Agent, Config
from pipeline.roles.foreground import take
from tests.e2e.host import REPOSITORY, clean_environment, pipeline, quick, seconds_until, sockscope
from tests.fake_root import TREES
from tests.hard_cases.actors import Actor, actor
from tests.hard_cases.conftest import Watched
from tests.live import needs_root, wait_until
from tests.walk.trees import write_process

LISTENER = """
listener = listen()
say(listener.fileno(), os.fstat(listener.fileno()).st_ino)
told()
"""
# More than the kernel gives out.
IMPOSTOR = 4_194_305


class Foreign(NamedTuple):
    """`elsewhere`: the host's procfs. `prefix` runs a command where /proc is false."""

    elsewhere: Path
    prefix: tuple[str, ...]
    listener: Actor
    netns: int

    def given(self, how: str) -> tuple[list[str], dict[str, str]]:
        """(options, environment) that name the root."""
        if how == "option":
            return ["--proc-root", str(self.elsewhere)], {}
        return [], {"HOST_PROC": str(self.elsewhere)}

    def ask(self, verb: str, options: list[str], environment: Mapping[str, str]) -> str:
        done = subprocess.run(
            [*self.prefix, *sockscope(verb, "--json", *options)],
            capture_output=True, text=True, cwd=REPOSITORY, env={**clean_environment(), **environment}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def foreign(watched: Watched, tmp_path: Path) -> Iterator[Foreign]:
    false, elsewhere = tmp_path / "false", tmp_path / "host" / "proc"
    false.mkdir()
    elsewhere.mkdir(parents=True)
    script = f"""
        mount --make-rprivate /
        mount --bind /proc {elsewhere}
        mount --bind {false} /proc
        exec "$@"
    """
    with actor(watched.one, LISTENER) as listener:
        fd, inode = listener.said
        write_process(false, IMPOSTOR, {fd: inode}, comm=b"impostor")
        ns = false / str(IMPOSTOR) / "ns"
        ns.mkdir()
        (ns / "net").symlink_to(f"net:[{watched.one.inode}]")
        prefix = ("unshare", "--mount", "sh", "-euc", script, "sh")
        yield Foreign(elsewhere, prefix, listener, watched.one.inode)


@needs_root
@pytest.mark.parametrize("how", ["option", "environment"])
def test_snapshot_and_probe_read_the_root_that_they_are_given(foreign: Foreign, how: str) -> None:
    options, environment = foreign.given(how)
    rows = json.loads(foreign.ask("snapshot", [*options, "--netns", str(foreign.netns)], environment))
    owners = [
        [one["pid"] for one in row["owners"]] for row in rows if row["inode"] == foreign.listener.said[1]
    ]
    assert owners == [[foreign.listener.pid]]
    features = {row["name"]: row for row in json.loads(foreign.ask("probe", options, environment))}
    for name in ("enter_namespaces", "list_descriptors", "read_descriptors"):
        worked, of = (int(word) for word in features[name]["detail"].split() if word.isdigit())
        assert 1 < worked <= of
    assert features["descriptor_count"]["answer"] == "yes"


@needs_root
def test_without_it_they_would_read_the_false_one(foreign: Foreign) -> None:
    """That the false one is there to be read."""
    rows = json.loads(foreign.ask("snapshot", ["--netns", str(foreign.netns)], {}))
    assert {one["pid"] for row in rows for one in row["owners"]} <= {IMPOSTOR}


@needs_root
@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_pipeline_reads_the_root_that_it_is_given(
    watched: Watched, foreign: Foreign, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, environment = foreign.given(how)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = quick(watched.mounts, "hard-*")
    folder = tmp_path / "running"
    with pipeline(folder, *options, config=config, prefix=foreign.prefix) as running:
        seconds_until(running.is_ready, 30.0, "ready")

        def owners() -> list[list[int]]:
            rows = running.connections(netns=foreign.netns, inode=foreign.listener.said[1])
            return [[owner["pid"] for owner in row["owners"]] for row in rows]

        wait_until(lambda: owners() == [[foreign.listener.pid]], 20.0)
        assert running.connections(pid=IMPOSTOR) == []
        namespace = running.namespace(foreign.netns)
        assert namespace is not None
        assert (namespace["source"], namespace["name"]) == ("sock_diag", watched.one.name)
        # What our own processes use is read there, too.
        wait_until(
            lambda: all(
                one["rss_bytes"] for one in running.status()["workers"] if one["role"] == "aggregator"
            ),
            30.0,
        )
    assert "Traceback" not in running.log


def test_of_a_recorded_tree_the_text_is_read_also_where_a_living_namespace_has_its_number() -> None:
    """The tree's first namespace has the number of every host's initial one."""
    assert os.readlink(f"{TREES}/two_namespaces/1/ns/net") == "net:[4026531840]"
    taken = take(Config(agent=Agent(proc_root=f"{TREES}/two_namespaces")))
    seen = {int(look.netns.inode): look.snapshot() for look in taken.looks}
    assert {netns: (one.source, one.cookie) for netns, one in seen.items()} == {
        4026531840: ("proc", None), 4026532417: ("proc", None),
    }  # fmt: skip
    tcp = [row.inode for row in seen[4026531840].connections if row.proto == 6]
    assert sorted(tcp) == [0, 0, 321, 322, 323, 5107, 36856710]
    assert [look.netns.names for look in taken.looks] == [(), ()]
