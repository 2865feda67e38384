"""Giving up rights in a forked child, for good: the user, and all capabilities but a few."""

from __future__ import annotations

import ctypes
import os
import struct

from pipeline.kernel.support import CAPABILITIES

NOBODY = 65534

_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def become_nobody(*capabilities: str) -> None:
    """Makes the calling process NOBODY's, with `capabilities` and no other. Source: capset(2)."""
    assert _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    mask = sum(1 << CAPABILITIES[name] for name in capabilities)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=IIIIII", low, low, 0, high, high, 0)
    assert _libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
