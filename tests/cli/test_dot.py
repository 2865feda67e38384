"""Edges as a graph: what Graphviz would read out of it, by the grammar of its language."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.dot import dot
from tests.cli.conftest import Sockscope

# A quoted string ends at a quote without a backslash before it; Graphviz keeps all other backslashes for the label.
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_][A-Za-z_0-9]*)|(->|[{}\[\]=,;]))', re.DOTALL)


class Parsed:
    """A graph read by the grammar at graphviz.org/doc/info/lang.html, as far as we write it. Fails on all else."""

    def __init__(self, text: str) -> None:
        self.nodes: dict[str, dict[str, str]] = {}
        self.arrows: list[tuple[str, str, dict[str, str]]] = []
        self.boxes: dict[str, list[str]] = {}
        self._tokens: list[str] = []
        text, place = text.rstrip(), 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            assert match is not None, text[place : place + 60]
            self._tokens.append(match[match.lastindex or 0])
            place = match.end()
        self._expect("digraph")
        self._take()
        self._statements(None)
        assert not self._tokens

    def _take(self) -> str:
        return self._tokens.pop(0)

    def _expect(self, token: str) -> None:
        assert self._take() == token

    def _statements(self, box: str | None) -> None:
        self._expect("{")
        while self._tokens[0] != "}":
            name = self._take()
            if name == "subgraph":
                self._take()
                self._statements("")
                continue
            if self._tokens[0] == "=":
                self._take()
                value = _label(self._take())
                box = value if name == "label" else box
            elif self._tokens[0] == "->":
                self._take()
                self.arrows.append((name, self._take(), self._attributes()))
            elif name != "node":
                self.nodes[name] = self._attributes()
                if box is not None:
                    self.boxes.setdefault(box, []).append(name)
            else:
                self._attributes()
            self._expect(";")
        self._expect("}")

    def _attributes(self) -> dict[str, str]:
        found = {}
        self._expect("[")
        while self._tokens[0] != "]":
            name = self._take()
            self._expect("=")
            found[name] = _label(self._take())
            if self._tokens[0] == ",":
                self._take()
        self._expect("]")
        return found


def _label(token: str) -> str:
    """The text that is drawn for a string; fails on an escape that stands for something else."""
    if not token.startswith('"'):
        return token
    replaced = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
    return re.sub(r"\\.", lambda match: replaced[match[0]], token[1:-1])


def end(
    pid: int | None, comm: str = "x", netns: int | None = 1, addr: str = "10.0.0.1", port: int | None = 80
) -> Any:
    start = None if pid is None else 10
    return {
        "netns": netns,
        "pid": pid,
        "start_ticks": start,
        "comm": comm,
        "container": None,
        "addr": addr,
        "port": port,
    }


def edge(client: Any, server: Any, connections: int = 1, *, ambiguous: bool = False, nat: Any = None) -> Any:
    return {"client": client, "server": server, "proto": "tcp", "connections": connections, "ambiguous": ambiguous,
            "nat": nat}  # fmt: skip


def parse(edges: list[Any], names: dict[int, str | None] | None = None) -> Parsed:
    return Parsed(b"".join(dot(edges, names or {})).decode())


def test_each_process_is_one_node_in_the_box_of_its_namespace() -> None:
    graph = parse(
        [edge(end(8, "curl"), end(9, "nginx", 2)), edge(end(7, "wget"), end(9, "nginx", 2), 3)], {2: "web"}
    )
    labels = {name: node["label"] for name, node in graph.nodes.items()}
    assert sorted(labels.values()) == ["curl (8)", "nginx (9)", "wget (7)"]
    assert {box: sorted(labels[name] for name in found) for box, found in graph.boxes.items()} == {
        "1": ["curl (8)", "wget (7)"], "web": ["nginx (9)"],
    }  # fmt: skip
    assert [(labels[one], labels[other], arrow["label"]) for one, other, arrow in graph.arrows] == [
        ("curl (8)", "nginx (9)", "tcp 80"), ("wget (7)", "nginx (9)", "tcp 80 (3)"),
    ]  # fmt: skip


def test_outside_and_ambiguous_ends_are_addresses_outside_all_boxes() -> None:
    graph = parse([
        edge(end(None, netns=None, addr="203.0.113.5", port=4001), end(9)),
        edge(end(None, netns=None, addr="10.0.0.7", port=4001), end(9), ambiguous=True),
    ])  # fmt: skip
    assert [node["label"] for node in graph.nodes.values() if node.get("style") == "dashed"] == [
        "203.0.113.5", "10.0.0.7\n?",
    ]  # fmt: skip
    assert [arrow.get("style") for _, _, arrow in graph.arrows] == [None, "dashed"]


def test_arrow_says_what_the_client_asked_for_where_it_is_translated() -> None:
    nat = {"original": {"src": "10.0.0.1", "sport": 1, "dst": "10.96.0.1", "dport": 443}, "translated": {}}
    graph = parse([edge(end(8), end(9), nat=nat)])
    assert graph.arrows[0][2]["label"] == "tcp 80\nas 10.96.0.1:443"


@given(st.text(), st.text())
def test_no_name_of_a_process_breaks_out_of_its_label(comm: str, name: str) -> None:
    graph = parse([edge(end(8, comm), end(9, '"];\\N\\', 2))], {1: name or None})
    first, second = (node["label"] for node in graph.nodes.values())
    assert len(graph.arrows) == 1 and first.endswith(" (8)") and first.isprintable()
    assert second == '"];\\N\\ (9)'


def test_command_prints_the_graph_of_all_edges(sockscope: Sockscope, filled: None) -> None:
    completed = sockscope("edges", "--format", "dot")
    assert completed.returncode == 0
    graph = Parsed(completed.stdout.decode())
    assert sorted(node["label"] for node in graph.nodes.values()) == [
        "10.1.0.9", "\\x1b[31mrude (702)", "nginx (701)",
    ]  # fmt: skip
    assert len(graph.arrows) == 2


def test_graph_and_what_makes_rows_exclude_each_other(sockscope: Sockscope) -> None:
    for other in (["--count"], ["--fields", "proto"], ["--group-by", "netns"]):
        completed = sockscope("edges", "--format", "dot", *other)
        assert completed.returncode == 2 and b"exclude each other" in completed.stderr
