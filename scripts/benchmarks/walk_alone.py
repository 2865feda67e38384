"""One unpaced pass of one namespace, joined, as `sockscope snapshot` makes it, without the command around.

Run as `python -m scripts.benchmarks.walk_alone INODE [off|require]`, the last as `--ebpf`. Prints
{"cpu_s": …, "connections": …}: the CPU time of everything after the imports.
"""

from __future__ import annotations

import json
import sys
import time

from pipeline import query
from pipeline.config import load
from pipeline.roles import foreground


def main(inode: str, ebpf: str = "off") -> None:
    config = load(None, {}, {"ebpf.mode": ebpf}).config
    began_s = time.process_time()
    answer = query.answer_joined(foreground.take(config, (inode,)).join(), {"op": "connections"})
    used_s = time.process_time() - began_s
    assert answer is not None
    print(json.dumps({"cpu_s": used_s, "connections": len(answer["rows"])}))


if __name__ == "__main__":
    main(*sys.argv[1:])
