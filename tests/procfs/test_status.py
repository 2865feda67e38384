from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Malformed
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.status import ProcessStatus, parse_status, read_status
from tests.fake_root import recorded
from tests.live import in_child, needs_root


def test_read_status_has_effective_user_and_capabilities() -> None:
    assert read_status(recorded("two_namespaces"), 1) == ProcessStatus(0, 0x1FFFFFFFFFF)
    assert read_status(recorded("two_namespaces"), 72) == ProcessStatus(33, 1 << 19)


def test_a_status_that_ends_before_the_capabilities_is_malformed() -> None:
    with pytest.raises(Malformed):
        read_status(recorded("broken"), 71)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_status_or_malformed(data: bytes) -> None:
    for text in (data, b"\nUid:" + data + b"\nCapEff:" + data + b"\n"):
        try:
            parse_status(text)
        except Malformed:
            continue


@needs_root
def test_an_ordinary_user_has_no_capabilities() -> None:
    def own() -> ProcessStatus:
        os.setuid(65534)
        return read_status(ProcRoot(), os.getpid())

    assert in_child(own) == ProcessStatus(65534, 0)
