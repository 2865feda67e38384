"""A namespace's own addresses, which its snapshots tell when they are others than before."""

from __future__ import annotations


class OwnAddresses:
    """Those last read. `changed`: not yet told."""

    def __init__(self) -> None:
        self.changed = False
        self._known: frozenset[bytes] | None = None

    def note(self, addresses: frozenset[bytes] | None) -> None:
        """What a reading says of them; None: it did not look."""
        if addresses not in (None, self._known):
            self._known, self.changed = addresses, True

    def news(self, base: bool) -> list[bytes] | None:
        """What a snapshot has to tell: of a base all, else all where they changed. None: nothing, or not known."""
        if self._known is None or not (base or self.changed):
            return None
        return sorted(self._known)

    def told(self) -> None:
        """A generation has told the news."""
        self.changed = False
