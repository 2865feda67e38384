"""For other people's programs: ask a running pipeline.

with Client("/run/sockscope") as client:
    for row in client.connections(local_port=443, established=True):
        print(row["remote_addr"], [owner["comm"] for owner in row["owners"]])
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed, Refused
from pipeline.transport.requester import Requester

QUERY_SOCKET = "query.ipc"


@dataclass(frozen=True, slots=True)
class Answer:
    """One consistent state. `rows`: maps by field name, in the server's order; iterating gives them.

    `total`: rows that match, whatever the limit. `epoch` names the aggregator's run and `seq` its commit: of two
    answers of one epoch the higher seq is the newer. `namespaces`: how fresh and complete each namespace is.
    """

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    total: int
    host: str
    epoch: str
    seq: int
    namespaces: list[dict[str, Any]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Client:
    """A connection to the pipeline that runs in `runtime_dir`; for one thread at a time. A context manager.

    Every method raises: Refused (the server says why), NoAggregator (nobody answers within `timeout_s`), Denied (no
    right to ask), Malformed (an answer in another language).
    """

    def __init__(self, runtime_dir: str = "/run/sockscope", timeout_s: float = 3.0) -> None:
        self._requester = Requester(str(Path(runtime_dir) / QUERY_SOCKET), timeout_s)
        # Ids are told apart also from those of a predecessor whose late answers may still arrive.
        self._run = os.urandom(6).hex()
        self._numbers = itertools.count()

    def connections(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, max_age_s: float | None = None,
        **filters: Any,
    ) -> Answer:  # fmt: skip
        """Connections with their owners. Filters: netns, pid, comm, container, proto, family, state, local, remote,
        local_port, remote_port, port, uid, direction, inode, cookie, listening, established, unowned."""
        return self.ask("connections", where=filters, fields=fields, limit=limit, max_age_s=max_age_s)

    def namespaces(self, *, fields: Sequence[str] | None = None, **filters: Any) -> Answer:
        """Network namespaces, with counts and freshness. Filter: netns (inode or name)."""
        return self.ask("namespaces", where=filters, fields=fields)

    def processes(
        self, *, fields: Sequence[str] | None = None, limit: int | None = None, **filters: Any
    ) -> Answer:
        """Processes. Filters: netns, pid, comm, container, uid."""
        return self.ask("processes", where=filters, fields=fields, limit=limit)

    def status(self) -> dict[str, Any]:
        """How the pipeline does: the one row of `status`."""
        return self.ask("status").rows[0]

    def ask(self, op: str, **keys: Any) -> Answer:
        """Any operation; `keys` as in the contract (`where`, `fields`, `limit`, …), those that are None left out."""
        request_id = f"{self._run}-{next(self._numbers)}"
        request = {
            "id": request_id,
            "op": op,
            **{name: value for name, value in keys.items() if value is not None},
        }
        answers: list[dict[str, Any]] = []

        def is_mine(data: bytes) -> bool:
            answer = _answer_to(request_id, data)
            if answer is not None:
                answers.append(answer)  # decoded once: it may be megabytes
            return answer is not None

        self._requester.request(encode(request), is_mine)
        return _read_answer(answers[-1])

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        self._requester.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _answer_to(request_id: str, data: bytes) -> dict[str, Any] | None:
    try:
        answer = decode_map(data)
    except Malformed:
        return None
    # A request that was too large, or one too many, is refused unread: nobody knows its id.
    is_ours = answer.get("id") == request_id or (answer.get("id") is None and answer.get("ok") is False)
    return answer if is_ours else None


def _read_answer(answer: Mapping[str, Any]) -> Answer:
    try:
        if not answer["ok"]:
            raise Refused(answer["error"]["message"], answer["error"]["code"])
        columns = tuple(answer["columns"])
        return Answer(
            columns, [dict(zip(columns, row, strict=True)) for row in answer["rows"]],
            answer["total"], answer["host"], answer["epoch"], answer["seq"], answer["namespaces"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise Malformed(f"the aggregator's answer lacks something: {error}") from None
