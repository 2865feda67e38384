from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ebpf.object import EbpfObject, decode_object, read_object
from pipeline.errors import Malformed

EXAMPLE = b"""sockscope-ebpf 1
toolchain clang 14.0.6 bpftool v7.1.0
map ring
map lost
iterator held_sockets
tracepoint set_state
data 5
instructions 3

\n\n\0\x01\xff\n\n\n"""


def test_an_object_is_text_and_behind_it_bytes_of_any_value() -> None:
    assert decode_object(EXAMPLE) == EbpfObject(
        "clang 14.0.6 bpftool v7.1.0",
        ["ring", "lost"],
        [("held_sockets", "iterator"), ("set_state", "tracepoint")],
        b"\n\n\0\x01\xff",
        b"\n\n\n",
    )


@pytest.mark.parametrize("length", range(len(EXAMPLE)))
def test_an_object_that_was_cut_anywhere_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        decode_object(EXAMPLE[:length])


@pytest.mark.parametrize(
    "content",
    [
        EXAMPLE.replace(b"ebpf 1", b"ebpf 2"),
        EXAMPLE.replace(b"map lost", b"uprobe lost"),
        EXAMPLE.replace(b"data 5", b"data -5"),
        EXAMPLE + b"more",
    ],
)
def test_an_object_of_another_kind_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        decode_object(content)


@given(st.binary() | st.binary().map(lambda tail: b"sockscope-ebpf 1\n" + tail))
def test_any_bytes_are_an_object_or_malformed(content: bytes) -> None:
    try:
        built = decode_object(content)
    except Malformed:
        return
    assert content.endswith(built.data + built.instructions)


def test_the_objects_that_come_with_the_package_name_what_the_loader_asks_for() -> None:
    sockets, events, release = (read_object(name) for name in ("sockets", "events", "events_release"))
    assert (sockets.maps, sockets.programs) == ([], [("held_sockets", "iterator")])
    assert sorted(events.maps) == sorted(release.maps) == ["lost", "ring", "sockets", "udp_sockets"]
    assert events.programs == [(name, "tracepoint") for name in ("set_state", "sent", "received")]
    assert release.programs == [*events.programs, ("released", "sock_release")]
