"""Which rights we lack for reading every process of the host in full."""

from __future__ import annotations

import os

from pipeline.kernel.support import has_capability
from pipeline.procfs.root import ProcRoot
from pipeline.procfs.status import read_status

# Listing another user's descriptors, reading what they are, and entering other network namespaces.
_NEEDED = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN")


def missing_rights() -> str:
    """The capabilities that this process lacks, separated by commas; empty when it may read everything."""
    capabilities = read_status(ProcRoot(), os.getpid()).effective_capabilities
    return ", ".join(name for name in _NEEDED if not has_capability(capabilities, name))
