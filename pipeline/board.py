"""The board: a few numbers per worker in memory that supervisor and workers share, read without waking anybody.

Anonymous pages mapped before the fork; a worker writes its own slot, the supervisor reads all of them. Each field is
8 aligned bytes that are stored at once, so a reader never sees half a number; two fields may be of different moments.
"""

from __future__ import annotations

import mmap

_SLOT_WORDS = 8  # one cache line a worker: no slot shares a line with another writer's
_WORD_BYTES = 8

# A slot: one worker's numbers, by these indexes. Plain items of a memoryview, since properties would be Python
# functions that every worker runs, and each of those copies some 20 kB into it.
#   DUMP_STARTED_NS  CLOCK_MONOTONIC of the start of the dump it is inside now, 0 when it is in none
#   CPU_NS           CPU time of the process
#   DEBT_NS          CPU time spent over its share
#   LOOKS, BLOCKS    counts since its start
#   ANSWERED         the newest order to look up to which all are carried out
DUMP_STARTED_NS, CPU_NS, DEBT_NS, LOOKS, BLOCKS, ANSWERED = range(6)
Slot = memoryview


class Board:
    """`slots` slots, all zero. Made before the fork; forked processes share it, and it ends with the last of them."""

    def __init__(self, slots: int) -> None:
        self._pages = mmap.mmap(-1, max(slots, 1) * _SLOT_WORDS * _WORD_BYTES)
        # A view of native 8-byte words stores each item with one instruction; struct's "<Q" goes byte by byte.
        self._words = memoryview(self._pages).cast("Q")
        self._slots = slots

    def __len__(self) -> int:
        return self._slots

    def slot(self, index: int) -> Slot:
        """Slot `index`, the same memory in every process. Raises: IndexError."""
        if not 0 <= index < self._slots:
            raise IndexError(f"slot {index} of {self._slots}")
        return self._words[index * _SLOT_WORDS : (index + 1) * _SLOT_WORDS]

    def reset(self, index: int) -> None:
        """All zero: before another worker takes the slot over. Raises: IndexError."""
        for word in range(_SLOT_WORDS):
            self.slot(index)[word] = 0
