"""Connections as stored: the contract's words and text addresses beside the sortable ones."""

from __future__ import annotations

from typing import Any

from pipeline.model.address import address_text, mapped
from pipeline.model.connection import FAMILY_NAMES, PROTO_NAMES, Connection, state_name

# In the order of `stored_row`; `connection` has them after (netns, key).
CONNECTION_COLUMNS = (
    "proto", "family", "state", "local_addr", "local_port", "remote_addr", "remote_port", "local_ip", "remote_ip",
    "device", "inode", "cookie", "uid",
)  # fmt: skip

_STATE_TEXTS: dict[tuple[int, int], str] = {}


def stored_row(row: Connection) -> tuple[Any, ...]:
    """The values of CONNECTION_COLUMNS for a table row. Raises: ValueError for addresses of a wrong length."""
    _, proto, family, state, local, local_port, remote, remote_port, device, inode, cookie, uid = row
    state_text = _STATE_TEXTS.get((proto, state))
    if state_text is None:
        state_text = _STATE_TEXTS[proto, state] = state_name(proto, state)
    return (
        PROTO_NAMES.get(proto) or str(proto), FAMILY_NAMES.get(family) or str(family), state_text,
        address_text(local), local_port, address_text(remote), remote_port, mapped(local), mapped(remote),
        device, inode, cookie or None, uid,
    )  # fmt: skip
