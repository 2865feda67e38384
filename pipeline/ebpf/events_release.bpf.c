/* events.bpf.c, and the end of UDP sockets: a cgroup program, whose loading needs CAP_NET_ADMIN as well. */
#define TELL_RELEASE
#include "events.bpf.c"
