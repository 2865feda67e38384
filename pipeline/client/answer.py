"""Requests and answers of the query socket, as a client's program sees them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.codec import decode_map, encode
from pipeline.errors import Malformed, Refused


@dataclass(frozen=True, slots=True)
class Answer:
    """One consistent state. `rows`: maps by field name, in the server's order; iterating gives them.

    `total`: rows that match, whatever the limit. `epoch` names the aggregator's run and `seq` its commit: of two
    answers of one epoch the higher seq is the newer. `namespaces`: how fresh and complete each namespace is.
    `denied`: how many processes may not be read of which not even the namespace is known; they may hold any socket.
    `cursor`: what to ask for the next page with, None after the last. `truncated`: of an SQL statement, that there
    were more rows than an answer may have.
    """

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    total: int
    host: str
    epoch: str
    seq: int
    namespaces: list[dict[str, Any]]
    cursor: str | None = None
    truncated: bool = False
    denied: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class RequestIds:
    """Ids that are told apart also from those of a predecessor whose late answers may still arrive."""

    def __init__(self) -> None:
        self._run = os.urandom(6).hex()
        self._numbers = itertools.count()

    def next(self) -> str:
        return f"{self._run}-{next(self._numbers)}"


# A statement may take query.sql_timeout_s, 5 s unless set otherwise.
_PATIENCE_S = {"sql": 4.0}


class Exchange:
    """One request and the answer to it. `request`: what to send. `patience_s`: by how much longer than any other its
    answer may take, since the request says so itself (`wait`)."""

    def __init__(self, request_id: str, op: str, keys: Mapping[str, Any]) -> None:
        """Keys that are None are left out."""
        self._id = request_id
        self._found: dict[str, Any] | None = None
        self.patience_s = float(keys.get("timeout_s") or 0.0) if op == "wait" else _PATIENCE_S.get(op, 0.0)
        given = {name: value for name, value in keys.items() if value is not None}
        self.request = encode({"id": request_id, "op": op, **given})

    def is_mine(self, data: bytes) -> bool:
        """Whether `data` answers this request; keeps it then: it is decoded once, it may be megabytes."""
        try:
            answer = decode_map(data)
        except Malformed:
            return False
        # A request that was too large, or one too many, is refused unread: nobody knows its id.
        is_ours = answer.get("id") == self._id or (answer.get("id") is None and answer.get("ok") is False)
        if is_ours:
            self._found = answer
        return is_ours

    def answer(self) -> Answer:
        """What was found. Raises: Refused (the server says why), Malformed."""
        answer = self._found
        assert answer is not None
        try:
            if not answer["ok"]:
                raise Refused(answer["error"]["message"], answer["error"]["code"])
            columns = tuple(answer["columns"])
            return Answer(
                columns, [dict(zip(columns, row, strict=True)) for row in answer["rows"]],
                answer["total"], answer["host"], answer["epoch"], answer["seq"], answer["namespaces"],
                answer.get("cursor"), bool(answer.get("truncated")), answer.get("denied", 0),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise Malformed(f"the aggregator's answer lacks something: {error}") from None
