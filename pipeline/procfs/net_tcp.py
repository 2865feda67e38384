"""PID/net/{tcp,tcp6,udp,udp6}: socket tables as text, for where sock_diag or entering is denied."""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Callable

from pipeline.errors import Malformed
from pipeline.model.connection import Family
from pipeline.model.process import Task
from pipeline.model.socket_row import SocketRow
from pipeline.procfs.root import ProcRoot, read_net_file

# The kernel prints each 32-bit group of an address as a native number in hex: read it back as a number, store it
# natively, and the bytes are in network order on either endianness. (as printed, as stored, hex digits)
_V4 = (struct.Struct(">I"), struct.Struct("=I12x"), 8)
_V6 = (struct.Struct(">4I"), struct.Struct("=4I"), 32)
_COLON = ord(":")


def parse_net_table(text: bytes, family: int, on_malformed: Callable[[Malformed], None]) -> list[SocketRow]:
    """Rows of one table in file order; ifindex and cookie are 0, the text does not have them.

    Args: text: the whole file, header included. family: Family.INET for tcp and udp, INET6 for tcp6 and udp6.
    on_malformed: called for each line that is no row, which is then left out; the message has the line number.
    A last line without its newline is one: its inode may be cut short and look like another's.
    Source: get_tcp4_sock(), net/ipv4/tcp_ipv4.c; udp4_format_sock(), net/ipv4/udp.c; and their v6 siblings.
    """
    printed, native, width = _V4 if family == Family.INET else _V6
    rows: list[SocketRow] = []
    lines = text.split(b"\n")
    unfinished = lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_parse_row(line, family, printed, native, width))
        except (ValueError, struct.error):
            if not line.lstrip().startswith(b"sl"):
                on_malformed(Malformed(f"net table, line {number}: not a row: {line[:160]!r}"))
    if unfinished:
        on_malformed(Malformed(f"net table, line {len(lines) + 1}: cut short: {unfinished[:160]!r}"))
    return rows


def read_net_table(
    root: ProcRoot, task: Task, table: str, family: int, on_malformed: Callable[[Malformed], None]
) -> list[SocketRow]:
    """The rows of `table` (tcp, tcp6, udp, udp6) of the task's namespace; none without IPv6 in the kernel.

    Raises: Vanished, Denied. `family` and `on_malformed` as in parse_net_table.
    """
    return parse_net_table(read_net_file(root, task, table), family, on_malformed)


def _parse_row(
    line: bytes, family: int, printed: struct.Struct, native: struct.Struct, width: int
) -> SocketRow:
    """One line; `width` is how many hex digits an address has. Raises: ValueError, struct.error."""
    _, local, remote, state, _, _, _, uid, _, inode = line.split(None, 10)[:10]
    if (
        len(local) != width + 5
        or len(remote) != width + 5
        or local[width] != _COLON
        or remote[width] != _COLON
    ):
        raise ValueError
    return (
        family,
        int(state, 16),
        unhexlify(local[width + 1 :]),
        unhexlify(remote[width + 1 :]),
        native.pack(*printed.unpack(unhexlify(local[:width]))),
        native.pack(*printed.unpack(unhexlify(remote[:width]))),
        0,
        0,
        int(uid),
        int(inode),
    )
