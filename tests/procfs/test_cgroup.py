"""Cgroup files of every runtime, and what each says of its process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Denied, Malformed
from pipeline.model.container import Container
from pipeline.procfs.cgroup import parse_cgroup, read_container
from pipeline.procfs.root import ProcRoot
from tests.fake_root import TREES, FakeRoot

RECORDED = Path(__file__).parent / "cgroups"
ID = "3f4e1c0b9a8d7766554433221100ffeeddccbbaa99887766554433221100abcd"
INNER_ID = "b71c2a90d4e35f6871029384756aabbccddeeff00112233445566778899aabbc"
POD = "1f2d3c4b-5a69-4788-9fa0-b1c2d3e4f506"

EXPECTED: dict[str, Container | None] = {
    "docker_v2": Container(ID, "docker"),
    "docker_v2_cgroupfs": Container(ID, "docker"),
    "docker_v1": Container(ID, "docker"),
    "docker_hybrid": Container(ID, "docker"),
    "docker_hybrid_some_controllers": Container(ID, "docker"),
    "docker_rootless": Container(ID, "docker"),
    "docker_systemd_inside": Container(ID, "docker"),
    "docker_in_docker": Container(INNER_ID, "docker"),
    "docker_in_lxc": Container(ID, "docker"),
    "docker_seen_from_another_container": Container(ID, "docker"),
    "containerd_kubernetes_v2": Container(ID, "containerd", POD),
    "containerd_kubernetes_guaranteed_v1": Container(ID, "containerd", POD),
    "containerd_kubernetes_colons": Container(ID, "containerd", POD),
    "containerd_nerdctl": Container(ID, "containerd"),
    "containerd_nerdctl_v1": Container(ID, "containerd"),
    # The runtime is not in the path.
    "kubernetes_cgroupfs": Container(ID, None, POD),
    "kubernetes_cgroupfs_v1": Container(ID, None, POD),
    "kubernetes_static_pod": Container(ID, "containerd", "0123456789abcdef0123456789abcdef"),
    "kubernetes_docker": Container(ID, "docker", POD),
    "kubernetes_in_docker": Container(INNER_ID, "containerd", POD),
    "crio_v2": Container(ID, "cri-o", POD),
    "crio_v1": Container(ID, "cri-o", POD),
    # Beside the container, not in it.
    "crio_monitor": None,
    "podman_v2": Container(ID, "podman"),
    "podman_rootless": Container(ID, "podman"),
    "podman_cgroupfs": Container(ID, "podman"),
    "podman_pod": Container(ID, "podman"),
    "podman_monitor": None,
    "lxc_v2": Container("web1", "lxc"),
    "lxc_systemd_inside": Container("web1", "lxc"),
    "lxc_v1": Container("web1", "lxc"),
    "lxc_proxmox": Container("101", "lxc"),
    "incus_project": Container("shop_web1", "lxc"),
    "lxc_monitor": None,
    "nspawn_template": Container("debian-12", "systemd-nspawn"),
    "nspawn_v1": Container("debian-12", "systemd-nspawn"),
    "libvirt_machine": None,
    "service_v2": Container("nginx.service", "systemd"),
    "service_template": Container("getty@tty1.service", "systemd"),
    "service_subgroup": Container("systemd-udevd.service", "systemd"),
    "service_hybrid": Container("nginx.service", "systemd"),
    "service_colon": Container("dbus-:1.2-org.example@0.service", "systemd"),
    "service_user": Container("syncthing.service", "systemd"),
    "service_deleted": Container("nginx.service", "systemd"),
    "session": None,
    "init": None,
    "kernel_thread": None,
    "no_hierarchy": None,
}


@pytest.mark.parametrize("name", sorted(set(os.listdir(RECORDED)) - {"README.md"}))
def test_a_path_tells_container_runtime_and_pod(name: str) -> None:
    assert parse_cgroup((RECORDED / name).read_bytes()) == EXPECTED[name]


def test_every_expectation_has_its_file() -> None:
    assert set(EXPECTED) == set(os.listdir(RECORDED)) - {"README.md"}


@pytest.mark.parametrize(
    ("container", "name"),
    [
        (Container(ID, "docker"), "3f4e1c0b9a8d"),
        (Container("web1", "lxc"), "web1"),
        (Container("a-service-with-a-long-name.service", "systemd"), "a-service-with-a-long-name.service"),
    ],
)
def test_a_container_is_called_what_the_tools_of_its_runtime_call_it(container: Container, name: str) -> None:
    assert container.name == name


@pytest.mark.parametrize("data", [b"nonsense", b"0::", b"0:/a", b"0::relative\n", b"0::/a\n\n"])
def test_what_is_no_cgroup_file_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_cgroup(data)


@given(st.binary())
def test_any_bytes_give_a_container_none_or_malformed(data: bytes) -> None:
    try:
        found = parse_cgroup(data)
    except Malformed:
        return
    assert found is None or found.name


WORDS = (
    *(
        "docker",
        "lxc",
        "lxc.payload.",
        "machine-.scope",
        ID,
        f"libpod-{ID}",
        f"a:b:{ID}",
        f"pod{POD}",
        "podx",
    ),
    *("a.service", ".service", "systemd-nspawn@\\x2d.service", "systemd-nspawn@.service", "", ":"),
)


@given(st.lists(st.sampled_from(WORDS)))
def test_any_path_of_known_words_gives_a_container_with_a_name_or_none(segments: list[str]) -> None:
    found = parse_cgroup(("0::/" + "/".join(segments) + "\n").encode())
    assert found is None or found.name


def test_a_process_without_such_a_file_is_in_no_container() -> None:
    assert read_container(FakeRoot(f"{TREES}/two_namespaces"), 71) is None


def test_a_refusal_is_not_taken_for_no_container(tmp_path: Path) -> None:
    root = FakeRoot(str(tmp_path))
    root.denied["71/cgroup"] = "CAP_SYS_PTRACE"
    with pytest.raises(Denied):
        read_container(root, 71)


def test_every_process_of_this_host_is_readable() -> None:
    root = ProcRoot()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            read_container(root, int(name))
