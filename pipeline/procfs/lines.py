"""Finding one line in a file of the kernel's, for the files that are read too often to be parsed whole."""

from __future__ import annotations


def rest_of_line(data: bytes, start: bytes, offset: int = 0) -> bytes:
    """What stands behind the first `start` from `offset` on, up to the end of its line.

    `start` begins with a newline where it must begin a line. Raises: ValueError where it is missing, or where the
    line has no end: it may be cut inside a number.
    """
    begin = data.index(start, offset) + len(start)
    return data[begin : data.index(b"\n", begin)]
