"""The filter options: the contract's names on the command line, values handed on as text for the query to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipeline.cli.completion import FILTER_VALUES

Verb = TypeVar("Verb", bound=Callable[..., Any])

# filter -> (what its value looks like, help)
_VALUE_FILTERS: dict[str, tuple[str, str]] = {
    "netns": ("NAME|INODE", "In this network namespace."),
    "pid": ("PID", "Held by this process."),
    "comm": ("NAME", "Held by a process of this name."),
    "container": ("ID", "Held by a process of this container."),
    "proto": ("tcp|udp", "This protocol."),
    "family": ("inet|inet6", "This address family."),
    "state": ("STATE", "In this state, by the kernel's name (CLOSE_WAIT, ...)."),
    "local": ("ADDR|CIDR", "Local address."),
    "remote": ("ADDR|CIDR", "Remote address."),
    "local_port": ("N|A-B", "Local port or range."),
    "remote_port": ("N|A-B", "Remote port or range."),
    "port": ("N|A-B", "Port or range on either side."),
    "uid": ("UID", "Owned by this user."),
    "direction": ("DIRECTION", "listen, inbound, outbound or unknown."),
    "inode": ("N", "Socket inode."),
    "cookie": ("N", "Socket cookie."),
}
_FLAG_FILTERS: dict[str, str] = {
    "listening": "Listening sockets.",
    "established": "Established connections.",
    "unowned": "Without a known owner.",
}
CONNECTION_FILTERS = (*_VALUE_FILTERS, *_FLAG_FILTERS)
PROCESS_FILTERS = ("netns", "pid", "comm", "container", "uid")
NAMESPACE_FILTERS = ("netns",)
EDGE_FILTERS = ("netns", "pid", "comm", "container", "proto", "port")


def filter_options(*names: str) -> Callable[[Verb], Verb]:
    """An option for each filter in `names`; `where_of` collects their values.

    A filter with a value may be repeated: a row matches if any of its values does.
    """

    def decorate(verb: Verb) -> Verb:
        for name in reversed(names):
            option = "--" + name.replace("_", "-")
            if name in _FLAG_FILTERS:
                verb = click.option(option, name, is_flag=True, help=_FLAG_FILTERS[name])(verb)
            else:
                metavar, help_line = _VALUE_FILTERS[name]
                verb = click.option(
                    option, name, metavar=metavar, multiple=True, help=help_line,
                    shell_complete=FILTER_VALUES.get(name),
                )(verb)  # fmt: skip
        return verb

    return decorate


def where_of(given: dict[str, Any]) -> dict[str, Any]:
    """The query's `where` from a verb's filter arguments: texts in lists, flags as True, none that is not given."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value
    }
