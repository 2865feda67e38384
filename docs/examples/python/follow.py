#!/usr/bin/env python3
"""Follow the connections of one network namespace: pyzmq and msgpack, nothing else.

    follow.py RUNTIME_DIR NETNS      NETNS: the inode, as `sockscope namespaces` shows it

Prints a JSON object for each connection that comes, changes or goes: {"what": "opened", "row": {...}}. Messages may
be lost, and the aggregator may be replaced: `prev`, `epoch` and the heartbeat tell, and the state is asked for again.
"""

import json
import sys
from collections.abc import Iterator

import msgpack
import zmq

# Columns that a delta leaves out follow from the namespace. `key` is the row's identity within it.
FIELDS = ["key", "proto", "state", "local_addr", "local_port", "remote_addr", "remote_port", "owners"]
TIMEOUT_MS = 3000

Rows = dict[str, dict]


class Lost(Exception):
    """What follows cannot be applied to what we have: begin anew."""


def main() -> int:
    runtime_dir, netns = sys.argv[1:]
    with zmq.Context() as context:
        rows: Rows = {}
        while True:
            try:
                for now in states(context, runtime_dir, int(netns)):
                    show(rows, now)
                    rows = dict(now)
            except Lost as why:
                print(f"asking again: {why}", file=sys.stderr)
            except KeyboardInterrupt:
                return 0


def states(context: zmq.Context, runtime_dir: str, netns: int) -> Iterator[Rows]:
    """The namespace's rows by key, again after each change. Raises: Lost."""
    topic = f"delta.{netns}"
    with context.socket(zmq.SUB) as feed:
        feed.linger = 0
        # In this order: once a heartbeat comes, the subscription before it is in force.
        feed.subscribe(topic)
        feed.subscribe("heartbeat")
        feed.connect(f"ipc://{runtime_dir}/feed.ipc")
        came, message = "", {}
        while came != "heartbeat":
            came, message = next_message(feed, TIMEOUT_MS)
        patience_ms = 3000 * message["interval_s"]
        answer = ask(context, runtime_dir, {"op": "connections", "where": {"netns": netns}, "fields": FIELDS})
        rows = {row["key"]: row for row in as_maps(answer["columns"], answer["rows"])}
        epoch, known = answer["epoch"], answer["seq"]
        yield rows
        while True:
            came, message = next_message(feed, patience_ms)
            if message["epoch"] != epoch:
                raise Lost("another aggregator")
            if came == "heartbeat":
                # It names the last message of each topic that spoke lately.
                if message["topics"].get(topic, 0) > known:
                    raise Lost("the last message")
            elif came == topic and message["seq"] > known:
                if message["prev"] > known:
                    raise Lost(f"messages from {known} to {message['prev']}")
                known = message["seq"]
                apply(rows, message)
                yield rows


def apply(rows: Rows, delta: dict) -> None:
    # Removed first: a key may be used again within one message.
    for row in as_maps(delta["columns"], delta["removed"]):
        rows.pop(row["key"], None)
    for row in as_maps(delta["columns"], delta["added"] + delta["changed"]):
        rows[row["key"]] = {name: row[name] for name in FIELDS}


def as_maps(columns: list[str], rows: list[list]) -> Iterator[dict]:
    return (dict(zip(columns, row, strict=True)) for row in rows)


def next_message(feed: zmq.Socket, timeout_ms: float) -> tuple[str, dict]:
    if not feed.poll(timeout_ms):
        raise Lost("no heartbeat")
    topic, body = feed.recv_multipart()
    return topic.decode(), msgpack.unpackb(body)


def ask(context: zmq.Context, runtime_dir: str, request: dict) -> dict:
    with context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{runtime_dir}/query.ipc")
        socket.send(msgpack.packb(request))
        if not socket.poll(TIMEOUT_MS):
            raise Lost("no answer")
        answer = msgpack.unpackb(socket.recv())
    if not answer["ok"]:
        raise SystemExit(answer["error"]["message"])
    return answer


def show(before: Rows, now: Rows) -> None:
    for key in before.keys() - now.keys():
        say("closed", before[key])
    for key, row in now.items():
        if key not in before:
            say("opened", row)
        elif row != before[key]:
            say("changed", row)


def say(what: str, row: dict) -> None:
    print(json.dumps({"what": what, "row": row}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
