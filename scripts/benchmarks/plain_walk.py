"""A peer: the straightforward walk of /proc in Python that one writes first. Prints all connections as JSON.

Reads the link of every descriptor of every process, and the text tables of one process of each namespace.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def owners_and_namespaces() -> tuple[dict[int, dict[str, Any]], dict[str, int]]:
    """(socket inode -> process, namespace link -> one process in it)."""
    owners: dict[int, dict[str, Any]] = {}
    namespaces: dict[str, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespaces.setdefault(os.readlink(f"/proc/{name}/ns/net"), int(name))
            with open(f"/proc/{name}/comm") as file:
                comm = file.read().rstrip("\n")
            descriptors = os.listdir(f"/proc/{name}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                link = os.readlink(f"/proc/{name}/fd/{descriptor}")
            except OSError:
                continue
            if link.startswith("socket:["):
                owners[int(link[8:-1])] = {"pid": int(name), "comm": comm, "fd": int(descriptor)}
    return owners, namespaces


def address(text: str) -> tuple[str, int]:
    """ "0100007F:0050" -> ("127.0.0.1", 80); an IPv6 address as 32 hexadecimal digits in order."""
    host, port = text.split(":")
    words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]
    packed = b"".join(words)
    shown = ".".join(map(str, packed)) if len(packed) == 4 else packed.hex()
    return shown, int(port, 16)


def main() -> None:
    owners, namespaces = owners_and_namespaces()
    rows = []
    for namespace, pid in namespaces.items():
        for table in ("tcp", "tcp6", "udp", "udp6"):
            try:
                with open(f"/proc/{pid}/net/{table}") as file:
                    lines = file.readlines()[1:]
            except OSError:
                continue
            for line in lines:
                cells = line.split()
                row: dict[str, Any] = {"netns": namespace, "proto": table, "state": cells[3]}
                row["local"], row["remote"] = address(cells[1]), address(cells[2])
                row["uid"], row["inode"] = int(cells[7]), int(cells[9])
                row["owner"] = owners.get(row["inode"])
                rows.append(row)
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
