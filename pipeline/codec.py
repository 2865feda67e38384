"""msgpack, in one place: what goes over a socket or into a segment is packed and unpacked here.

Everything packed here unpacks with msgpack's defaults (string keys, no extension types). Unpacking is
strict about size, so a hostile length field costs no memory.
"""

from __future__ import annotations

from typing import Any

import msgpack

from pipeline.errors import Malformed

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def encode(value: Any) -> bytes:
    """The msgpack bytes of a value made of None, bool, int, float, str, bytes, list, tuple and dict.

    Raises: Malformed for text with unpaired surrogates.
    """
    try:
        packed = msgpack.packb(value)
    except UnicodeEncodeError as error:
        raise Malformed(f"{error.object!a} is not UTF-8 text") from None
    assert isinstance(packed, bytes)
    return packed


def encode_great_map(value: dict[str, Any]) -> bytes:
    """As `encode`, for a map that may hold a long list: packed item by item, so that other threads get their turn.

    One call into msgpack holds the interpreter until it returns, 40 ms for 20,000 connections.
    """
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(value))
    for key, item in value.items():
        packer.pack(key)
        if isinstance(item, list):
            packer.pack_array_header(len(item))
            for element in item:
                packer.pack(element)
        else:
            packer.pack(item)
    packed: bytes = packer.bytes()
    return packed


def decode(data: bytes | memoryview, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """The value packed in `data`; arrays come back as lists. Raises: Malformed, also when over `max_bytes`."""
    if len(data) > max_bytes:
        raise Malformed(f"a message of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        return msgpack.unpackb(data)  # its own limits on lengths are the size of the data
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not a msgpack message: {error or type(error).__name__}") from None


def decode_map(data: bytes | memoryview, max_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """As `decode`, and the value is a map with string keys. Raises: Malformed."""
    value = decode(data, max_bytes)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Malformed(f"expected a map with string keys, got {type(value).__name__}")
    return value
