"""Which rights we lack for reading every process of the host in full."""

from __future__ import annotations

from pipeline.kernel.libc import effective_capabilities
from pipeline.kernel.support import has_capability

# Listing another user's descriptors, reading what they are, and entering other network namespaces.
_NEEDED = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN")


def missing_rights() -> str:
    """The capabilities that this process lacks, separated by commas; empty when it may read everything."""
    capabilities = effective_capabilities()
    return ", ".join(name for name in _NEEDED if not has_capability(capabilities, name))
