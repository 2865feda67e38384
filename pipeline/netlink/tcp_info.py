"""struct tcp_info in the messages of a sock_diag dump, where it was asked for: decoded at fixed offsets.

Source: include/uapi/linux/tcp.h, tcp_get_info() in net/ipv4/tcp.c, inet_sk_diag_fill() in net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import functools
import struct

from pipeline.model.connection import State
from pipeline.model.traffic import Figures

# Bit of idiag_ext that asks for it, and the type of the attribute that then comes.
EXTENSION = 1 << 1
_INET_DIAG_INFO = 2
# Behind the message's header and struct inet_diag_msg.
_ATTRIBUTES_AT = 88
_ATTRIBUTE = struct.Struct("=HH")
# From the attribute's start to the end of tcpi_bytes_received, which Linux has since 4.1.
_INFO_BYTES = 140


def decode_traffic(run: bytes, length: int) -> dict[int, Figures]:
    """Socket cookie -> its figures, of messages of the same `length` one after the other. Pure.

    Sockets that listen have none, nor do those that are not whole (TIME_WAIT, SYN_RECV).
    """
    place = _place(run, length)
    if place is None:
        return {}
    head = run[place : place + 4]
    return {
        cookie: Figures(sent, received, rtt_us, retransmits)
        for state, cookie, same, rtt_us, retransmits, sent, received in _struct(length, place).iter_unpack(
            run
        )
        # In messages of one length the attributes are the same ones; if ever not, better no figures.
        if same == head and state != State.LISTEN
    }


def _place(run: bytes, length: int) -> int | None:
    """Where in a message, the first, the attribute begins; None where it has none that is long enough."""
    at = _ATTRIBUTES_AT
    while at + _ATTRIBUTE.size <= length:
        size, kind = _ATTRIBUTE.unpack_from(run, at)
        if size < _ATTRIBUTE.size:
            return None
        if kind == _INET_DIAG_INFO:
            return at if _INFO_BYTES <= size <= length - at else None
        at += (size + 3) & ~3
    return None


@functools.lru_cache(maxsize=64)
def _struct(length: int, place: int) -> struct.Struct:
    """Of one message: state, cookie, the attribute's header, tcpi_rtt, tcpi_total_retrans, tcpi_bytes_acked,
    tcpi_bytes_received."""
    return struct.Struct(f"=17xB42xQ{place - 68}x4s68xI28xI16xQQ{length - place - _INFO_BYTES}x")
