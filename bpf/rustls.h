/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * rustls 0.23, by the functions that all of its plaintext passes.
 *
 * A connection is a Rust value: it moves in memory, as one does that a function returns.  What stays is what it owns, so its
 * name is the cipher of its outgoing records, a box that is made with the keys.  Before there is one, and where it isn't known
 * where the pointer stands, the address of the value is the name.  The library makes no socket calls of its own, but what writes
 * records out is handed to it, and called by it on the same thread.
 */
#ifndef TLSCAP_RUSTLS_H
#define TLSCAP_RUSTLS_H

#define COOKIE_IDENTITY(cookie) ((cookie) >> 32) /* where in CommonState the pointer to the cipher is; 0: not known */
#define RUST_BORROWED (1ULL << 63) /* no Vec has a capacity as large: all such values are left for other variants */
#define RUST_CHUNKS 1024           /* writev takes no more */
#define RUST_CONNECTION 832        /* CommonState is at least as large */
#define RUST_NO_POINTER 4096       /* a Box of a type without a size points to its alignment */

/* enum Payload: Owned(Vec), Borrowed(slice).  The capacity tells which. */
struct rust_payload {
	__u64 capacity, address, length;
};

/* enum OutboundChunks: Single(slice), Multiple{chunks, start, end}.  The pointer to the chunks is never null. */
struct rust_outbound {
	__u64 chunks, count, start, end; /* Single: 0, address, length */
};

/* What is written of several chunks, one of them at a time. */
struct rust_pieces {
	struct call call;
	struct connection_key key;
	__u64 chunks;
	__u64 left;
};

INLINE __u64 rustls_name(__u64 state, __u64 cookie)
{
	__u64 cipher = 0;

	if (COOKIE_IDENTITY(cookie))
		bpf_probe_read_user(&cipher, sizeof(cipher), (void *)(state + COOKIE_IDENTITY(cookie)));
	return cipher < RUST_NO_POINTER ? state : cipher;
}

/* Calls of the same thread that write its records out are to tell the connection's address. */
INLINE void rustls_seek(struct thread *thread, struct connection_key *key, struct connection *conn, __u64 state)
{
	if (!thread)
		return;
	thread->rustls = conn && !(conn->flags & HAS_ADDRESS) ? state : 0;
	thread->rustls_of = *key;
}

SEC("uprobe")
int enter_rustls(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), id = bpf_get_current_pid_tgid(), self = PT_REGS_PARM1(ctx);
	struct config *c = settings();
	struct rust_outbound what = {};
	struct connection_key of = {};
	struct thread *thread = 0;
	struct call_key key = {};
	struct connection *conn;
	struct call call = {};

	if (!begin_call(c, &call, &thread, cookie))
		return 0;
	key.thread = id;
	key.sp = PT_REGS_SP(ctx);
	if (call.kind == CALL_RUSTLS_SEND) {
		/* The records are inside the connection that was written to last: so it is that one's. */
		if (!thread || !thread->rustls || self - thread->rustls >= RUST_CONNECTION)
			return 0;
		of = thread->rustls_of;
		conn = bpf_map_lookup_elem(&connections, &of);
		if (!conn || conn->flags & HAS_ADDRESS) {
			thread->rustls = 0;
			return 0;
		}
		call.ssl = of.ssl;
		call.wanted = ADDRESS_WANTED;
		want_address(thread, id, &of, 0);
	} else {
		if (bpf_probe_read_user(&what, sizeof(what), (void *)PT_REGS_PARM2(ctx)))
			return 0;
		call.ssl = rustls_name(self, cookie);
		call.buffer = what.chunks ? what.chunks : what.count;
		call.count = what.chunks ? what.count : 0;
		of.ssl = call.ssl;
		of.pid = id >> 32;
		of.incarnation = call.incarnation;
		/* Without keys yet, it is at its beginning. */
		conn = connection_of(c, &of, !COOKIE_IDENTITY(cookie) || call.ssl != self);
		rustls_seek(thread, &of, conn, self);
	}
	remember_call(thread, &key, &call);
	return 0;
}

static long rustls_piece(__u32 index, struct rust_pieces *p)
{
	struct config *c = settings();
	struct user_data chunk = {};

	if (!c || !p->left || bpf_probe_read_user(&chunk, sizeof(chunk), (void *)(p->chunks + sizeof(chunk) * index)))
		return 1;
	if (chunk.length > p->left)
		chunk.length = p->left;
	p->left -= chunk.length;
	p->call.buffer = chunk.address;
	if (chunk.length)
		left_data(c, &p->call, &p->key, chunk.length, OUTBOUND, 1);
	return 0;
}

SEC("uprobe")
int leave_rustls(struct pt_regs *ctx)
{
	struct thread *thread = THREAD_OF(1, 0);
	struct config *c = settings();
	struct rust_pieces p = {};
	struct call_key key = {};
	__u32 count;

	key.thread = bpf_get_current_pid_tgid();
	key.sp = PT_REGS_SP(ctx);
	if (!c || !recall_call(thread, &key, &p.call))
		return 0;
	if (p.call.kind == CALL_RUSTLS_SEND) {
		want_no_more(thread, &key.thread);
		return 0;
	}
	p.key.ssl = p.call.ssl;
	p.key.pid = key.thread >> 32;
	p.key.incarnation = p.call.incarnation;
	p.left = PT_REGS_RC(ctx);
	if (!p.left)
		return 0;
	count = p.call.count < RUST_CHUNKS ? p.call.count : RUST_CHUNKS;
	if (count) {
		p.chunks = p.call.buffer;
		bpf_loop(count, rustls_piece, &p, 0);
		p.call.buffer = 0; /* what is beyond can't be read: a gap */
	}
	if (p.left)
		left_data(c, &p.call, &p.key, p.left, OUTBOUND, 1);
	return 0;
}

/* Records can be sent from now on: what is known by this name belongs to a connection whose end was not seen. */
INLINE void rustls_start(struct config *c, struct connection_key *key, __u64 state, __u32 role)
{
	struct connection_key before = *key;
	struct connection *conn = bpf_map_lookup_elem(&connections, key), early;

	if (conn && (conn->bytes[0] || conn->flags & HAS_HANDSHAKE))
		close_connection(c, key, 1);
	before.ssl = state;
	if (state != key->ssl && (conn = bpf_map_lookup_elem(&connections, &before))) {
		/* Written before there were keys. */
		early = *conn;
		bpf_map_delete_elem(&connections, &before);
		bpf_map_update_elem(&connections, key, &early, BPF_ANY);
	}
	conn = connection_of(c, key, 0);
	if (!conn)
		return;
	conn->flags |= HAS_HANDSHAKE; /* not reported: when it began isn't known */
	if (role)
		report_open(conn->id, key->ssl, 0, 0, role);
}

SEC("uprobe")
int on_rustls(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), id = bpf_get_current_pid_tgid(), self = PT_REGS_PARM1(ctx);
	struct config *c = settings();
	struct rust_payload what = {};
	struct connection_key key = {};
	struct thread *thread = 0;
	struct call call = {};

	if (!begin_call(c, &call, &thread, cookie))
		return 0;
	call.ssl = key.ssl = rustls_name(self, cookie);
	key.pid = id >> 32;
	key.incarnation = call.incarnation;
	if (call.kind == CALL_RUSTLS_END) {
		close_connection(c, &key, 0);
		if (thread)
			thread->rustls = 0;
		return 0;
	}
	if (call.kind == CALL_RUSTLS_START) {
		rustls_start(c, &key, self, COOKIE_ARG(cookie));
		rustls_seek(thread, &key, bpf_map_lookup_elem(&connections, &key), self);
		return 0;
	}
	if (bpf_probe_read_user(&what, sizeof(what), (void *)PT_REGS_PARM2(ctx)) || !what.length)
		return 0;
	if (what.capacity < RUST_BORROWED && what.capacity < what.length) {
		count(COUNT_UNREADABLE, 1); /* no Vec: another layout */
		return 0;
	}
	rustls_seek(thread, &key, connection_of(c, &key, 1), self);
	call.buffer = what.address;
	left_data(c, &call, &key, what.length, INBOUND, 1);
	return 0;
}
#endif
