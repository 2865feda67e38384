/* tp_btf: what happens to TCP and UDP sockets of every namespace, as fixed records in a ring buffer.
 *
 * inet_sock_set_state tells of TCP: who connects and who closes runs in its own context, so the owner is known; what
 * the peer causes runs wherever the packet came in. An accepted socket has no owner until somebody uses it:
 * sock_send_length and sock_recv_length tell, and tell of UDP, which has no states. No tracepoint tells of the end
 * of a UDP socket; a cgroup program does, which needs CAP_NET_ADMIN: events_release.bpf.c. Payload is never looked at.
 *
 * Nobody is woken: the reader looks by a timer.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* model/event.py, EventKind */
enum {
	CONNECT = 1,
	ESTABLISHED = 2,
	OWNER = 3,
	CLOSED = 4,
	LISTEN = 5,
};

enum {
	INBOUND = 1,
	REFUSED = 2,
	AGE_KNOWN = 4, /* it began while the programs ran */
};

/* decode.py reads it as it lies here; no holes. */
struct event {
	__u64 time_ns;
	__u64 cookie;
	__u64 age_ns;
	__u64 bytes_sent;
	__u64 bytes_received;
	__u64 start_ticks;
	__u32 netns;
	__u32 inode;
	__u32 uid;
	__u32 pid;
	__u8 kind;
	__u8 proto;
	__u8 family;
	__u8 state;
	__u16 sport; /* host order */
	__u16 dport;
	__u8 src[16];
	__u8 dst[16];
	__u8 flags;
	__u8 unused[7];
	char comm[16];
};

/* What is kept of a socket from its first event to its last. */
struct kept {
	__u64 opened_ns;
	__u64 start_ticks;
	__u32 pid;
	__u32 inode;
	__u32 flags;
	__u32 established;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kept);
} sockets SEC(".maps");

/* Of a UDP socket in use: whoever tells of its end sees nothing of it but this. */
struct datagrams {
	struct kept kept;
	struct event last;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct datagrams);
} udp_sockets SEC(".maps");

/* max_entries: its size in bytes, replaced by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

/* [0]: events that found the ring full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline void count_lost(void)
{
	__u32 first = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &first);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* The owner is the process that runs now, unless that is a kernel thread: a late close, NFS. */
static __always_inline bool claim(struct kept *kept, struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_struct *leader = task->group_leader;

	if (task->flags & PF_KTHREAD)
		return 0;
	kept->start_ticks = leader->start_boottime / TICK_NS;
	__builtin_memcpy(kept->comm, leader->comm, sizeof(kept->comm));
	kept->inode = sk->sk_socket->file->f_inode->i_ino;
	kept->pid = task->tgid;
	return 1;
}

/* Payload bytes. bytes_received counts the peer's FIN as well; bytes_acked our SYN and FIN: what was sent, without
 * what was sent again, is free of both. net/ipv4/tcp_input.c, tcp_output.c. */
static __always_inline void count_bytes(struct event *event, struct sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return;
	event->bytes_sent = tcp->bytes_sent - tcp->bytes_retrans;
	event->bytes_received = tcp->bytes_received;
	if (event->bytes_received && sk->__sk_common.skc_flags & (1 << SOCK_DONE))
		event->bytes_received--;
}

/* A socket that closes has given its port back already, __inet_put_port(), net/ipv4/inet_hashtables.c. */
static __always_inline __u16 last_port(struct sock *sk)
{
	__be16 port = 0;

	/* The verifier knows a struct sock only, and lets nobody look behind it without this. */
	bpf_core_read(&port, sizeof(port), &((struct inet_sock *)sk)->inet_sport);
	return bpf_ntohs(port);
}

static __always_inline void describe(struct event *event, struct sock *sk)
{
	event->cookie = bpf_get_socket_cookie(sk);
	event->netns = sk->__sk_common.skc_net.net->ns.inum;
	event->uid = sk->sk_uid.val;
	event->proto = sk->sk_protocol;
	event->family = sk->__sk_common.skc_family;
	event->sport = sk->__sk_common.skc_num;
	if (!event->sport)
		event->sport = last_port(sk);
	event->dport = bpf_ntohs(sk->__sk_common.skc_dport);
	/* Absent in a kernel without IPv6. */
	if (event->family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		__builtin_memcpy(event->src, &sk->__sk_common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(event->dst, &sk->__sk_common.skc_v6_daddr, 16);
	} else {
		__builtin_memcpy(event->src, &sk->__sk_common.skc_rcv_saddr, 4);
		__builtin_memcpy(event->dst, &sk->__sk_common.skc_daddr, 4);
	}
}

static __always_inline void attribute(struct event *event, struct kept *kept)
{
	event->inode = kept->inode;
	event->pid = kept->pid;
	event->start_ticks = kept->start_ticks;
	__builtin_memcpy(event->comm, kept->comm, sizeof(event->comm));
	event->flags = kept->flags;
	if (kept->opened_ns) {
		event->flags |= AGE_KNOWN;
		event->age_ns = event->time_ns - kept->opened_ns;
	}
}

static __always_inline struct event *reserve(void)
{
	struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);

	if (!event)
		count_lost();
	return event;
}

static __always_inline void tell(struct sock *sk, struct kept *kept, __u8 kind, __u8 state)
{
	struct event *event = reserve();

	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = bpf_ktime_get_ns();
	event->kind = kind;
	event->state = state;
	describe(event, sk);
	if (kept)
		attribute(event, kept);
	if (kind == CLOSED)
		count_bytes(event, sk);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline struct kept *keep(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int old, int new)
{
	struct kept *kept;

	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return 0;
	switch (new) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		kept = keep(sk);
		if (!kept)
			return 0;
		/* A socket may connect again after a refusal or AF_UNSPEC: nothing of before counts. */
		kept->opened_ns = bpf_ktime_get_ns();
		kept->flags = 0;
		kept->established = 0;
		claim(kept, sk);
		tell(sk, kept, new == TCP_LISTEN ? LISTEN : CONNECT, new);
		return 0;
	case TCP_ESTABLISHED:
		kept = keep(sk);
		if (!kept)
			return 0;
		if (!kept->opened_ns) {
			kept->opened_ns = bpf_ktime_get_ns();
			if (old == TCP_SYN_RECV)
				kept->flags = INBOUND;
		}
		kept->established = 1;
		tell(sk, kept, ESTABLISHED, new);
		return 0;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* close() or shutdown(): whoever calls it and is the first known to use the socket owns it. */
		kept = keep(sk);
		if (kept && !kept->pid && claim(kept, sk))
			tell(sk, kept, OWNER, new);
		return 0;
	case TCP_CLOSE:
		kept = bpf_sk_storage_get(&sockets, sk, 0, 0);
		/* A reset by close(): __tcp_close() shuts both directions first; one by the peer does so last. */
		if (kept && !kept->pid && (old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT) &&
		    (sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK)
			claim(kept, sk);
		if (kept && old == TCP_SYN_SENT)
			kept->flags |= REFUSED;
		tell(sk, kept, CLOSED, old);
		return 0;
	}
	return 0;
}

/* The first use of an accepted connection. None is kept of those from before the programs: who holds them is read
 * from their process. */
static __always_inline void used_tcp(struct sock *sk)
{
	struct kept *kept = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (kept && !kept->pid && claim(kept, sk))
		tell(sk, kept, OWNER, sk->__sk_common.skc_state);
}

static __always_inline void used_udp(struct sock *sk, int length, bool is_sent)
{
	struct datagrams *datagrams = bpf_sk_storage_get(&udp_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	struct event *last;
	bool first;

	if (!datagrams)
		return;
	last = &datagrams->last;
	first = !datagrams->kept.pid;
	if (first) {
		datagrams->kept.opened_ns = bpf_ktime_get_ns();
		if (!claim(&datagrams->kept, sk))
			return;
	}
	/* It may be connected, and to another peer, at any time. */
	if (first || last->dport != bpf_ntohs(sk->__sk_common.skc_dport)) {
		last->state = sk->__sk_common.skc_state;
		describe(last, sk);
	}
	if (first)
		tell(sk, &datagrams->kept, OWNER, last->state);
	if (length > 0)
		__sync_fetch_and_add(is_sent ? &last->bytes_sent : &last->bytes_received, length);
}

static __always_inline int used(struct sock *sk, int length, bool is_sent)
{
	__u16 family = sk->__sk_common.skc_family;
	__u16 proto = sk->sk_protocol;

	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (proto == IPPROTO_TCP)
		used_tcp(sk);
	else if (proto == IPPROTO_UDP)
		used_udp(sk, length, is_sent);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sk, int length)
{
	return used(sk, length, 1);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sk, int length)
{
	return used(sk, length, 0);
}

#ifdef TELL_RELEASE
/* inet_release() of every socket below the cgroup, in the context of whoever closes the last descriptor. */
SEC("cgroup/sock_release")
int released(struct bpf_sock *sk)
{
	struct datagrams *datagrams;
	struct event *event;

	if (sk->protocol != IPPROTO_UDP)
		return 1;
	datagrams = bpf_sk_storage_get(&udp_sockets, sk, 0, 0);
	if (!datagrams || !datagrams->kept.pid)
		return 1;
	event = reserve();
	if (!event)
		return 1;
	*event = datagrams->last;
	event->time_ns = bpf_ktime_get_ns();
	event->kind = CLOSED;
	attribute(event, &datagrams->kept);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 1;
}
#endif
