"""The command line: one module per family of verbs; the only place that prints and exits."""

from pipeline.cli.entry import main

__all__ = ["main"]
