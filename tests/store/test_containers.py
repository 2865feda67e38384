"""The containers that processes are in, as SQL shows them."""

from __future__ import annotations

from typing import Any

from pipeline.model.container import Container
from pipeline.model.process import Process, ProcessKey
from pipeline.store import Store
from tests.sample_state import BLUE, HOST, connection, holding, snapshot
from tests.store.asking import ask

DOCKER = Container("5f" * 32, "docker")
POD = Container("a7" * 32, "containerd", "0f3c1a52-7c1e-4c53-9a53-2f4b1f1f9e00")
UNIT = Container("nginx.service", "systemd")


def inside(pid: int, container: Container | None, netns: int = HOST) -> Process:
    return Process(pid, pid * 10, "server", 0, netns, container.name if container else None)


def containers(store: Store) -> list[dict[str, Any]]:
    return ask(store, "sql", sql="SELECT * FROM containers ORDER BY name")


def test_containers_have_name_id_runtime_pod_and_a_count_of_processes(store: Store) -> None:
    store.apply([snapshot(
        processes=[inside(8, DOCKER), inside(9, DOCKER), inside(10, UNIT), inside(11, None)],
        containers=[DOCKER, UNIT],
    ), snapshot(BLUE, processes=[inside(12, POD, BLUE)], containers=[POD])])  # fmt: skip

    assert containers(store) == [
        {"name": "5f5f5f5f5f5f", "id": "5f" * 32, "runtime": "docker", "pod_uid": None, "processes": 2},
        {"name": "a7a7a7a7a7a7", "id": "a7" * 32, "runtime": "containerd",
         "pod_uid": "0f3c1a52-7c1e-4c53-9a53-2f4b1f1f9e00", "processes": 1},
        {"name": "nginx.service", "id": "nginx.service", "runtime": "systemd", "pod_uid": None, "processes": 1},
    ]  # fmt: skip


def test_connections_and_owners_are_joined_to_containers_by_name(store: Store) -> None:
    store.apply([snapshot(connections=[connection(1)], processes=[inside(8, POD)], holdings=[holding(8, 3, 1)],
                          containers=[POD])])  # fmt: skip

    sql = "SELECT c.inode, t.pod_uid, t.runtime FROM connections c JOIN containers t ON t.name = c.container"
    assert ask(store, "sql", sql=sql) == [{"inode": 1, "pod_uid": POD.pod_uid, "runtime": "containerd"}]


def test_containers_of_processes_that_ended_do_not_pile_up(store: Store) -> None:
    store.apply([snapshot(processes=[inside(8, DOCKER)], containers=[DOCKER])])
    store.apply([snapshot(generation=2, base=False, gone_processes=[ProcessKey(8, 80)])])
    store.apply([snapshot(generation=3, base=False, processes=[inside(9, UNIT)], containers=[UNIT])])

    assert [row["name"] for row in containers(store)] == ["nginx.service"]


def test_a_container_told_of_again_changes_nothing(store: Store) -> None:
    store.apply([snapshot(processes=[inside(8, DOCKER)], containers=[DOCKER])])
    commit = store.apply(
        [snapshot(generation=2, base=False, processes=[inside(9, DOCKER)], containers=[DOCKER])]
    )

    assert commit.seq == 2
    assert [row["processes"] for row in containers(store)] == [2]
