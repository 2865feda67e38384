"""`--watch`: what is shown, again after each change, by the `wait` operation: nobody polls."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from pipeline.cli.answers import Answered, connect, read
from pipeline.cli.render import Output, chunks, json_line, write

# A wait that ends without a change is asked again: the aggregator may have been replaced meanwhile.
_WAIT_S = 30.0
# Nobody reads faster, and each block costs a whole answer.
_PAUSE_S = 0.25

_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(
    runtime_dir: str | None, keys: Mapping[str, Any], shape: Callable[[Answered], Answered], output: Output
) -> int:
    """Show connections now and after each change, until interrupted. `keys`: what to ask for.

    On a terminal in place; else a block for each time that what is shown has changed: a table and an empty line, a
    JSON array on a line, or with jsonl an object with `epoch`, `seq`, `total` and `rows`.
    """
    in_place = sys.stdout.isatty() and output.format == "table"
    before = b""
    with connect(runtime_dir) as client:
        while True:
            answered = read(client, "connections", keys)
            shown = shape(answered)
            block = b"".join(chunks(shown.listing, output))
            if in_place:
                _redraw(block, shown)
            elif block != before:
                write([block if output.format != "jsonl" else _state(shown)])
                if output.format == "table":
                    write([b"\n"])
            before = block
            time.sleep(_PAUSE_S)
            asked = {"where": keys["where"], "epoch": answered.epoch, "seq": answered.seq}
            read(client, "wait", {**asked, "timeout_s": _WAIT_S})


def _state(shown: Answered) -> bytes:
    columns = shown.listing.columns
    rows = [dict(zip(columns, row, strict=True)) for row in shown.listing.rows]
    return json_line({"epoch": shown.epoch, "seq": shown.seq, "total": shown.total, "rows": rows})


def _redraw(block: bytes, shown: Answered) -> None:
    """The table from the top left corner on, cut to the terminal: old lines are overwritten, so nothing flickers."""
    height = shutil.get_terminal_size().lines
    lines = block.decode(errors="backslashreplace").splitlines()
    room = max(1, height - 2)
    missing = len(lines) - room
    note = f"{time.strftime('%H:%M:%S')}  {shown.total} in all" + (f", {missing} lines below" * (missing > 0))
    text = "".join(f"{line}{_ERASE_LINE}\n" for line in (note, *lines[:room]))
    click.echo(f"{_HOME}{text}{_ERASE_BELOW}", nl=False, color=True)
