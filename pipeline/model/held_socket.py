"""A descriptor on a socket with everything about both, as one pass of the eBPF iterator gives them."""

from __future__ import annotations

from pipeline.model.socket_row import SocketRow

# (pid, start_ticks, fd, comm, task_netns, cgroup_id, process_uid, row, proto, netns, netns_cookie, bytes_acked,
# bytes_received). The process: `pid` in our pid namespace, `start_ticks` as field 22 of its stat, `comm` 16 bytes
# with NULs behind the name, `task_netns` the inode of its own (its leader's) namespace, 0 where it has left it,
# `cgroup_id` the inode of its cgroup2 folder, `process_uid` its effective uid. The socket: `row` as sock_diag shows
# it, `proto` TCP or UDP, `netns` and `netns_cookie` those of its own namespace, which need not be the process's; the
# bytes as `ss -i` shows them (SYN and FIN count), 0 for UDP; of a listener bytes_received is how many connections wait
# at it, handshakes under way among them, as sock_diag uses its receive queue. A plain tuple, not a NamedTuple: there
# are many.
HeldSocket = tuple[int, int, int, bytes, int, int, int, SocketRow, int, int, int, int, int]
