"""sockscope: for every network namespace of a Linux host, which process owns which connection, now."""

__version__ = "0.1.0"
