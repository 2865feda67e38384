"""What connections have carried, and of which of them to tell: those that changed anyway, and all others now and then.

The figures of a connection in use are others at every look. Told each time they would make every row a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.model.connection import SocketKey
from pipeline.model.traffic import Figures, Traffic


class Keys(Protocol):
    """Knows under which key the socket of a cookie is published."""

    def key_of(self, cookie: int) -> SocketKey: ...


class Carried:
    """The newest figures of one namespace, by cookie. `interval_s`: between two tellings of connections of which
    nothing else has changed. Empty, and of no cost, where the source has no figures."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._newest: Mapping[int, Figures] = {}
        self._told: dict[int, Figures] = {}
        self._news: set[int] = set()
        self._due_s = float("-inf")

    def update(self, figures: Mapping[int, Figures], changed: Iterable[int], now_s: float) -> None:
        """Takes the figures of a look. `changed`: the cookies of rows that are new or changed."""
        if not figures and not self._newest:
            return
        self._newest = figures
        if now_s >= self._due_s:
            self._due_s = now_s + self._interval_s
            self._told = {cookie: told for cookie, told in self._told.items() if cookie in figures}
            self._news = {cookie for cookie, newest in figures.items() if self._told.get(cookie) != newest}
        else:
            self._news.update(changed)

    def tell(self, table: Keys, *, everything: bool) -> list[Traffic]:
        """What to tell now of the connections of `table`: what is due, for a delta, or `everything`, for a base."""
        if everything:
            return _told_of(self._newest, table)
        if not self._news:
            return []
        newest = {cookie: self._newest[cookie] for cookie in self._news if cookie in self._newest}
        self._news = set()
        self._told.update(newest)
        return _told_of(newest, table)


def _told_of(figures: Mapping[int, Figures], table: Keys) -> list[Traffic]:
    return [Traffic(table.key_of(cookie), *one) for cookie, one in figures.items()]
