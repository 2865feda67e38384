"""nsid: the number by which our own namespace knows another one, where it does.

The kernel gives one to a namespace that a device of ours has its peer in (veth, for one), when it first tells of that
device; `ip netns set` gives one too. Netlink names the namespace of an event by it.
Source: include/uapi/linux/net_namespace.h, net/core/net_namespace.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from pipeline.errors import Malformed, Unsupported

_NETLINK_ROUTE = 0
_RTM_NEWNSID = 88
_RTM_GETNSID = 90
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_NETNSA_NSID = 1
_NETNSA_FD = 3
# nlmsghdr; rtgenmsg, padded; one attribute of four bytes.
_MESSAGE = struct.Struct("=IHHII4xHHi")
_NOT_ASSIGNED = -1
_RECEIVE_BYTES = 4096


def open_route() -> socket.socket:
    """A rtnetlink socket in the caller's namespace; the caller closes it."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)


def read_nsid(route: socket.socket, netns_fd: int) -> int | None:
    """The nsid of the namespace behind `netns_fd`, in the namespace of `route`; None where it has none.

    Raises: Unsupported (before Linux 4.0), Malformed.
    """
    request = _MESSAGE.pack(_MESSAGE.size, _RTM_GETNSID, _NLM_F_REQUEST, 1, 0, 8, _NETNSA_FD, netns_fd)
    route.send(request)
    answer = route.recv(_RECEIVE_BYTES)
    if len(answer) < _MESSAGE.size:
        raise Malformed(f"RTM_GETNSID: an answer of {len(answer)} bytes")
    _, kind, _, _, _, _, attribute, nsid = _MESSAGE.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number in (errno.EOPNOTSUPP, errno.EINVAL):
            raise Unsupported(f"RTM_GETNSID: {os.strerror(number)}")
        raise OSError(number, os.strerror(number))
    if kind != _RTM_NEWNSID or attribute != _NETNSA_NSID:
        raise Malformed(f"RTM_GETNSID: an answer of type {kind} with attribute {attribute}")
    return nsid if nsid != _NOT_ASSIGNED else None
