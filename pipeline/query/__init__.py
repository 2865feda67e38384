"""What the query socket answers: one request map in, one answer map out (contract 5.4)."""

from pipeline.query.answering import answer, answer_bytes, answer_joined, handle, refuse_bytes
from pipeline.query.lookups import Lookups
from pipeline.query.operations import CONNECTION_FIELDS
from pipeline.store.filters import compile_filters

__all__ = [
    "CONNECTION_FIELDS",
    "Lookups",
    "answer",
    "answer_bytes",
    "answer_joined",
    "compile_filters",
    "handle",
    "refuse_bytes",
]
