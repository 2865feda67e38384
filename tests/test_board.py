"""The board: what a worker writes, the supervisor reads."""

from __future__ import annotations

import os

import pytest

from pipeline.board import BLOCKS, CPU_NS, DEBT_NS, DUMP_STARTED_NS, LOOKS, Board


def test_slots_start_at_zero_and_keep_apart() -> None:
    board = Board(3)
    assert len(board) == 3
    board.slot(1)[DUMP_STARTED_NS] = 2**64 - 1
    board.slot(1)[CPU_NS] = 2
    board.slot(1)[DEBT_NS] = 5
    board.slot(1)[LOOKS] = 3
    board.slot(1)[BLOCKS] = 4
    for index in (0, 2):
        slot = board.slot(index)
        assert (slot[DUMP_STARTED_NS], slot[CPU_NS], slot[DEBT_NS], slot[LOOKS], slot[BLOCKS]) == (
            0,
            0,
            0,
            0,
            0,
        )
    slot = board.slot(1)
    assert (slot[DUMP_STARTED_NS], slot[CPU_NS], slot[DEBT_NS], slot[LOOKS], slot[BLOCKS]) == (
        2**64 - 1,
        2,
        5,
        3,
        4,
    )


def test_supervisor_reads_what_a_forked_worker_wrote() -> None:
    board = Board(2)
    pid = os.fork()
    if pid == 0:
        board.slot(1)[DUMP_STARTED_NS] = 123_456_789_012
        board.slot(1)[LOOKS] += 23
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.slot(1)[DUMP_STARTED_NS] == 123_456_789_012
    assert board.slot(1)[LOOKS] == 23


def test_reset_clears_one_slot_only() -> None:
    board = Board(2)
    board.slot(0)[LOOKS] = board.slot(1)[LOOKS] = 5
    board.reset(0)
    assert (board.slot(0)[LOOKS], board.slot(1)[LOOKS]) == (0, 5)


def test_slots_outside_the_board_are_refused() -> None:
    for index in (-1, 2):
        with pytest.raises(IndexError):
            Board(2).slot(index)
