"""The latest state in SQLite: written by the aggregator (`Store`), read by anybody (`Reader`). The only sqlite3."""

from pipeline.store.reader import Reader
from pipeline.store.writer import Commit, Store

__all__ = ["Commit", "Reader", "Store"]
