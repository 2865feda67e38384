"""ctnetlink's events: flows as they begin, change and end, of our own namespace and of those that have an nsid here.

One socket in our own namespace hears all of them (NETLINK_LISTEN_ALL_NSID); one inside another namespace would pin
it. It asks for translated flows only, and the kernel throws away the others before they are queued.
Source: net/netfilter/nf_conntrack_netlink.c, net/netlink/af_netlink.c.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from enum import IntEnum
from typing import NamedTuple

from pipeline.errors import EventsLost
from pipeline.model.flow import Flow
from pipeline.netlink.conntrack import TRANSLATED, open_netfilter, raise_sorted
from pipeline.netlink.conntrack_message import HEADER_BYTES, FlowDecoder


class FlowGroup(IntEnum):
    """NFNLGRP_CONNTRACK_*, include/uapi/linux/netfilter/nfnetlink.h."""

    NEW = 1
    UPDATE = 2
    DESTROY = 3


class FlowEvent(NamedTuple):
    """`nsid`: of the flow's namespace; None: our own. A NEW may come for a flow that is known: an expected one."""

    nsid: int | None
    kind: FlowGroup
    flow: Flow


_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_LISTEN_ALL_NSID = 8
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_DELETE = 2  # IPCTNL_MSG_CT_DELETE, the low byte of the type
_CREATED = 0x400  # NLM_F_CREATE
_NSID = struct.Struct("=i")
_TYPE_AND_FLAGS = struct.Struct("=HH")
# One event is below 600 bytes, but for labels and a security context.
_RECEIVE_BYTES = 4096
_ANCILLARY_BYTES = socket.CMSG_SPACE(4) * 2
# Some 5,000 events: the kernel counts 1.5 kB for each.
_BUFFER_BYTES = 4 << 20

# Classic BPF, include/uapi/linux/filter.h: (code, jump if true, jump if false, value). SKF_AD_OFF + SKF_AD_NLATTR
# finds the attribute of type X from offset A on, 0 where there is none.
_FILTER = (
    (0x00, 0, 0, HEADER_BYTES),  # A = where the attributes begin
    (0x01, 0, 0, 3),  # X = CTA_STATUS
    (0x20, 0, 0, 0xFFFFF000 + 12),  # A = its offset
    (0x15, 3, 0, 0),  # without one it is for us to see what it is
    (0x07, 0, 0, 0),  # X = A
    (0x40, 0, 0, 4),  # A = the status, in host order
    (0x45, 0, 1, TRANSLATED),
    (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
    (0x06, 0, 0, 0),  # throw it away
)


class FlowEvents:
    """An open subscription, to be closed. `fileno` can be read when there is an event."""

    def __init__(self, groups: tuple[FlowGroup, ...] = tuple(FlowGroup)) -> None:
        """Raises: Denied (CAP_NET_ADMIN, CAP_NET_BROADCAST), Unsupported (no ctnetlink)."""
        self._overrun = False
        self._socket = open_netfilter()
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._attach_filter()
            # Without an address of its own it would count as the sender, which hears nothing of what it sends.
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise_sorted(error)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, decoder: FlowDecoder, max_events: int) -> list[FlowEvent]:
        """What has arrived, in order, of translated TCP and UDP flows; at most `max_events` are read.

        Raises: EventsLost, once for all that the kernel had no room for, or that could not be read: then go on, and
        dump.
        """
        if self._overrun:
            self._overrun = False
            raise EventsLost("conntrack: events were dropped")
        messages: list[bytes] = []
        nsids: list[int | None] = []
        while len(messages) < max_events:
            try:
                message, ancillary, flags, _ = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True
                if messages:
                    break
                return self.receive(decoder, max_events)
            if flags & socket.MSG_TRUNC:
                self._overrun = True
                continue
            messages.append(message)
            nsids.append(_NSID.unpack(ancillary[0][2])[0] if ancillary else None)
        malformed = decoder.malformed
        flows = decoder.decode(messages, TRANSLATED)
        self._overrun |= decoder.malformed > malformed
        return [
            FlowEvent(nsid, _kind(message), flow)
            for nsid, message, flow in zip(nsids, messages, flows, strict=True)
            if flow is not None
        ]

    def close(self) -> None:
        self._socket.close()

    def _attach_filter(self) -> None:
        code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in _FILTER))
        # struct sock_fprog: how many, and where; the kernel copies it.
        program = struct.pack("@HP", len(_FILTER), code.buffer_info()[0])
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _kind(message: bytes) -> FlowGroup:
    """Which group an event was sent to."""
    kind, flags = _TYPE_AND_FLAGS.unpack_from(message, 4)
    if kind & 0xFF == _DELETE:
        return FlowGroup.DESTROY
    return FlowGroup.NEW if flags & _CREATED else FlowGroup.UPDATE
