"""The committed objects are what their sources give."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.ebpf.object import decode_object, read_object

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "pipeline" / "ebpf"
NAMES = ["events", "events_release", "sockets"]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> list[str]:
    tools = [tool for tool in ("clang", "llvm-strip", "bpftool") if not shutil.which(tool, path=PATH)]
    return tools + ([] if Path("/usr/include/bpf/bpf_helpers.h").exists() else ["libbpf-dev"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # scripts/test installs them as root: then they are missing only where that failed.
    if missing() and os.geteuid() != 0:
        pytest.skip(f"not installed: {', '.join(missing())}")
    assert missing() == [], "apt install clang llvm libbpf-dev bpftool"
    folder = tmp_path_factory.mktemp("objects")
    subprocess.run([REPOSITORY / "scripts" / "build-ebpf", folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_object_is_what_its_source_gives(built: Path, name: str) -> None:
    ours, theirs = read_object(name), decode_object((built / f"{name}.lskel").read_bytes())
    assert (theirs.maps, theirs.programs) == (ours.maps, ours.programs)
    if theirs.toolchain != ours.toolchain:
        pytest.skip(f"{name}: built by {ours.toolchain}, here is {theirs.toolchain}: other instructions")
    assert sha256(built / f"{name}.lskel") == sha256(COMMITTED / f"{name}.lskel"), "run scripts/build-ebpf"


def test_every_source_has_its_object_and_every_object_its_source() -> None:
    sources = sorted(path.name.removesuffix(".bpf.c") for path in COMMITTED.glob("*.bpf.c"))
    objects = sorted(path.name.removesuffix(".lskel") for path in COMMITTED.glob("*.lskel"))
    assert sources == objects == NAMES


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
