"""A /dev/shm without room: survived, counted, and whole again when there is room."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.segment import read_segment
from tests.e2e.host import Pipeline, Server, named_netns, pipeline, quick, seconds_until
from tests.live import needs_root

pytestmark = needs_root

# Between unshare and exec: a /dev/shm of 256 kB that only the pipeline has.
SMALL_SHM = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"',
    "sh",
)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Pipeline, Server, int]]:
    """A pipeline on one namespace, with its server and inode."""
    mounts = tmp_path / "netns"
    mounts.mkdir()
    with named_netns(mounts, "e2e-shm") as netns:
        server = Server(netns)
        try:
            with pipeline(tmp_path / "p", config=quick(mounts, "e2e-shm"), prefix=SMALL_SHM) as running:
                seconds_until(running.is_ready, 30.0, "ready")
                seconds_until(lambda: running.knows_all(netns, server), 10.0, "complete")
                yield running, server, netns.inode
        finally:
            server.close()


def fill(running: Pipeline) -> Path:
    """Takes all that is left of the pipeline's /dev/shm, which is seen through its root."""
    filler = Path(f"/proc/{running.process.pid}/root/dev/shm/filler")
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(512))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(fd)
    return filler


def listens(running: Pipeline, inode: int, port: str) -> bool:
    return bool(running.connections(netns=inode, local_port=port, listening=True))


def test_a_full_dev_shm_is_survived_and_counted_and_left_behind(small: tuple[Pipeline, Server, int]) -> None:
    running, server, inode = small
    filler = fill(running)
    ports = []

    def told() -> bool:
        # Changes come through as messages all the while; sooner or later one needs a new page in the segment.
        ports.append(server.tell("listen"))
        seconds_until(lambda: listens(running, inode, ports[-1]), 5.0, "a change without room")
        return bool(running.status()["losses"]["segment_full"] > 0)

    seconds_until(told, 60.0, "counted")
    assert "no room for" in running.log
    (aggregator,) = running.pids("aggregator")
    os.kill(aggregator, signal.SIGKILL)
    seconds_until(lambda: listens(running, inode, ports[-1]), 20.0, "a new aggregator without room")
    filler.unlink()

    def committed() -> bool:
        ports.append(server.tell("listen"))
        seconds_until(lambda: listens(running, inode, ports[-1]), 5.0, "a change with room again")
        return _segment_holds(running, inode)

    seconds_until(committed, 30.0, "in the segment again")
    assert running.process.poll() is None
    assert "Traceback" not in running.log


def _segment_holds(running: Pipeline, inode: int) -> bool:
    """Whether the newest generation that the aggregator has is the segment's."""
    namespace = running.namespace(inode)
    assert namespace is not None
    path = f"/proc/{running.process.pid}/root{os.readlink(running.runtime_dir / 'segments')}/netns-{inode}"
    newest: int = namespace["generation"]
    return read_segment(path).generation >= newest
