"""A socket as the sources hand it on: the shape that sock_diag and the text tables share, and its identity."""

from __future__ import annotations

from pipeline.model.connection import Connection, Family, SocketKey

# (family, state, sport, dport, src, dst, ifindex, cookie, uid, inode). Ports: 2 bytes in network order. Addresses:
# always 16 bytes in network order, an IPv4 address in the first 4 and zeros behind. ifindex 0: bound to no device.
# cookie 0: the source does not tell. inode 0: no process holds the socket. A plain tuple, not a NamedTuple: it is
# what struct gives, and two generations of a table are compared as sets of these.
SocketRow = tuple[int, int, bytes, bytes, bytes, bytes, int, int, int, int]


def socket_key(row: SocketRow, proto: int) -> SocketKey:
    """The identity of `row` within its namespace: its cookie, else minus its inode, else bytes.

    The bytes are protocol, family, ports, addresses and bound device, 42 of them: TIME_WAIT, SYN_RECV and
    orphan rows of the text tables have neither cookie nor inode, and must not fold into one.
    """
    if row[7]:
        return row[7]
    if row[9]:
        return -row[9]
    return bytes((proto, row[0])) + row[2] + row[3] + row[4] + row[5] + row[6].to_bytes(4, "big")


def to_connection(row: SocketRow, proto: int, key: SocketKey, device: str | None) -> Connection:
    """`row` as workers publish it: addresses 4 bytes for IPv4 and 16 for IPv6, ports as numbers."""
    family, state, sport, dport, src, dst, _, cookie, uid, inode = row
    if family == Family.INET:
        src = src[:4]
        dst = dst[:4]
    return Connection(
        key,
        proto,
        family,
        state,
        src,
        sport[0] << 8 | sport[1],
        dst,
        dport[0] << 8 | dport[1],
        device,
        inode,
        cookie,
        uid,
    )
