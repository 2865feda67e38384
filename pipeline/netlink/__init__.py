"""What the kernel tells over netlink; decoding is pure, apart from the sockets."""
