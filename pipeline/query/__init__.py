"""What the query socket answers: one request map in, one answer map out (contract 5.4)."""

from pipeline.query.answering import answer, answer_bytes, handle, refuse_bytes
from pipeline.query.operations import CONNECTION_FIELDS
from pipeline.store.filters import compile_filters

__all__ = ["CONNECTION_FIELDS", "answer", "answer_bytes", "compile_filters", "handle", "refuse_bytes"]
