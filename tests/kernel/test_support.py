from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.kernel.support import cgroup2_dir, has_capability, probe_btf, probe_shm
from tests.live import needs_root


@pytest.mark.parametrize(
    "bits, name, held",
    [(1 << 21, "CAP_SYS_ADMIN", True), (1 << 20, "CAP_SYS_ADMIN", False), (0x1FFFFFFFFFF, "CAP_BPF", True)],
)
def test_a_capability_is_a_bit(bits: int, name: str, held: bool) -> None:
    assert has_capability(bits, name) is held


def test_the_folder_of_cgroup_version_2_is_a_mount_of_that_type() -> None:
    mounted = {
        fields[1]
        for fields in map(str.split, Path("/proc/self/mounts").read_text().splitlines())
        if fields[2] == "cgroup2"
    }
    found = cgroup2_dir()
    assert (found in mounted) if found is not None else not mounted & {"/sys/fs/cgroup"}


def test_btf_is_told_by_its_magic(tmp_path: Path) -> None:
    btf, other = tmp_path / "btf", tmp_path / "other"
    btf.write_bytes(b"\x9f\xeb\x01\x00")
    other.write_bytes(b"\x7fELF")
    assert probe_btf(str(btf)).answer == "yes"
    for path in (other, tmp_path / "missing"):
        feature = probe_btf(str(path))
        assert feature.answer == "no"
        assert str(path) in feature.detail
        assert feature.instead != ""


def test_shared_memory_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    assert probe_shm(str(tmp_path)).answer == "yes"
    assert list(tmp_path.iterdir()) == []
    assert probe_shm(str(tmp_path / "missing")).answer == "no"


@needs_root
def test_a_full_shared_memory_is_a_no_with_the_reason(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        feature = probe_shm(str(tmp_path))
        assert (feature.answer, feature.detail) == ("no", f"{tmp_path}: No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
