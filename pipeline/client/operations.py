"""The operations of the query socket, one method each; what they return, an answer or a promise of one, is up to who
carries out `ask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

AnswerT = TypeVar("AnswerT")


class Operations(ABC, Generic[AnswerT]):
    """Filters are keyword arguments. Of a connection: netns, pid, comm, container, proto, family, state, local,
    remote, local_port, remote_port, port, uid, direction, inode, cookie, listening, established, unowned."""

    @abstractmethod
    def ask(self, op: str, **keys: Any) -> AnswerT:
        """Any operation; `keys` as in the contract, those that are None left out."""

    def connections(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, max_age_s: float | None = None,
        cursor: str | None = None, closed: bool = False, **filters: Any,
    ) -> AnswerT:  # fmt: skip
        """Connections with their owners; with `closed` those that ended a moment ago, with who owned them last."""
        return self.ask(
            "connections", where=filters, fields=fields, limit=limit, max_age_s=max_age_s, cursor=cursor,
            closed=closed or None,
        )  # fmt: skip

    def namespaces(self, *, fields: Sequence[str] | None = None, **filters: Any) -> AnswerT:
        """Network namespaces, with counts and freshness. Filter: netns (inode or name)."""
        return self.ask("namespaces", where=filters, fields=fields)

    def processes(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, cursor: str | None = None,
        **filters: Any,
    ) -> AnswerT:  # fmt: skip
        """Processes. Filters: netns, pid, comm, container, uid."""
        return self.ask("processes", where=filters, fields=fields, limit=limit, cursor=cursor)

    def edges(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, max_age_s: float | None = None,
        cursor: str | None = None, **filters: Any,
    ) -> AnswerT:  # fmt: skip
        """Process-to-process edges, both ends joined. Filters: netns, pid, comm, container, proto, port."""
        return self.ask(
            "edges", where=filters, fields=fields, limit=limit, max_age_s=max_age_s, cursor=cursor
        )

    def explain(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, **filters: Any
    ) -> AnswerT:
        """Connections, each with `explanation` and `holders`: why it has this owner or none; 100 unless `limit`."""
        return self.ask("explain", where=filters, fields=fields, limit=limit)

    def sql(self, statement: str, *, limit: int | None = None) -> AnswerT:
        """The rows of a SELECT on connections, owners, processes, namespaces, edges and closed."""
        return self.ask("sql", sql=statement, limit=limit)

    def wait(
        self, *, timeout_s: float, epoch: str | None = None, seq: int | None = None, **filters: Any
    ) -> AnswerT:
        """One row `{changed}`: as soon as the connections that the filters select differ from those of commit `seq` of
        run `epoch` (None: from now), or after `timeout_s`, at most 300."""
        return self.ask("wait", where=filters, seq=seq, epoch=epoch, timeout_s=timeout_s)
