from __future__ import annotations

import os

from pipeline.kernel.support import Feature
from pipeline.probe import probe_host
from pipeline.procfs.root import ProcRoot
from tests.fake_root import recorded
from tests.live import LiveNetns, in_child, needs_root

NAMES = [
    "sock_diag",
    "netns_cookie",
    "enter_namespaces",
    "list_descriptors",
    "read_descriptors",
    "descriptor_count",
    "btf",
    "ebpf_iterator",
    "ebpf_events",
    "conntrack",
    "conntrack_events",
    "shared_memory",
]


def probe() -> dict[str, Feature]:
    features = probe_host(ProcRoot())
    assert [feature.name for feature in features] == NAMES
    return {feature.name: feature for feature in features}


@needs_root
def test_root_may_enter_list_and_read() -> None:
    home = os.stat("/proc/self/ns/net").st_ino
    with LiveNetns():
        features = probe()
    for name in ("sock_diag", "netns_cookie", "enter_namespaces", "list_descriptors", "read_descriptors"):
        assert features[name].answer == "yes", features[name]
    assert os.stat("/proc/self/ns/net").st_ino == home


@needs_root
def test_an_ordinary_user_is_told_what_is_missing_and_what_comes_instead() -> None:
    def as_nobody() -> dict[str, Feature]:
        os.setuid(65534)
        return probe()

    features = in_child(as_nobody)
    assert features["sock_diag"].answer == "yes"
    for name, capability in [
        ("list_descriptors", "CAP_DAC_READ_SEARCH"),
        ("enter_namespaces", "CAP_SYS_ADMIN"),
    ]:
        assert features[name].answer == "no"
        assert f"{capability} is missing" in features[name].detail
        assert features[name].instead != ""


def test_a_foreign_proc_root_is_surveyed_without_ourselves_in_it() -> None:
    features = {feature.name: feature for feature in probe_host(recorded("two_namespaces"))}
    assert features["list_descriptors"].detail.startswith("3 of 3 processes listed")
    assert features["descriptor_count"].answer in ("yes", "no")


def test_every_feature_that_is_not_a_yes_says_what_comes_instead() -> None:
    assert all(feature.instead for feature in probe().values() if feature.answer != "yes")
