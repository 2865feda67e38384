"""The only code in /dev/shm: each worker's newest state as a file there, and the folder that holds one instance's."""

from pipeline.segment.file import SegmentContent, SegmentFull, SegmentWriter, read_segment
from pipeline.segment.folder import InstanceFolder, flows_segment, netns_of_segment, netns_segment, sweep

__all__ = [
    "InstanceFolder", "SegmentContent", "SegmentFull", "SegmentWriter", "flows_segment", "netns_of_segment",
    "netns_segment", "read_segment", "sweep",
]  # fmt: skip
