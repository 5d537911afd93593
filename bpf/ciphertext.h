/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which socket a connection is on when its TLS library never touches one: memory BIOs.
 *
 * The program itself carries ciphertext between the library and a socket: asyncio, Node, gRPC.  So the beginning
 * of a TLS record that the library hands out (BIO_write inside a TLS call) is compared with what is sent next, and that
 * of one that it takes in (BIO_read) with what sockets brought before.  A record's body is encrypted or holds
 * a hello's random: the same bytes are the same record.  What two sockets brought proves nothing and is not used.
 */
#ifndef TLSCAP_CIPHERTEXT_H
#define TLSCAP_CIPHERTEXT_H

#define CIPHER_LEAST 16 /* fewer bytes are no proof */
#define RECORD_HEADER 5
#define RECORD_HANDSHAKE 22
#define HELLO_RETRY 0x74ad21cf /* the first bytes of HelloRetryRequest's "random", RFC 8446 4.1.3 */

struct record_header {
	__u8 type, major, minor, high, low;
};

struct user_data {
	__u64 address, length; /* as struct iovec */
};

INLINE int is_record(struct record_header *h)
{
	return h->type >= 20 && h->type <= 24 && h->major == 3;
}

/* The user's registers at the system call that is running. */
INLINE void *system_call(long *number)
{
	void *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());

	*number = -1;
	bpf_probe_read_kernel(number, sizeof(*number), SYSCALL_NUMBER(regs));
	return regs;
}

/* The buffer of the socket call that is running; of a vector, its first part. */
INLINE int socket_buffer(struct user_data *data)
{
	long number;
	void *regs = system_call(&number);
	__u64 vector = 0;

	switch ((__u32)number) {
	case NR_read:
	case NR_write:
	case NR_sendto:
	case NR_recvfrom:
		bpf_probe_read_kernel(&data->address, sizeof(data->address), SYSCALL_ARG(regs, 1));
		bpf_probe_read_kernel(&data->length, sizeof(data->length), SYSCALL_ARG(regs, 2));
		return 1;
	case NR_readv:
	case NR_writev:
		bpf_probe_read_kernel(&vector, sizeof(vector), SYSCALL_ARG(regs, 1));
		break;
	case NR_sendmsg:
	case NR_recvmsg:
		bpf_probe_read_kernel(&vector, sizeof(vector), SYSCALL_ARG(regs, 1));
		bpf_probe_read_user(&vector, sizeof(vector), (void *)(vector + 16)); /* struct user_msghdr: msg_iov */
		break;
	default:
		return 0;
	}
	return bpf_probe_read_user(data, sizeof(*data), (void *)vector) == 0;
}

/* The name of a record by its body, of which `available` bytes are at hand.  False when there are too few for a proof. */
INLINE int name_body(struct cipher_key *key, __u64 address, __u64 available)
{
	__u64 length = available;

	OPAQUE(length);
	if (length > CIPHER_BYTES)
		length = CIPHER_BYTES;
	if (length < CIPHER_LEAST)
		return 0;
	key->length = length;
	return bpf_probe_read_user(key->bytes, length, (void *)address) == 0;
}

/* The same for bytes that begin with a record.  Records without a proof are stepped over. */
INLINE int name_record(struct cipher_key *key, __u64 address, __u64 available)
{
	struct record_header h = {};
	__u32 body = 0, random = 0;

	for (int i = 0; i < 3; i++) {
		if (available < RECORD_HEADER + CIPHER_LEAST || bpf_probe_read_user(&h, sizeof(h), (void *)address) ||
		    !is_record(&h))
			return 0;
		body = (__u32)h.high << 8 | h.low;
		if (body >= CIPHER_LEAST)
			break;
		address += RECORD_HEADER + body;
		available = available > RECORD_HEADER + body ? available - RECORD_HEADER - body : 0;
	}
	if (body < CIPHER_LEAST)
		return 0;
	available -= RECORD_HEADER;
	if (available < body && available < CIPHER_BYTES)
		return 0;
	if (!name_body(key, address + RECORD_HEADER, available < body ? available : body))
		return 0;
	if (h.type != RECORD_HANDSHAKE)
		return 1;
	/* In the clear, only the two hellos are unlike those of every other connection. */
	__builtin_memcpy(&random, key->bytes + 6, sizeof(random));
	return (key->bytes[0] == 1 || key->bytes[0] == 2) && random != HELLO_RETRY;
}

/* --- The library's side --- */

/* The connection that the innermost TLS call on the thread is about, when its address is still sought. */
INLINE struct connection *seeking(struct thread *thread, __u64 sp, struct connection_key *key)
{
	__u64 innermost = ~0ULL;
	struct connection *conn;

#pragma unroll
	for (int i = 0; i < SLOTS; i++) {
		if (thread->sp[i] > sp && thread->sp[i] < innermost) {
			innermost = thread->sp[i];
			key->ssl = thread->call[i].ssl;
			key->incarnation = thread->call[i].incarnation;
		}
	}
	if (innermost == ~0ULL || settled(thread, key->ssl))
		return 0;
	key->pid = bpf_get_current_pid_tgid() >> 32;
	conn = bpf_map_lookup_elem(&connections, key);
	return conn && !(conn->flags & HAS_ADDRESS) ? conn : 0;
}

INLINE void join_from_now_on(__u32 pid)
{
	__u32 zero = 0;
	__u64 *somebody = bpf_map_lookup_elem(&joining, &zero);
	struct process *p = bpf_map_lookup_elem(&processes, &pid);

	if (p)
		p->flags |= JOINS | UNJOINED;
	if (somebody)
		*somebody = 1;
}

SEC("uprobe")
int enter_bio(struct pt_regs *ctx)
{
	struct thread *thread = THREAD_OF(1, 0);
	struct connection_key of = {};
	struct cipher_key key = {};
	struct user_data data = {};
	__u32 kind = COOKIE_KIND(bpf_get_attach_cookie(ctx));
	struct connection *conn;

	conn = thread ? seeking(thread, PT_REGS_SP(ctx), &of) : 0;
	if (!conn)
		return 0;
	join_from_now_on(of.pid);
	if (kind == CALL_BIO_READ) {
		/* BIOs may stand in a chain: the last one asked is the one that has the bytes. */
		thread->bio_sp = PT_REGS_SP(ctx);
		thread->bio_buffer = PT_REGS_PARM2(ctx);
		thread->bio_of = of;
		return 0;
	}
	key.pid = of.pid;
	data.address = PT_REGS_PARM2(ctx);
	data.length = (int)PT_REGS_PARM3(ctx) > 0 ? (int)PT_REGS_PARM3(ctx) : 0;
	if (kind == CALL_BIO_WRITEV && bpf_probe_read_user(&data, sizeof(data), (void *)PT_REGS_PARM2(ctx)))
		return 0;
	if (!name_record(&key, data.address, data.length))
		return 0;
	conn->flags |= PROVEN;
	bpf_map_update_elem(&handed_out, &key, &of, BPF_ANY);
	return 0;
}

SEC("uretprobe")
int leave_bio(struct pt_regs *ctx)
{
	struct thread *thread = THREAD_OF(1, 0);
	struct connection_key of;
	struct cipher_key key = {};
	struct connection *conn;
	struct arrival *arrival = 0;
	struct config *c = settings();
	int got = (int)PT_REGS_RC(ctx);
	__u64 socket;

	if (!c || !thread || thread->bio_sp != return_slot(ctx))
		return 0;
	thread->bio_sp = 0;
	of = thread->bio_of;
	key.pid = of.pid;
	if (got <= 0)
		return 0;
	/* Most libraries read a record's header first, and its body with the next call. */
	if (name_record(&key, thread->bio_buffer, (__u32)got))
		arrival = bpf_map_lookup_elem(&taken_in, &key);
	if (!arrival && name_body(&key, thread->bio_buffer, (__u32)got))
		arrival = bpf_map_lookup_elem(&taken_in, &key);
	if (!arrival || arrival->ambiguous)
		return 0;
	socket = arrival->socket;
	if (bpf_map_lookup_elem(&relays, &socket))
		return 0;
	conn = bpf_map_lookup_elem(&connections, &of);
	if (conn && !(conn->flags & HAS_ADDRESS))
		report_address(c, conn, &arrival->at, NO_FD, FLAG_CIPHERTEXT);
	return 0;
}

/* --- The socket's side --- */

INLINE int somebody_joins(void)
{
	__u32 zero = 0;
	__u64 *somebody = bpf_map_lookup_elem(&joining, &zero);

	return somebody && *somebody;
}

/* What this socket brought went on through another one: it is a proxy's, not a library's. */
INLINE void is_relay(struct arrival *arrival, void *sk)
{
	__u64 socket = arrival->socket;
	__u32 one = 1;

	if (socket != (__u64)sk)
		bpf_map_update_elem(&relays, &socket, &one, BPF_ANY);
}

INLINE void sent(struct cipher_key *key, void *sk)
{
	struct connection_key *of = bpf_map_lookup_elem(&handed_out, key);
	struct config *c = settings();
	struct socket_address at = {};
	struct arrival *arrival = bpf_map_lookup_elem(&taken_in, key);
	struct connection *conn;

	if (arrival)
		is_relay(arrival, sk);
	if (!of || !c)
		return;
	conn = bpf_map_lookup_elem(&connections, of);
	/* It is sent once: whoever sends it again passes on what he has received. */
	bpf_map_delete_elem(&handed_out, key);
	if (conn && !(conn->flags & HAS_ADDRESS) && read_socket(&at, sk))
		report_address(c, conn, &at, NO_FD, FLAG_CIPHERTEXT);
}

INLINE void arrived(struct cipher_key *key, void *sk)
{
	struct arrival *before = bpf_map_lookup_elem(&taken_in, key);
	struct arrival now = {};

	if (before) {
		if (before->socket != (__u64)sk) {
			before->ambiguous = 1;
			is_relay(before, sk);
		}
		return;
	}
	now.socket = (__u64)sk;
	if (read_socket(&now.at, sk))
		bpf_map_update_elem(&taken_in, key, &now, BPF_ANY);
}

/* A socket has sent or brought so many bytes. */
INLINE void join_socket(void *sk, int moved, __u32 direction)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct process *p = bpf_map_lookup_elem(&processes, &pid);
	struct user_data data = {};
	struct cipher_key key = {};

	if (!p || !(p->flags & JOINS) || moved <= 0 || !socket_buffer(&data))
		return;
	key.pid = pid;
	if (!name_record(&key, data.address, data.length < (__u32)moved ? data.length : (__u32)moved))
		return;
	if (direction == OUTBOUND)
		sent(&key, sk);
	else
		arrived(&key, sk);
}

/* Whether the buffer of the socket call that is running begins with a TLS record. */
INLINE int carries_record(void)
{
	struct record_header h = {};
	struct user_data data = {};

	return socket_buffer(&data) && bpf_probe_read_user(&h, sizeof(h), (void *)data.address) == 0 && is_record(&h);
}

/*
 * Whether what a TLS call's thread sends can be TLS at all: inside one, programs also write to system logs and ask
 * other services.  Datagrams are QUIC's.
 */
INLINE int sends_record(void *sk)
{
	__u16 protocol = 0;

	KERNEL_READ(protocol, sk, sock, sk_protocol);
	return protocol == IPPROTO_UDP_ || carries_record();
}
#endif
