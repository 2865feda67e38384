/* iter/task_file: one record per descriptor on a TCP or UDP socket that is in its namespace's tables.
 *
 * The kernel calls it for every descriptor of every process in the reader's pid namespace. Threads that share
 * their leader's table are left out by the kernel itself. Sockets that sock_diag does not show either (a TCP
 * socket that neither listens nor connects, a UDP socket without a port) are left out here.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* In the order of model/held_socket.py, so that struct.iter_unpack gives its fields. No hole but the named ones:
 * what the stack held before must not get out. */
struct held_socket {
	__u32 pid;
	__u32 fd;
	__u64 start_ticks;
	char comm[16];
	__u64 cgroup_id;
	__u32 task_netns;
	__u32 process_uid;
	/* the row of the table: model/socket_row.py */
	__u8 family;
	__u8 state;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 of_thread;
	__u8 src[16];
	__u8 dst[16];
	__u32 ifindex;
	__u32 netns;
	__u64 cookie;
	__u32 uid;
	__u32 inode;
	/* behind it */
	__u64 netns_cookie;
	__u64 bytes_acked;
	__u64 bytes_received;
};

/* The process as the reader sees it: its number in the reader's pid namespace, its leader's name and start. */
static __always_inline void describe_process(struct held_socket *record, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	struct task_struct *reader = bpf_get_current_task_btf();
	unsigned int level = reader->thread_pid->level;
	struct pid *pid = leader->thread_pid;
	struct nsproxy *nsproxy = leader->nsproxy;

	record->pid = task->tgid;
	/* A reader inside a pid namespace: numbers[level].nr, as pid_nr_ns() in kernel/pid.c. The kernel's struct upid is
	 * larger than ours, and the index is no constant: the size of a step must be asked for. */
	if (level)
		bpf_probe_read_kernel(&record->pid, sizeof(record->pid),
				      (void *)&pid->numbers + level * bpf_core_type_size(struct upid) +
					      bpf_core_field_offset(struct upid, nr));
	record->start_ticks = leader->start_boottime / TICK_NS;
	__builtin_memcpy(record->comm, leader->comm, sizeof(record->comm));
	record->process_uid = leader->cred->euid.val;
	record->cgroup_id = leader->cgroups->dfl_cgrp->kn->id;
	/* A leader that ended has left its namespaces; its threads have not. */
	if (!nsproxy)
		nsproxy = task->nsproxy;
	record->task_netns = nsproxy->net_ns->ns.inum;
	record->of_thread = task->pid != task->tgid;
}

/* The row, as inet_diag_msg_common_fill() and inet_diag_msg_attrs_fill() fill theirs, net/ipv4/inet_diag.c. */
static __always_inline void describe_socket(struct held_socket *record, struct sock *sk)
{
	struct net *net = sk->__sk_common.skc_net.net;

	record->sport = bpf_htons(sk->__sk_common.skc_num);
	record->dport = sk->__sk_common.skc_dport;
	/* Absent in a kernel without IPv6. */
	if (record->family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		__builtin_memcpy(record->src, &sk->__sk_common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(record->dst, &sk->__sk_common.skc_v6_daddr, 16);
	} else {
		__builtin_memcpy(record->src, &sk->__sk_common.skc_rcv_saddr, 4);
		__builtin_memcpy(record->dst, &sk->__sk_common.skc_daddr, 4);
	}
	record->ifindex = sk->__sk_common.skc_bound_dev_if;
	record->cookie = bpf_get_socket_cookie(sk);
	record->uid = sk->sk_uid.val;
	record->netns = net->ns.inum;
	record->netns_cookie = net->net_cookie;
}

SEC("iter/task_file")
int held_sockets(struct bpf_iter__task_file *ctx)
{
	/* Read once: the verifier forgets that a field of ctx was checked when it is read again. */
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task;
	struct held_socket record = {};
	struct tcp_sock *tcp;
	struct socket *socket;
	struct sock *sk;
	__u16 protocol; /* one byte would take multipath TCP, 262, for TCP */

	if (!file || !task)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	record.family = sk->__sk_common.skc_family;
	if (record.family != AF_INET && record.family != AF_INET6)
		return 0;
	protocol = sk->sk_protocol;
	record.proto = protocol;
	record.state = sk->__sk_common.skc_state;
	if (protocol == IPPROTO_TCP && sk->sk_type == SOCK_STREAM) {
		if (record.state == TCP_CLOSE)
			return 0;
		tcp = bpf_skc_to_tcp_sock(sk);
		if (tcp && record.state == TCP_LISTEN) {
			/* Not accepted yet, and handshakes under way: sockets that no descriptor stands for. */
			record.bytes_received =
				sk->sk_ack_backlog + tcp->inet_conn.icsk_accept_queue.qlen.counter;
		} else if (tcp) {
			record.bytes_acked = tcp->bytes_acked;
			record.bytes_received = tcp->bytes_received;
		}
	} else if (protocol != IPPROTO_UDP || sk->sk_type != SOCK_DGRAM || !sk->__sk_common.skc_num) {
		return 0;
	}
	record.fd = ctx->fd;
	record.inode = file->f_inode->i_ino;
	describe_process(&record, task);
	describe_socket(&record, sk);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
