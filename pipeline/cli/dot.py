"""Edges as a graph in the DOT language of Graphviz: a node for each process or outside address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.cli.render import endpoint
from pipeline.model.printable import printable

_Edge = Mapping[str, Any]


def dot(edges: Sequence[_Edge], names: Mapping[int, str | None]) -> Iterable[bytes]:
    """The text of a graph, line by line. `names`: netns -> its name, None where it has none.

    Processes of one namespace are in one box. An arrow goes from client to server, and says protocol, server port, the
    number of connections, and the address that the client asked for where that is translated.
    """
    nodes: dict[tuple[Any, ...], int] = {}
    boxes: dict[int | None, list[str]] = {}
    for edge in edges:
        for side in ("client", "server"):
            end = edge[side]
            if (identity := _identity(end)) not in nodes:
                nodes[identity] = len(nodes)
                shape = "" if end["pid"] is not None else ", style=dashed"
                line = f"n{nodes[identity]} [label={_quoted(*_label(end, edge['ambiguous']))}{shape}];"
                boxes.setdefault(end["netns"], []).append(line)
    return _lines(boxes, _arrows(edges, nodes), names)


def _lines(
    boxes: Mapping[int | None, list[str]], arrows: Iterable[str], names: Mapping[int, str | None]
) -> Iterator[bytes]:
    yield b"digraph sockscope {\n  rankdir=LR;\n  node [shape=box];\n"
    for netns, lines in boxes.items():
        indent = "  " if netns is None else "    "
        if netns is not None:
            yield f"  subgraph cluster_{netns} {{\n    label={_quoted(names.get(netns) or str(netns))};\n".encode()
        for line in lines:
            yield f"{indent}{line}\n".encode(errors="backslashreplace")
        if netns is not None:
            yield b"  }\n"
    for line in arrows:
        yield f"  {line}\n".encode()
    yield b"}\n"


def _arrows(edges: Iterable[_Edge], nodes: Mapping[tuple[Any, ...], int]) -> Iterator[str]:
    for edge in edges:
        client, server = (nodes[_identity(edge[side])] for side in ("client", "server"))
        label = [f"{edge['proto']} {edge['server']['port']}"]
        if edge["connections"] > 1:
            label[0] += f" ({edge['connections']})"
        if edge["nat"] is not None:
            asked = edge["nat"]["original"]
            label.append(f"as {endpoint(asked['dst'], asked['dport'])}")
        style = ", style=dashed" if edge["ambiguous"] else ""
        yield f"n{client} -> n{server} [label={_quoted(*label)}{style}];"


def _identity(end: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is one node: a process, else an address in its namespace or outside."""
    if end["pid"] is not None:
        return end["netns"], end["pid"], end["start_ticks"]
    return end["netns"], end["addr"]


def _label(end: Mapping[str, Any], ambiguous: bool) -> list[str]:
    if end["pid"] is None:
        return [end["addr"], "?"] if ambiguous and end["netns"] is None else [end["addr"]]
    lines = [f"{end['comm'] or '?'} ({end['pid']})"]
    return lines if end["container"] is None else [*lines, end["container"]]


def _quoted(*lines: str) -> str:
    """A quoted string of lines. In one a backslash begins an escape sequence, some of which stand for other text, and
    a process may call itself anything."""
    escaped = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
