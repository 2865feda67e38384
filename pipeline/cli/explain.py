"""`--explain`: for each connection why this is its owner, or why none is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cli.render import Listing, cell_text, endpoint, write


def emit_explained(listing: Listing) -> None:
    """For people: a paragraph for each connection."""
    rows = (dict(zip(listing.columns, row, strict=True)) for row in listing.rows)
    text = "\n".join("".join(f"{line}\n" for line in _paragraph(row)) for row in rows)
    write([text.encode(errors="backslashreplace")])


def _paragraph(row: Mapping[str, Any]) -> Iterator[str]:
    local, remote = (endpoint(row[f"{end}_addr"], row[f"{end}_port"]) for end in ("local", "remote"))
    where = cell_text(row["netns_name"] or row["netns"])
    yield cell_text(f"{row['proto']} {row['state']} {local} {remote} in {where}")
    yield f"    {cell_text(row['explanation'])}"
    holders: Sequence[Mapping[str, Any]] = row["holders"] or ()
    for holder in holders:
        yield f"    {_holder(holder)}"


def _holder(holder: Mapping[str, Any]) -> str:
    seen = time.strftime("%H:%M:%S", time.localtime(holder["seen_at"]))
    where = f"fd {holder['fd']}, of netns {holder['netns']}, seen {seen}"
    return cell_text(f"{holder['pid']}/{holder['comm']}: {where}; {holder['rule']}")
