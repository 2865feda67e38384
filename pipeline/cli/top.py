"""`processes --top`: those with the most of something, the most first."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.cli.render import Listing, project

# What may be ranked by, and the columns whose sum it is.
TOP_BY = {
    "connections": ("connections",),
    "bytes": ("bytes_sent", "bytes_received"),
    "retransmits": ("retransmits",),
}
_SHOWN = ("pid", "comm", "netns", "container", "connections")
_IDENTITY = ("pid", "start_ticks")


class Top(NamedTuple):
    """The `most` processes with the most of `by`. `fields`: what to show of them; none: a few columns and those
    that were ranked by."""

    by: str
    most: int
    fields: tuple[str, ...]

    @property
    def _shown(self) -> tuple[str, ...]:
        return self.fields or tuple(dict.fromkeys((*_SHOWN, *TOP_BY[self.by])))

    @property
    def asked(self) -> tuple[str, ...]:
        """The fields to ask for."""
        return tuple(dict.fromkeys((*self._shown, *TOP_BY[self.by], *_IDENTITY)))

    def shown(self, listing: Listing) -> Listing:
        """Of rows with the fields `asked`, those to show; without those that have none of it."""
        places = [listing.columns.index(name) for name in TOP_BY[self.by]]
        ties = [listing.columns.index(name) for name in _IDENTITY]
        counted = [(sum(row[place] or 0 for place in places), row) for row in listing.rows]
        ranked = sorted(
            (one for one in counted if one[0]), key=lambda one: (-one[0], *(one[1][tie] for tie in ties))
        )
        return project(listing._replace(rows=[row for _, row in ranked[: self.most]]), self._shown)
