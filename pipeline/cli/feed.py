"""`sockscope feed`: what the aggregator publishes, a line for each message."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from pipeline.cli.answers import ANSWER_TIMEOUT_S
from pipeline.cli.completion import feed_topics
from pipeline.cli.options import duration_option, flags_of, runtime_dir_option, split_names
from pipeline.cli.render import cell_text, endpoint, json_line, write
from pipeline.errors import NoAggregator

_HEARTBEAT = "heartbeat"
_TOPICS = ("delta.", "delta.edges", "event.", "snapshot.", _HEARTBEAT)
# In every message, or told by the topic: a line for people leaves them out.
_HEADER = frozenset(("schema", "host", "epoch", "seq", "prev", "columns", "interval_s"))
_EVENTS_TOLD = 5


class Message(NamedTuple):
    """`content`: the map as it came."""

    topic: str
    content: Mapping[str, Any]


@click.command()
@click.option(
    "--topic", "topics", metavar="T", multiple=True, shell_complete=feed_topics,
    callback=lambda ctx, option, topics: _known(topics),
    help="Only topics that begin so: delta.NETNS, delta.edges, event.NETNS, snapshot.NETNS, heartbeat;"
    " may be repeated. All but snapshots by default.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N messages.")
@duration_option
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "jsonl"]), default="table",
    help="table (default): a line for people; json and jsonl: the whole message, one object a line.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--no-header", is_flag=True, help="For symmetry: there is no header.", hidden=True)
@click.option("--fields", metavar="A,B,C", callback=split_names, help="Only these parts of each message.")
@runtime_dir_option
def feed(
    topics: tuple[str, ...],
    limit: int | None,
    duration: float | None,
    form: str,
    as_json: bool,
    no_header: bool,
    fields: tuple[str, ...],
    runtime_dir: str | None,
) -> int:
    """Print what changes, as it changes, until Ctrl-C.

    A program that follows the state wants pipeline.client.Feed, or docs/protocol.md.
    """
    lines = _people_s_line if form == "table" and not as_json else _json_s_line
    wanted = topics or ("delta.", "event.", _HEARTBEAT)
    for message in itertools.islice(_received(runtime_dir, wanted, duration), limit):
        if fields:
            content = {name: message.content[name] for name in fields if name in message.content}
            message = message._replace(content=content)
        write([lines(message)])
    return 0


def _known(topics: tuple[str, ...]) -> tuple[str, ...]:
    """`topics`, as the option's callback. One that no message can have would be waited for in silence."""
    for topic in topics:
        kind, dot, netns = topic.partition(".")
        if any(known.startswith(topic) for known in _TOPICS):
            continue
        if f"{kind}{dot}" not in _TOPICS or not (netns.isascii() and netns.isdecimal()):
            raise click.BadParameter(
                f"no message has a topic that begins with {topic!r}; topics are"
                " delta.NETNS, delta.edges, event.NETNS, snapshot.NETNS and heartbeat, NETNS an inode."
            )
    return topics


def _received(
    runtime_dir: str | None, topics: tuple[str, ...], duration_s: float | None
) -> Iterator[Message]:
    """The messages of the topics that begin like one of `topics`. Raises: NoAggregator where nobody sends at all."""
    from pipeline import config
    from pipeline.codec import decode_map
    from pipeline.transport.feed import Subscriber

    directory = config.load(None, os.environ, flags_of(runtime_dir)).config.agent.runtime_dir
    # The heartbeat tells a quiet pipeline from none.
    subscriber = Subscriber(f"{directory}/feed.ipc", (*topics, _HEARTBEAT))
    began_s = time.monotonic()
    heard = False
    gaps = Gaps()
    try:
        while (left_s := _left_s(duration_s, began_s)) > 0:
            received = subscriber.receive(min(left_s, ANSWER_TIMEOUT_S))
            if received is None:
                if not heard and time.monotonic() >= began_s + ANSWER_TIMEOUT_S:
                    raise NoAggregator(
                        f"no message from the feed at {directory} within {ANSWER_TIMEOUT_S:g} s",
                        "see whether `sockscope run` is alive, and what it logged",
                    )
                continue
            heard = True
            message = Message(received[0], decode_map(received[1]))
            if message.topic.startswith(topics):
                if said := gaps.note(message):
                    click.echo(f"sockscope: {said}", err=True)
                yield message
    finally:
        subscriber.close()


def _left_s(duration_s: float | None, began_s: float) -> float:
    return float("inf") if duration_s is None else began_s + duration_s - time.monotonic()


class Gaps:
    """What this subscriber missed: it was too slow, or the aggregator is another one."""

    def __init__(self) -> None:
        self._epoch: Any = None
        self._last: dict[str, Any] = {}

    def note(self, message: Message) -> str:
        """A sentence about what is missing before `message`; empty where nothing is."""
        topic, content = message
        epoch, seq, prev = (content.get(name) for name in ("epoch", "seq", "prev"))
        said = ""
        if self._epoch not in (None, epoch):
            self._last.clear()
            said = "another aggregator: what changed in between is not told"
        elif topic in self._last and self._last[topic] != prev:
            said = f"messages of {cell_text(topic)} after seq {self._last[topic]} are lost"
        self._epoch, self._last[topic] = epoch, seq
        return said


def _json_s_line(message: Message) -> bytes:
    return json_line({"topic": message.topic, **message.content})


def _people_s_line(message: Message) -> bytes:
    words = [time.strftime("%H:%M:%S"), message.topic]
    words += [f"seq {message.content['seq']}"] if "seq" in message.content else []
    words += [_said(name, value) for name, value in message.content.items() if name not in _HEADER]
    return "  ".join(cell_text(word) for word in words if word).encode(errors="backslashreplace") + b"\n"


def _said(name: str, value: Any) -> str:
    """One value of a message in few words: what is many as its number, a namespace by its name."""
    if value is None:
        return ""
    if name == "events":
        told = [_event(one) for one in value[:_EVENTS_TOLD]]
        return ", ".join(told) + (f", and {len(value) - len(told)} more" if len(value) > len(told) else "")
    if name == "namespace":
        return f"netns {value.get('name') or value.get('netns')}"
    return f"{name} {len(value) if isinstance(value, (list, dict)) else cell_text(value)}"


def _event(event: Mapping[str, Any]) -> str:
    row = event.get("connection")
    if row is None:
        return str(event.get("event"))
    ends = (endpoint(row[f"{end}_addr"], row[f"{end}_port"]) for end in ("local", "remote"))
    owner = f"{row['pid']}/{row['comm']}" if row.get("pid") else "-"
    return " ".join((event["event"], row["proto"], row["state"], *ends, owner))
