"""Rows as a table, as one JSON array or as JSON lines; nothing unprintable leaves this module."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.errors import Refused
from pipeline.model.printable import printable

# rich lays out every cell on its own: right for a screenful, seconds for 100,000 rows.
_RICH_MAX_ROWS = 2000
# Rows that are made into JSON in one go.
_AT_ONCE = 500
_WITHOUT_TEXT = frozenset((int, float, bool, type(None)))


class Listing(NamedTuple):
    """Rows to print: `rows` are sequences in the order of `columns`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Output(NamedTuple):
    """How to print: `format` is table, json or jsonl; `header` counts for tables only."""

    format: str
    header: bool


def project(listing: Listing, fields: Sequence[str]) -> Listing:
    """The columns named in `fields`, in that order. Raises: Refused for a column that is not there."""
    positions = {name: index for index, name in enumerate(listing.columns)}
    for name in fields:
        if name not in positions:
            raise Refused(f"unknown field {name}", hint=f"any of {', '.join(listing.columns)}")
    picked = [positions[name] for name in fields]
    return Listing(tuple(fields), [[row[index] for index in picked] for row in listing.rows])


def emit(listing: Listing, output: Output) -> None:
    """Print the rows to stdout."""
    write(chunks(listing, output))


def chunks(listing: Listing, output: Output) -> Iterable[bytes]:
    """What `emit` prints, piece by piece."""
    writers: dict[str, Callable[[Listing, Output], Iterable[bytes]]] = {
        "table": _table,
        "json": _json_array,
        "jsonl": _json_lines,
    }
    return writers[output.format](listing, output)


def write(pieces: Iterable[bytes]) -> None:
    """To stdout, at once."""
    stream = sys.stdout.buffer
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def json_line(value: Any) -> bytes:
    """One value as a line of JSON in which nothing is unprintable."""
    return _json(_clean(value)) + b"\n"


def cell_text(value: Any) -> str:
    """One value of a table: "-" for none, owners as pid/comm, nested values as JSON."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ",".join(_item_text(item) for item in value)
    if isinstance(value, dict):
        return printable(_json(value).decode())
    return printable(str(value))


def endpoint(address: str, port: int | None) -> str:
    """Address and port as one text; the address alone where the port is None."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _item_text(item: Any) -> str:
    if isinstance(item, dict) and "pid" in item and "comm" in item:
        return printable(f"{item['pid']}/{item['comm']}")
    return cell_text(item)


def _clean(value: Any) -> Any:
    """`value` with every text in it made printable; values that need no change are not copied."""
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _json(value: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(value)


def _json_array(listing: Listing, _: Output) -> Iterable[bytes]:
    # One array of several: without the brackets of each.
    between = b"["
    for piece in _encoded(listing, _json):
        yield between + piece[1:-1]
        between = b","
    yield b"]\n" if between == b"," else b"[]\n"


def _json_lines(listing: Listing, _: Output) -> Iterable[bytes]:
    import msgspec

    return _encoded(listing, msgspec.json.Encoder().encode_lines)


def _encoded(listing: Listing, encode: Callable[[list[dict[str, Any]]], bytes]) -> Iterator[bytes]:
    """Rows as maps, many at a time: only where the text shows anything but plain ASCII each value is looked at."""
    columns = [printable(name) for name in listing.columns]
    for begin in range(0, len(listing.rows), _AT_ONCE):
        objects = [dict(zip(columns, row, strict=True)) for row in listing.rows[begin : begin + _AT_ONCE]]
        try:
            text = encode(objects)
        except UnicodeEncodeError:
            text = b"\\"  # a lone surrogate: no text that JSON could have
        # JSON has a backslash before each control character but DEL.
        if not text.isascii() or b"\\" in text or b"\x7f" in text:
            text = encode([_cleaned(one) for one in objects])
        yield text


def _cleaned(one: dict[str, Any]) -> dict[str, Any]:
    # The check comes before the call: most values of 100,000 rows are numbers.
    return {name: value if type(value) in _WITHOUT_TEXT else _clean(value) for name, value in one.items()}


def _table(listing: Listing, output: Output) -> Iterable[bytes]:
    cells = [[cell_text(value) for value in row] for row in listing.rows]
    columns = [printable(name) for name in listing.columns]  # those of an SQL statement are anybody's text
    if sys.stdout.isatty() and len(cells) <= _RICH_MAX_ROWS:
        return [_rich_table(columns, cells, output).encode(errors="backslashreplace")]
    return [plain_table(columns, cells, output).encode(errors="backslashreplace")]


def plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]], output: Output) -> str:
    """Columns two spaces apart, no value cut: what a pipe gets."""
    lines = [[name.upper() for name in columns], *cells] if output.header else cells
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        text.append("  ".join(padded).rstrip() + "\n")
    return "".join(text)


def _rich_table(columns: Sequence[str], cells: list[list[str]], output: Output) -> str:
    """Fitted to the terminal, long values folded, states in colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=output.header, header_style="bold")
    for name in columns:
        table.add_column(Text(name.upper()), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _style(cell: str) -> str:
    if cell in ("ESTABLISHED", "LISTEN"):
        return "green"
    return "dim" if cell == "-" else ""


def _width(cell: str) -> int:
    """Terminal columns that `cell` takes: two for wide East Asian characters."""
    if cell.isascii():
        return len(cell)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in cell)
