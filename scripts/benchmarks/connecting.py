"""Connections of a process to itself, one after the other, with or without the event programs running.

Run as `python -m scripts.benchmarks.connecting COUNT [ebpf]`. Prints {"connection_us": …, "event_us": …, "right": …}:
CPU time of one connection, both ends; of taking one event out of the ring, which is no part of it; and the share of
ends that the events gave the right process. The last two are null without the programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time

from pipeline.ebpf import EventRing
from pipeline.model.connection import State
from pipeline.model.event import EventKind, SocketEvent

_BATCH = 500
_RING_BYTES = 1 << 24
# Closing with a reset leaves no TIME_WAIT behind, of which many would slow the next run down.
_RESET = b"\1\0\0\0\0\0\0\0"


def connect(listener: socket.socket) -> None:
    """One connection: a byte one way, then both ends closed."""
    client = socket.socket()
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    client.send(b"x")
    server.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
    server.close()


def main(count: int, with_ebpf: bool) -> None:
    connecting_s, draining_s = 0.0, 0.0
    events: list[SocketEvent] = []
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        ring = opened.enter_context(EventRing.open(_RING_BYTES)) if with_ebpf else None
        for _ in range(count // _BATCH):
            began_s = time.process_time()
            for _ in range(_BATCH):
                connect(listener)
            connected_s = time.process_time()
            connecting_s += connected_s - began_s
            if ring is not None:
                events += ring.drain()
                draining_s += time.process_time() - connected_s
    port = listener_port(events)
    ends = [
        event.pid == os.getpid()
        for event in events
        if event.kind == EventKind.CLOSED
        and event.state != State.LISTEN
        and port in (event.local_port, event.remote_port)
    ]
    made = count // _BATCH * _BATCH
    report = {
        "connection_us": connecting_s / made * 1e6,
        "event_us": draining_s / len(events) * 1e6 if events else None,
        "right": sum(ends) / (2 * made) if with_ebpf else None,
    }
    print(json.dumps(report))


def listener_port(events: list[SocketEvent]) -> int:
    """The port that this process's connections went to; 0 without events."""
    return next((event.remote_port for event in events if event.pid == os.getpid() and not event.inbound), 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), "ebpf" in sys.argv[2:])
