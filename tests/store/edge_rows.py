"""Rows of both ends of a connection, and edges in short, for the tests of edges."""

from __future__ import annotations

from typing import Any

from pipeline.clock import ManualClock
from pipeline.model.connection import Connection, Proto, State
from pipeline.store import Store
from tests.sample_state import connection

CLIENT, SERVER = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
LOOPBACK = b"\x7f\x00\x00\x01"
LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\x01"


def new_store() -> Store:
    return Store(":memory:", "epoch-1", "testhost", ManualClock(now_s=100.0), stale_after_s=15.0)


def client_row(key: int, port: int = 40000, **more: Any) -> Connection:
    return connection(key, local=(CLIENT, port), remote=(SERVER, 443), **more)


def server_row(key: int, port: int = 40000, **more: Any) -> Connection:
    return connection(key, local=(SERVER, 443), remote=(CLIENT, port), **more)


def ends(row: dict[str, Any]) -> tuple[Any, ...]:
    """The edge in short: (netns, pid) of the client and of the server, count."""
    client, server = row["client"], row["server"]
    return client["netns"], client["pid"], server["netns"], server["pid"], row["connections"]


def udp_server(key: int, address: bytes = SERVER, port: int = 53, **more: Any) -> Connection:
    return connection(
        key, proto=Proto.UDP, state=State.CLOSE, local=(address, port), remote=(bytes(4), 0), **more
    )


def udp_client(
    key: int, port: int = 40000, local: bytes = CLIENT, remote: bytes = SERVER, to: int = 53
) -> Connection:
    return connection(key, proto=Proto.UDP, local=(local, port), remote=(remote, to))
