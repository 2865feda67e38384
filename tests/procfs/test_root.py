from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import Denied, Vanished
from pipeline.model.process import Task
from pipeline.procfs.root import ProcRoot, raise_sorted, read_net_file, task_dir
from tests.fake_root import TREES, FakeRoot, recorded
from tests.live import in_child, needs_root


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that every user may pass through: those of tmp_path are ours alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("call", ["read", "list", "readlink", "size", "owner", "links", "open_dir"])
@pytest.mark.parametrize("rel", ["99", "99/stat", "71/stat/below_a_file"])
def test_every_call_says_vanished_for_a_path_that_is_not_there(call: str, rel: str) -> None:
    with pytest.raises(Vanished):
        getattr(recorded("two_namespaces"), call)(rel)


@needs_root
def test_every_call_says_denied_where_an_ordinary_user_may_not_look(open_dir: Path) -> None:
    shut = open_dir / "71"
    shut.mkdir()
    (shut / "stat").write_text("71")
    (shut / "net").symlink_to("net:[1]")
    shut.chmod(0)
    root = ProcRoot(str(open_dir))

    def refusals() -> list[str]:
        os.setuid(65534)
        capabilities = []
        calls: list[tuple[Callable[[str], object], str]] = [
            (root.read, "71/stat"),
            (root.list, "71"),
            (root.readlink, "71/net"),
            (root.size, "71/stat"),
            (root.owner, "71/stat"),
            (root.open_dir, "71"),
        ]
        for call, rel in calls:
            try:
                call(rel)
            except Denied as error:
                capabilities.append(error.capability)
        return capabilities

    assert in_child(refusals) == [
        "CAP_DAC_READ_SEARCH",
        "CAP_DAC_READ_SEARCH",
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
        "CAP_DAC_READ_SEARCH",
        "CAP_DAC_READ_SEARCH",
    ]


def test_read_gives_a_file_of_many_pages_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1001
    (tmp_path / "table").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    root = ProcRoot(str(tmp_path) + "/")
    assert root.read("table") == data
    assert root.read("empty") == b""


def test_read_says_vanished_for_a_process_that_ends_between_open_and_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    real_read = os.read

    def read_after_death(fd: int, size: int) -> bytes:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        return real_read(fd, size)

    monkeypatch.setattr(os, "read", read_after_death)
    with pytest.raises(Vanished):
        ProcRoot().read(f"{process.pid}/stat")


def test_running_out_of_descriptors_is_not_caught() -> None:
    def outcome() -> int | None:
        lowest = os.open("/dev/null", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
        try:
            ProcRoot().read("self/stat")
        except OSError as error:
            return error.errno
        return None

    assert in_child(outcome) == errno.EMFILE


def test_task_dir_is_the_process_or_one_thread_of_it() -> None:
    assert task_dir(Task(71, 71)) == "71"
    assert task_dir(Task(71, 75)) == "71/task/75"


def test_read_net_file_is_empty_where_only_the_file_is_missing() -> None:
    assert read_net_file(recorded("two_namespaces"), Task(72, 72), "tcp6") == b""


def test_read_net_file_says_vanished_where_the_namespace_is_gone() -> None:
    root = FakeRoot(os.path.join(TREES, "two_namespaces"))
    root.lost.add("72/net")
    with pytest.raises(Vanished):
        read_net_file(root, Task(72, 72), "tcp6")


def test_sorting_keeps_the_path_in_the_message() -> None:
    with pytest.raises(Denied, match="/proc/7/fd: permission denied"):
        raise_sorted(PermissionError(errno.EACCES, ""), "/proc/7/fd", "CAP_SYS_PTRACE")
    with pytest.raises(Vanished, match="/proc/7/fd is gone"):
        raise_sorted(ProcessLookupError(errno.ESRCH, ""), "/proc/7/fd", "CAP_SYS_PTRACE")
