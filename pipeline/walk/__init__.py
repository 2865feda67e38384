"""One namespace under watch: its socket tables, its processes' descriptors, at which pace, what changed."""
