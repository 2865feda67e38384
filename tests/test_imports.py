"""Who may import whom: imports only go down, and each outside library has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "pipeline"

_NOUNS = {"model", "errors", "clock", "codec", "config"}
_KERNEL = _NOUNS | {"kernel"}
_SOURCES = _KERNEL | {"procfs", "netlink"}

# unit (a package or module of pipeline/) -> the units it may import. Stages of one layer are not in each other's
# line: they meet in roles/. What is written here is the picture in ARCHITECTURE.md.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "model": {"errors"},
    "codec": {"errors"},
    "config": {"errors"},
    "kernel": _NOUNS,
    "procfs": _KERNEL,
    "netlink": _KERNEL,
    "ebpf": _KERNEL,
    "walk": _SOURCES,
    "track": _NOUNS,
    "discover": _SOURCES,
    "gate": _SOURCES,
    "probe": _SOURCES | {"ebpf"},
    "segment": _NOUNS,
    "board": _NOUNS,
    "transport": _NOUNS,
    "merge": _NOUNS,
    "store": _NOUNS | {"merge"},
    "query": _NOUNS | {"merge", "store"},
    "feed": _NOUNS,
    "client": _NOUNS | {"transport", "segment"},
    "roles": _SOURCES
    | {
        "walk",
        "discover",
        "gate",
        "segment",
        "board",
        "transport",
        "merge",
        "track",
        "store",
        "query",
        "probe",
        "ebpf",
        "feed",
    },
    "cli": _NOUNS | {"client", "transport", "query", "probe", "roles", "kernel", "procfs"},
}

# outside library -> the only places that import it
ONE_DOOR: dict[str, set[str]] = {
    "ctypes": {"kernel/libc.py"},
    "zmq": {"transport/"},
    "msgpack": {"codec.py"},
    "sqlite3": {"store/"},
    "psutil": {"roles/usage.py"},
    "multiprocessing_logging": {"roles/log_relay.py"},
    "click": {"cli/"},
    "rich": {"cli/"},
    "msgspec": {"config.py", "cli/render.py"},
    "tomllib": {"config.py"},
}

# Texts that begin with /proc: elsewhere a fixed path would miss --proc-root.
PROC_PATHS: dict[str, set[str]] = {
    "config.py": {"/proc"},  # the default of agent.proc_root
    "kernel/enter.py": {"/proc/thread-self/ns/net"},  # our own namespace, whatever root we watch
}


class Import(NamedTuple):
    importer: str
    imported: str


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(path below pipeline/, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a module, function bodies included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def calls(tree: ast.Module) -> Iterator[str]:
    """What is called, as written."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def unit_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def at_door(path: str, doors: set[str]) -> bool:
    return any(path.startswith(door) if door.endswith("/") else path == door for door in doors)


def test_every_unit_has_its_line_in_the_table() -> None:
    units = {unit_of(path) for path, _ in modules()} - {"__init__"}
    assert units <= set(MAY_IMPORT)


def test_imports_only_go_down_and_siblings_do_not_meet() -> None:
    wrong = []
    for path, tree in modules():
        unit = unit_of(path)
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] != "pipeline" or parts[1] in ("__version__", unit):
                continue
            if parts[1] not in MAY_IMPORT[unit]:
                wrong.append(Import(path, name))
    assert wrong == []


def test_each_outside_library_has_one_door() -> None:
    wrong = [
        Import(path, name)
        for path, tree in modules()
        for name in imports(tree)
        if name.split(".")[0] in ONE_DOOR and not at_door(path, ONE_DOOR[name.split(".")[0]])
    ]
    assert wrong == []


def test_only_procfs_writes_proc_paths() -> None:
    wrong = [
        (path, text)
        for path, tree in modules()
        for text in texts(tree)
        if (text == "/proc" or text.startswith("/proc/")) and " " not in text
        if not path.startswith("procfs/") and text not in PROC_PATHS.get(path, set())
    ]
    assert wrong == []


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = [
        (path, name)
        for path, tree in modules()
        for name in calls(tree)
        if name in ("print", "sys.exit", "exit", "quit") and not path.startswith("cli/")
    ]
    assert wrong == []


def test_no_module_is_over_400_lines() -> None:
    long = {path: len((PACKAGE / path).read_text().splitlines()) for path, _ in modules()}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}
