"""When a namespace's own addresses are news."""

from __future__ import annotations

from pipeline.walk.addresses import OwnAddresses

ONE, OTHER = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"


def test_addresses_are_told_once_and_in_every_base() -> None:
    own = OwnAddresses()
    own.note(frozenset((OTHER, ONE)))
    first = own.changed, own.news(base=False)
    own.told()
    own.note(None)
    own.note(frozenset((ONE, OTHER)))

    assert first == (True, [ONE, OTHER])
    assert (own.changed, own.news(base=False), own.news(base=True)) == (False, None, [ONE, OTHER])


def test_addresses_that_nobody_read_are_not_none_at_all() -> None:
    own = OwnAddresses()
    own.note(None)
    unread = own.news(base=True)
    own.note(frozenset())

    assert (unread, own.changed, own.news(base=False)) == (None, True, [])
