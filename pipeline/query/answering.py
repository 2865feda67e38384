"""From a request to its answer: the envelope, errors, and what is answered elsewhere or later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pipeline.codec import decode_map, encode, encode_great_map
from pipeline.errors import Malformed, Refused, SockscopeError
from pipeline.merge.join import BY_NAME, COLUMNS, Join
from pipeline.model.deferred import Heavy, Later
from pipeline.query.operations import OPERATIONS, Found, Moment
from pipeline.query.request import MAX_WAIT_S, Wanted, columns_of, read_request
from pipeline.store.envelope import denied_elsewhere, namespaces_of
from pipeline.store.reader import Reader

SCHEMA = 1
# Operations that may use all the time that a request has.
_HEAVY_OPERATIONS = ("sql",)

_log = logging.getLogger(__name__)


def answer(reader: Reader, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer map, of one consistent state; an error answer for a request that is refused.

    A `wait` is answered at once, with whether there is something new.
    """
    try:
        return answer_wanted(reader, request, read_request(request, OPERATIONS))
    except Refused as refused:
        return _refusal(request, refused)


def answer_joined(join: Join, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns, rows and total as `answer` has them, of connections that no store holds; None for a request that needs
    one, since filters are SQL. Raises: Refused."""
    wanted = read_request(request, OPERATIONS)
    if wanted.op != "connections" or wanted.where or wanted.cursor or wanted.max_age_s is not None:
        return None
    columns = columns_of(wanted, COLUMNS, (*COLUMNS, *BY_NAME))
    total = join.total
    places = [(*COLUMNS, *BY_NAME).index(name) for name in columns]
    all_rows = join.rows(by_name=max(places) >= len(COLUMNS))
    found = [] if wanted.limit == 0 else list(islice(all_rows, wanted.limit))
    rows = found if tuple(columns) == COLUMNS else [[row[place] for place in places] for row in found]
    return {"ok": True, "columns": columns, "rows": rows, "total": total}


def answer_bytes(reader: Reader, data: bytes) -> bytes:
    """The packed answer to a packed request. Never raises: whatever is wrong becomes an error answer."""
    answered = handle(reader, data, may_defer=False)
    assert isinstance(answered, bytes)
    return answered


def handle(reader: Reader, data: bytes, *, may_defer: bool = True) -> bytes | Later | Heavy:
    """As `answer_bytes`; with `may_defer` a `wait` without news is put off, and what may take long is not begun."""
    request_id = None
    try:
        request = decode_map(data)
        request_id = request.get("id")
        if may_defer and request.get("op") in _HEAVY_OPERATIONS:
            return Heavy(data)
        if may_defer and request.get("op") == "wait":
            return _wait(reader, request)
        return encode_great_map(answer(reader, request))
    except Malformed as error:
        return encode(_error(None, "malformed", str(error)))
    except SockscopeError as error:
        return encode(_error(request_id, "failed", str(error)))
    except Exception:
        # A fault of ours in one query must not end the thread that answers everybody else's.
        _log.exception("a query failed")
        return encode(_error(request_id, "internal", "the query failed, see the log of the pipeline"))


def refuse_bytes(data: bytes, code: str, message: str) -> bytes:
    """The packed error answer to a packed request that nobody looked at; with its id where it can be read."""
    try:
        request_id = decode_map(data).get("id")
    except Malformed:
        request_id = None
    return encode(_error(request_id, code, message))


def answer_wanted(reader: Reader, request: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """The answer map to a request that was read. Raises: Refused."""
    with reader.moment():
        ((host, epoch, seq),) = reader.rows("SELECT host, epoch, seq FROM meta")
        found = OPERATIONS[wanted.op](reader, wanted, Moment(host, epoch, seq))
        namespaces = namespaces_of(reader, epoch, seq, _scope(wanted, found))
        denied = denied_elsewhere(reader)
    return {
        "id": request.get("id"), "ok": True, "schema": SCHEMA, "host": host, "epoch": epoch, "seq": seq,
        "columns": list(found.columns), "rows": found.rows, "total": found.total, "cursor": found.cursor,
        "namespaces": namespaces, "denied": denied, **found.more,
    }  # fmt: skip


def _scope(wanted: Wanted, found: Found) -> Any:
    """A filter `netns`: of which namespaces to say how far to trust the answer; None: of all."""
    scope = wanted.where.get("netns")
    if scope is None or not found.elsewhere:
        return scope
    return [*(scope if isinstance(scope, (list, tuple)) else [scope]), *found.elsewhere]


def _wait(reader: Reader, request: dict[str, Any]) -> bytes | Later:
    try:
        wanted = read_request(request, OPERATIONS)
        answered = answer_wanted(reader, request, wanted)
    except Refused as refused:
        return encode(_refusal(request, refused))
    now_s = reader.now_s()
    until_s = now_s + wanted.timeout_s if wanted.until_s is None else min(wanted.until_s, now_s + MAX_WAIT_S)
    if answered["rows"][0][0] or now_s >= until_s:
        return encode_great_map(answered)
    # From now on it waits for what comes after this state, even where it did not say so.
    seq = answered["seq"] if wanted.seq is None else wanted.seq
    return Later(encode({**request, "seq": seq, "epoch": answered["epoch"], "until_s": until_s}), until_s)


def _refusal(request: Mapping[str, Any], refused: Refused) -> dict[str, Any]:
    message = f"{refused}; {refused.hint}" if refused.hint else str(refused)
    return _error(request.get("id"), refused.code, message)


def _error(request_id: Any, code: str, message: str) -> dict[str, Any]:
    return {"id": request_id, "ok": False, "error": {"code": code, "message": message}}
