"""What the shell offers after an option: words that are fixed, and the namespaces of a running pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.model.connection import FAMILY_NAMES, PROTO_NAMES, Proto, State, state_name

_TIMEOUT_S = 1.0  # somebody waits at the keyboard

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]

STATES = tuple(dict.fromkeys(state_name(proto, state) for proto in (Proto.TCP, Proto.UDP) for state in State))


def words(known: Iterable[str]) -> Complete:
    """Offers those of `known` that begin as typed, in either case."""
    offered = tuple(known)

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in offered if word.lower().startswith(typed.lower())]

    return complete


def _namespaces(context: click.Context) -> list[dict[str, Any]]:
    """netns and name of each of the running pipeline's; none if nobody answers."""
    from pipeline import config
    from pipeline.cli.options import flags_of
    from pipeline.client import Client
    from pipeline.errors import SockscopeError

    try:
        loaded = config.load(None, os.environ, flags_of(context.params.get("runtime_dir")))
        with Client(loaded.config.agent.runtime_dir, timeout_s=_TIMEOUT_S) as client:
            return client.namespaces(fields=["netns", "name"]).rows
    except SockscopeError:
        return []  # to complete a word is no reason to put an error onto somebody's command line


def netns_names(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """The names of the running pipeline's namespaces, and the inodes of those without one."""
    offered = (str(row["name"] or row["netns"]) for row in _namespaces(context))
    # A name that the shell would have to quote, or a terminal to obey, is left out: nobody types it.
    return [CompletionItem(name) for name in offered if name.startswith(typed) and _is_plain(name)]


def feed_topics(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """The feed's topics; those of each namespace with its name as explanation."""
    offered = [CompletionItem("heartbeat"), CompletionItem("delta.edges")]
    for row in _namespaces(context):
        kinds = ("delta", "event", "snapshot")
        offered += [CompletionItem(f"{kind}.{row['netns']}", help=row["name"]) for kind in kinds]
    return [item for item in offered if item.value.startswith(typed)]


def _is_plain(name: str) -> bool:
    return name.isascii() and all(character.isalnum() or character in "-_.:@+" for character in name)


# filter -> what completes its value
FILTER_VALUES: dict[str, Complete] = {
    "netns": netns_names,
    "state": words(STATES),
    "proto": words(PROTO_NAMES.values()),
    "family": words(FAMILY_NAMES.values()),
    "direction": words(("listen", "inbound", "outbound", "unknown")),
}
