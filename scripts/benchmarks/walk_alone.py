"""One unpaced pass of one namespace, merged in a store, as `sockscope snapshot` makes it, without the command around.

Run as `python -m scripts.benchmarks.walk_alone INODE`. Prints
{"cpu_s": …, "connections": …}: the CPU time of everything after the imports.
"""

from __future__ import annotations

import json
import sys
import time

from pipeline import query
from pipeline.config import Config
from pipeline.roles import foreground


def main(inode: str) -> None:
    began_s = time.process_time()
    store = foreground.take(Config(), (inode,))
    used_s = time.process_time() - began_s
    answer = query.answer(store.reader(), {"op": "connections", "limit": 0})
    print(json.dumps({"cpu_s": used_s, "connections": answer["total"]}))


if __name__ == "__main__":
    main(sys.argv[1])
