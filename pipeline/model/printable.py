"""Text from outside as one safe line: a process may call itself anything, terminal escapes included."""

from __future__ import annotations

_UNPAIRED_BYTE = range(0xDC80, 0xDD00)  # how surrogateescape carries an undecodable byte, PEP 383


def printable(text: str) -> str:
    """`text` with every control, undecodable and invisible character as \\xNN (or \\uNNNN above 0xff)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if code in _UNPAIRED_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
