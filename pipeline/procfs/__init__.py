"""The proc root's files, one module each: `parse_` is pure, `read_` touches the kernel. The only "/proc" strings."""
