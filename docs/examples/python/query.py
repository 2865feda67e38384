#!/usr/bin/env python3
"""Ask a running sockscope for connections: pyzmq and msgpack, nothing else.

    query.py RUNTIME_DIR [FILTER=VALUE]...      query.py /run/sockscope local_port=443 state=ESTABLISHED

Prints what `sockscope connections --format jsonl` prints with the same filters.
"""

import json
import sys

import msgpack
import zmq

TIMEOUT_MS = 3000
FLAGS = {"true": True, "false": False}


def main() -> int:
    runtime_dir, *filters = sys.argv[1:]
    where = {name: FLAGS.get(value, value) for name, value in (one.split("=", 1) for one in filters)}
    request = {"id": 1, "op": "connections", "where": where}
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{runtime_dir}/query.ipc")
        socket.send(msgpack.packb(request))
        if not socket.poll(TIMEOUT_MS):
            print(f"nobody answers at {runtime_dir}", file=sys.stderr)
            return 1
        answer = msgpack.unpackb(socket.recv())
    if not answer["ok"]:
        print(answer["error"]["message"], file=sys.stderr)
        return 1
    for row in answer["rows"]:
        print(json.dumps(dict(zip(answer["columns"], row, strict=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
