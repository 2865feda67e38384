"""Opens a connection over loopback for each line of its input and keeps it: `python -m scripts.benchmarks.prober`.

Prints `READY {}`, then for each connection {"at_s", "port", "inode", "pid"}: CLOCK_MONOTONIC right after connect(),
local port and socket inode of the client end, and its own pid. Ends when its input does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []
    print("READY {}", flush=True)
    for _ in sys.stdin:
        client = socket.create_connection(listener.getsockname())
        at_s = time.monotonic()
        kept += [client, listener.accept()[0]]
        inode = os.fstat(client.fileno()).st_ino
        port = client.getsockname()[1]
        print(json.dumps({"at_s": at_s, "port": port, "inode": inode, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main()
