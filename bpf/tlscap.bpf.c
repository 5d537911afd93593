// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tlscap's probes.
 *
 * A TLS call is noted when it is entered and reported when it returns, with the count it really
 * moved: callers retry, write partially and read nothing.  The ledger of its connection advances by
 * that count whatever becomes of the samples, so user space sees every hole, its place and its size.
 *
 * The address of a connection is read from the socket that the TLS call itself uses: while a call of a
 * connection without a known address runs, the thread's first socket call is looked at.
 */
#ifdef TLSCAP_BCC
#include <uapi/linux/ptrace.h>
#include <uapi/linux/bpf.h>
#define SEC(name)
#else
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#endif
#include "events.h"
#include "kernel.h"
#include "maps.h"

/*
 * Hides a value's history from the optimizer, so that the bound checked last is the one the verifier sees.
 * Lengths that are checked have 64 bits: BCC's code generator has no 32-bit compare, and would check a copy.
 */
#define OPAQUE(value) asm volatile("" : "+r"(value))
#define INLINE static __always_inline
#ifdef TLSCAP_BCC
#define SHARED INLINE
#else
#define SHARED static __attribute__((noinline)) /* verified and loaded once for each program that uses it */
#endif

/* What a call does with its arguments.  Kept in samples (sample_data.call). */
enum call_kind {
	CALL_READ = 1,     /* (ssl, buffer, n) -> count */
	CALL_WRITE = 2,    /* the same */
	CALL_READ_EX = 3,  /* (ssl, buffer, n, *count) -> 1 on success */
	CALL_WRITE_EX = 4, /* the same; or *count fifth, after flags */
	CALL_SENDFILE = 5, /* (ssl, fd, offset, size, flags) -> count */
	CALL_HANDSHAKE = 6,
	CALL_PEEK = 7,
	CALL_PEEK_EX = 8,
	CALL_READ_EARLY = 9,
	CALL_WRITE_EARLY = 10,
	CALL_SHUTDOWN = 11,
	CALL_SERVERNAME = 12, /* (ssl, type) -> text */
	CALL_ALPN = 13,       /* (ssl, **text, *length) */
	CALL_READ_INNER = 14, /* ssl_read_internal: as CALL_READ_EX, but 0 means the end and < 0 failure */
	CALL_WRITE_INNER = 15,
	CALL_HANDSHAKE_ZERO = 16, /* as CALL_HANDSHAKE, but 0 is success */
	CALL_RECV_FLAGS = 17,     /* (fd, buffer, n, flags) -> count; flag 2 only peeks */
	CALL_RECV_PACKET = 18,    /* (session, *packet) -> count */
	CALL_FLUSH = 19,          /* sends what was counted when it was handed over: calls inside it count nothing */
	CALL_INIT = 20,           /* (*session, flags) -> 0; flag 1 is a server */
	CALL_ALPN_DATUM = 21,     /* (session, *{text, u32 length}) -> 0 */
	CALL_ALPN_TEXT = 22,      /* (ssl) -> text */
	CALL_BIO_READ = 23,       /* (bio, buffer, n) -> count, of ciphertext */
	CALL_BIO_WRITE = 24,
	CALL_BIO_WRITEV = 29,     /* (pointer, vector, count) */
	CALL_GO_READ = 25,        /* crypto/tls.(*Conn) */
	CALL_GO_WRITE = 26,
	CALL_GO_CLIENT = 27,      /* a handshake: nil is success */
	CALL_GO_SERVER = 28,
	CALL_RUSTLS_WRITE = 30,   /* CommonState::buffer_plaintext(self, &OutboundChunks) -> count */
	CALL_RUSTLS_READ = 31,    /* take_received_plaintext(self, &Payload) */
	CALL_RUSTLS_SEND = 32,    /* ChunkVecBuffer::write_to, of a buffer inside CommonState */
	CALL_RUSTLS_START = 33,   /* the handshake is done */
	CALL_RUSTLS_END = 34,
};

/* An attach cookie: what a function is, and which of its arguments, counted from 1, are special. */
#define COOKIE_KIND(cookie) ((cookie) & 0xff)
#define COOKIE_ARG(cookie) ((cookie) >> 8 & 15)     /* the address of the count; of a name */
#define COOKIE_LENGTH(cookie) ((cookie) >> 12 & 15) /* the length of a name; 0: a zero ends it */
#define COOKIE_UNPROVEN (1 << 19)                   /* found by a signature: believed when it handles TLS records */
#define COOKIE_AT_RETURN (1 << 18)                  /* the probe is on a return instruction */
#define COOKIE_INDIRECT (1 << 17)                   /* Go: the receiver begins with a pointer to the connection */
#define COOKIE_STACK (1 << 16)                      /* Go before 1.17: arguments and results on the stack */

enum connection_flags {
	HAS_ADDRESS = 1,
	HAS_HANDSHAKE = 2,
	HAS_SNI = 4,
	HAS_ALPN = 8,
	SENT_EOF = 16,
	SENT_SHUTDOWN = 32,
	FLUSHING = 64,
	PROVEN = 256, /* a call of it handed out or took in a TLS record */
	DATAGRAM = 128, /* QUIC: a read of nothing is not an end */
};

enum process_flags {
	TRACED = 1,
	JOINS = 2,    /* it hands ciphertext to its TLS library in memory: its socket calls are compared with that */
	UNJOINED = 4, /* user space was told that it may have to be looked at so */
};

#define ZERO_ENDED (~0ULL)

INLINE struct config *settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

INLINE void count(__u32 which, __u64 amount)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		*value += amount;
}

/* A number no other CPU and no earlier call has been given. */
INLINE __u64 fresh_id(void)
{
	__u32 zero = 0;
	struct sequence *s = bpf_map_lookup_elem(&sequence, &zero);

	if (!s)
		return 0;
	return ((__u64)(bpf_get_smp_processor_id() + 1) << 40) | ++s->last;
}

/* What threads remember of connections no longer holds. */
INLINE void unsettle(void)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&epoch, &zero);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* --- Submitting --- */

/* The small samples carry identity and accounting: they may use the room that data leaves free. */
INLINE __u64 wake_flag(struct config *c, __u32 size)
{
	__u64 unread = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);

	/* Memory order and speed: the reader polls; it is woken once, when the ring begins to fill. */
	if (c->wake_always || (unread >= c->wake_mark && unread < c->wake_mark + size + 8))
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

INLINE void fill_header(struct sample_header *h, __u16 type, __u32 size, __u64 conn)
{
	__u64 thread = bpf_get_current_pid_tgid();

	h->type = type;
	h->flags = 0;
	h->size = size;
	h->time_ns = bpf_ktime_get_ns();
	h->pid = thread >> 32;
	h->tid = (__u32)thread;
	h->conn = conn;
}

INLINE void lost_sample(__u64 bytes)
{
	count(COUNT_DROPPED_SAMPLES, 1);
	if (bytes)
		count(COUNT_DROPPED_BYTES, bytes);
}

/* --- Processes and filters --- */

INLINE void *leader(void)
{
	void *task = (void *)bpf_get_current_task(), *first = 0;

	KERNEL_READ(first, task, task_struct, group_leader);
	return first;
}

/* A process goes by its own name, and by that of its program's file: Node 24 calls itself "MainThread". */
INLINE int matches_name(void *first)
{
	struct comm_key key = {};
	struct {
		void *mount, *dentry;
	} path = {};
	struct {
		__u64 hash_and_length;
		const char *text;
	} name = {};
	void *mm = 0, *file = 0;

	KERNEL_READ(key.comm, first, task_struct, comm);
	if (bpf_map_lookup_elem(&match_comm, &key))
		return 1;
	KERNEL_READ(mm, first, task_struct, mm);
	if (mm)
		KERNEL_READ(file, mm, mm_struct, exe_file);
	if (!file)
		return 0;
	KERNEL_READ(path, file, file, f_path);
	KERNEL_READ(name, path.dentry, dentry, d_name);
	__builtin_memset(&key, 0, sizeof(key));
	bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), name.text);
	return bpf_map_lookup_elem(&match_comm, &key) != 0;
}

INLINE int matches(struct config *c, __u32 pid, void *first)
{
	if (c->filter & FILTER_PID) {
		if (!bpf_map_lookup_elem(&targets, &pid))
			return 0;
	}
	if (c->filter & FILTER_UID) {
		__u32 uid = (__u32)bpf_get_current_uid_gid();

		if (!bpf_map_lookup_elem(&match_uid, &uid))
			return 0;
	}
	if (c->filter & FILTER_COMM) {
		if (!matches_name(first))
			return 0;
	}
	if (c->filter & FILTER_CGROUP) {
		__u64 id = bpf_get_current_cgroup_id();

		if (bpf_map_lookup_elem(&match_cgroup, &id))
			return 1;
		/* A container's processes may sit in groups below it. */
#pragma unroll
		for (int level = 1; level < 12; level++) {
			id = bpf_get_current_ancestor_cgroup_id(level);
			if (bpf_map_lookup_elem(&match_cgroup, &id))
				return 1;
		}
		return 0;
	}
	return 1;
}

SHARED void report_process(__u32 pid, void *first, __u64 start_ns)
{
	struct sample_process *s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_process), 0);
	void *parent = 0, *mm = 0;
	unsigned long from = 0, to = 0, environment_end = 0;
	__u64 length;

	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_PROCESS, sizeof(*s), 0);
	s->start_ns = start_ns;
	s->ppid = 0;
	s->uid = (__u32)bpf_get_current_uid_gid();
	s->cmdline_len = 0;
	s->pad = 0;
	KERNEL_READ(s->comm, first, task_struct, comm);
	KERNEL_READ(parent, first, task_struct, real_parent);
	if (parent)
		KERNEL_READ(s->ppid, parent, task_struct, tgid);
	KERNEL_READ(mm, first, task_struct, mm);
	if (mm) {
		KERNEL_READ(from, mm, mm_struct, arg_start);
		KERNEL_READ(to, mm, mm_struct, arg_end);
		KERNEL_READ(environment_end, mm, mm_struct, env_end);
	}
	length = to > from ? to - from : 0;
	OPAQUE(length);
	if (length > CMDLINE_MAX)
		length = CMDLINE_MAX;
	if (bpf_probe_read_user(s->cmdline, length, (void *)from) == 0)
		s->cmdline_len = length;
	/* execve leaves the path it was given above the environment, out of reach of those who rename themselves. */
	if (bpf_probe_read_user_str(s->exe, sizeof(s->exe), (void *)environment_end) < 0)
		s->exe[0] = 0;
	bpf_ringbuf_submit(s, BPF_RB_FORCE_WAKEUP); /* user space looks it up while it lives */
}

/* The process's entry when its calls are to be recorded, else null. */
INLINE struct process *traced_process(struct config *c, __u32 pid)
{
	struct process *known = bpf_map_lookup_elem(&processes, &pid);
	struct process fresh = {};
	void *first;

	if (!known) {
		first = leader();
		fresh.flags = matches(c, pid, first) ? TRACED : 0;
		fresh.incarnation = (__u32)fresh_id();
		/* The low half of the id repeats on every CPU: fold the CPU in. */
		fresh.incarnation = fresh.incarnation << 8 | (bpf_get_smp_processor_id() & 0xff);
		KERNEL_READ(fresh.start_ns, first, task_struct, start_boottime);
		bpf_map_update_elem(&processes, &pid, &fresh, BPF_ANY);
		if (fresh.flags)
			report_process(pid, first, fresh.start_ns);
		known = bpf_map_lookup_elem(&processes, &pid);
	}
	return known && known->flags & TRACED ? known : 0;
}

/* --- Connections --- */

SHARED void report_open(__u64 id, __u64 ssl, __u64 start_ns, __u32 midstream, __u32 role)
{
	struct config *c = settings();
	struct sample_open *s;

	if (!c)
		return;
	count(COUNT_CONNECTIONS, 1);
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_open), 0);
	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_OPEN, sizeof(*s), id);
	s->ssl = ssl;
	s->start_ns = start_ns;
	s->midstream = midstream;
	s->role = role;
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

INLINE struct connection *connection_of(struct config *c, struct connection_key *key, __u32 midstream)
{
	struct connection *known = bpf_map_lookup_elem(&connections, key);
	struct connection fresh = {};
	struct process *p;

	if (known)
		return known;
	fresh.id = fresh_id();
	fresh.pid = key->pid;
	if (bpf_map_update_elem(&connections, key, &fresh, BPF_NOEXIST)) {
		count(COUNT_TABLE_FULL, 1);
		return 0;
	}
	p = bpf_map_lookup_elem(&processes, &key->pid);
	report_open(fresh.id, key->ssl, p ? p->start_ns : 0, midstream, ROLE_UNKNOWN);
	return bpf_map_lookup_elem(&connections, key);
}

SHARED void close_connection(struct config *c, struct connection_key *key, __u32 recycled)
{
	struct connection *known = bpf_map_lookup_elem(&connections, key);
	struct connection last;
	struct sample_close *s;

	if (!known)
		return;
	last = *known;
	bpf_map_delete_elem(&connections, key);
	unsettle();
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_close), 0);
	if (!s) {
		/* The accounting must survive a full ring: user space collects these at the end. */
		lost_sample(0);
		bpf_map_update_elem(&orphans, &last.id, &last, BPF_ANY);
		return;
	}
	fill_header(&s->h, SAMPLE_CLOSE, sizeof(*s), last.id);
	s->bytes[0] = last.bytes[0];
	s->bytes[1] = last.bytes[1];
	s->recycled = recycled;
	s->pad = 0;
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

SHARED void report_small(struct config *c, __u16 type, __u64 conn)
{
	struct sample_header *s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_header), 0);

	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(s, type, sizeof(*s), conn);
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

SHARED void report_name(struct config *c, __u64 conn, __u32 kind, __u64 address, __u64 length)
{
	struct sample_name *s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_name), 0);
	long got;

	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_NAME, sizeof(*s), conn);
	s->kind = kind;
	s->length = 0;
	s->pad = 0;
	if (length == ZERO_ENDED) {
		got = bpf_probe_read_user_str(s->text, sizeof(s->text), (void *)address);
		if (got > 1)
			s->length = got - 1; /* without the final zero */
	} else {
		OPAQUE(length);
		if (length > NAME_MAX_LEN)
			length = NAME_MAX_LEN;
		if (bpf_probe_read_user(s->text, length, (void *)address) == 0)
			s->length = length;
	}
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

/* --- Data --- */

struct transfer {
	struct config *c;
	__u64 conn;
	__u64 source; /* user address of the next byte */
	__u64 offset; /* ledger position of the next byte */
	__u64 call_len;
	__u64 entry_ns;
	__u64 return_ns;
	__u64 thread;
	__u32 direction;
	__u32 kind;
	__u32 flags;
};

INLINE void fill_data(struct sample_data *s, struct transfer *t, __u32 length, __u32 captured, __u32 reason)
{
	s->h.type = SAMPLE_DATA;
	s->h.flags = t->flags;
	s->h.size = sizeof(*s) + captured;
	s->h.time_ns = t->return_ns;
	s->h.pid = t->thread >> 32;
	s->h.tid = (__u32)t->thread;
	s->h.conn = t->conn;
	s->offset = t->offset;
	s->call_len = t->call_len;
	s->entry_ns = t->entry_ns;
	s->length = length;
	s->captured = captured;
	s->direction = t->direction;
	s->reason = reason;
	s->call = t->kind;
	s->pad = 0;
}

/* Data may not take the room that small samples need.  One look at the ring answers that and whether to wake its reader. */
INLINE int room_for_data(struct config *c, __u32 size, __u64 *wake)
{
	__u64 unread = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);

	*wake = c->wake_always || (unread < c->wake_mark && unread + size >= c->wake_mark) ? BPF_RB_FORCE_WAKEUP
											 : BPF_RB_NO_WAKEUP;
	return unread < c->data_limit;
}

/* A whole chunk.  True when it went out. */
INLINE void submit_full(struct transfer *t)
{
	struct sample_data *s = 0;
	__u32 captured = CHUNK_MAX, reason = GAP_NONE;
	__u64 wake = 0;

	if (room_for_data(t->c, sizeof(struct sample_data) + CHUNK_MAX, &wake))
		s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_data) + CHUNK_MAX, 0);
	if (!s) {
		lost_sample(CHUNK_MAX);
		return;
	}
	if (bpf_probe_read_user(s + 1, CHUNK_MAX, (void *)t->source)) {
		count(COUNT_UNREADABLE, 1);
		captured = 0;
		reason = GAP_UNREADABLE;
	}
	fill_data(s, t, CHUNK_MAX, captured, reason);
	count(COUNT_SAMPLES, 1);
	bpf_ringbuf_submit(s, wake);
}

/* Reservations must have constant sizes: `room` is a constant where this is called.  True when the sample went out. */
INLINE int submit_within(struct transfer *t, __u32 length, __u32 room, __u64 wake)
{
	struct sample_data *s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_data) + room, 0);
	__u64 captured = length;
	__u32 reason = GAP_NONE;

	if (!s)
		return 0;
	OPAQUE(captured);
	if (captured > room)
		captured = room;
	if (bpf_probe_read_user(s + 1, captured, (void *)t->source)) {
		count(COUNT_UNREADABLE, 1);
		captured = 0;
		reason = GAP_UNREADABLE;
	}
	fill_data(s, t, length, captured, reason);
	count(COUNT_SAMPLES, 1);
	bpf_ringbuf_submit(s, wake);
	return 1;
}

/* The rest of a call, at most a chunk.  A few sizes keep small samples small. */
INLINE void submit_rest(struct transfer *t, __u32 length)
{
	__u64 wake = 0;
	int sent = 0;

	if (!length)
		return;
	if (room_for_data(t->c, length, &wake)) {
		if (length <= 128)
			sent = submit_within(t, length, 128, wake);
		else if (length <= 512)
			sent = submit_within(t, length, 512, wake);
		else if (length <= 1280)
			sent = submit_within(t, length, 1280, wake);
		else if (length <= 4096)
			sent = submit_within(t, length, 4096, wake);
		else
			sent = submit_within(t, length, CHUNK_MAX, wake);
	}
	if (!sent)
		lost_sample(length);
}

/* `length` bytes that are not stored, for a reason known here. */
INLINE void submit_gap(struct transfer *t, __u64 length, __u32 reason)
{
	struct sample_data *s;

	/* The field has 32 bits: larger holes are what the next sample's offset says. */
	if (!length || length > 0xffffffff)
		return;
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_data), 0);
	if (!s) {
		lost_sample(length);
		return;
	}
	fill_data(s, t, length, 0, reason);
	bpf_ringbuf_submit(s, wake_flag(t->c, sizeof(struct sample_data)));
}

INLINE void advance(struct transfer *t)
{
	t->source += CHUNK_MAX;
	t->offset += CHUNK_MAX;
}

#ifndef TLSCAP_BCC
static long submit_nth(__u32 index, struct transfer *t)
{
	/* The callback's context is a copy to the verifier: the pointer to the settings is fetched anew. */
	struct transfer now = *t;

	now.c = settings();
	if (!now.c)
		return 1;
	submit_full(&now);
	advance(t);
	return 0;
}
#endif

/* Kernels without bpf_loop copy this many whole chunks of a call, and say what is beyond. */
#define BOUNDED_CHUNKS 64

INLINE void submit_call(struct transfer *t, __u64 length, __u64 keep, int has_loop)
{
	__u32 whole = keep / CHUNK_MAX, rest = keep % CHUNK_MAX;
	__u64 beyond = 0;

#ifndef TLSCAP_BCC
	if (has_loop) {
		struct transfer copy = *t;

		copy.c = 0;
		if (whole)
			bpf_loop(whole, submit_nth, &copy, 0);
		t->source = copy.source;
		t->offset = copy.offset;
	} else
#endif
	{
		for (__u32 i = 0; i < BOUNDED_CHUNKS; i++) {
			/* LLVM 19 would count down from the smaller bound, of which the verifier can't tell that it ends. */
			asm volatile("" : "+r"(i));
			if (i >= whole)
				break;
			submit_full(t);
			advance(t);
		}
		if (whole > BOUNDED_CHUNKS) {
			beyond = keep - (__u64)BOUNDED_CHUNKS * CHUNK_MAX;
			rest = 0;
		}
	}
	submit_rest(t, rest);
	t->offset += rest;
	if (beyond) {
		submit_gap(t, beyond, GAP_CALL_TOO_LARGE);
		t->offset += beyond;
	}
	submit_gap(t, length - keep, GAP_SNAPLEN);
}

/* --- Threads and their pending calls --- */

#ifdef TLSCAP_BCC
struct thread {
	__u64 wants; /* there are no task maps: nobody has one of these */
};
#define THREAD_OF(modern, flags) ((struct thread *)0)
#else
#define THREAD_OF(modern, flags) \
	((modern) ? (struct thread *)bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, flags) : 0)
#endif

INLINE void remember_call(struct thread *thread, struct call_key *key, struct call *call)
{
#ifndef TLSCAP_BCC
	if (thread) {
#pragma unroll
		for (int i = 0; i < SLOTS; i++) {
			if (thread->sp[i] == key->sp) /* the call before was left by a longjmp */
				thread->sp[i] = 0;
		}
#pragma unroll
		for (int i = 0; i < SLOTS; i++) {
			if (!thread->sp[i]) {
				thread->call[i] = *call;
				thread->sp[i] = key->sp;
				return;
			}
		}
	}
#endif
	bpf_map_update_elem(&calls, key, call, BPF_ANY);
}

/* The call that returns now, taken off the list.  False when its entry was not seen. */
INLINE int recall_call(struct thread *thread, struct call_key *key, struct call *call)
{
	struct call *pending;
#ifndef TLSCAP_BCC
	if (thread) {
#pragma unroll
		for (int i = 0; i < SLOTS; i++) {
			if (thread->sp[i] == key->sp) {
				*call = thread->call[i];
				thread->sp[i] = 0;
				return 1;
			}
		}
	}
#endif
	pending = bpf_map_lookup_elem(&calls, key);
	if (!pending)
		return 0;
	*call = *pending;
	bpf_map_delete_elem(&calls, key);
	return 1;
}

/* Which program of its process a thread runs, or 0 when its calls are not to be recorded. */
INLINE __u32 traced_incarnation(struct config *c, __u32 pid, struct thread **thread, int modern)
{
	struct process *p;
#ifndef TLSCAP_BCC
	__u64 exec_id = modern ? ((struct task_struct *)bpf_get_current_task_btf())->self_exec_id : 0;

	*thread = THREAD_OF(modern, 0);
	if (*thread && (*thread)->incarnation && (*thread)->exec_id == exec_id)
		return (*thread)->incarnation;
#endif
	p = traced_process(c, pid);
	if (!p)
		return 0;
#ifndef TLSCAP_BCC
	if (!*thread)
		*thread = THREAD_OF(modern, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (*thread) {
		(*thread)->exec_id = exec_id;
		(*thread)->incarnation = p->incarnation;
		(*thread)->settled = 0;
		(*thread)->wants = 0;
	}
#endif
	return p->incarnation;
}

#ifndef TLSCAP_BCC
/* A call begins, of a process that is recorded.  False for the others. */
INLINE int begin_call(struct config *c, struct call *call, struct thread **thread, __u64 cookie)
{
	if (!c)
		return 0;
	call->incarnation = traced_incarnation(c, bpf_get_current_pid_tgid() >> 32, thread, 1);
	call->entry_ns = bpf_ktime_get_ns();
	call->kind = COOKIE_KIND(cookie);
	return call->incarnation != 0;
}
#endif

INLINE __u64 current_epoch(void)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&epoch, &zero);

	return value ? *value : 0;
}

/* Whether the connection is one whose address is known, as far as the thread remembers. */
INLINE int settled(struct thread *thread, __u64 ssl)
{
#ifdef TLSCAP_BCC
	return 0;
#else
	return thread && thread->settled == ssl && thread->settled_epoch == current_epoch();
#endif
}

INLINE void settle(struct thread *thread, __u64 ssl, __u64 now)
{
#ifndef TLSCAP_BCC
	if (thread) {
		thread->settled = ssl;
		thread->settled_epoch = now;
	}
#endif
}

/* The next socket call of this thread, up to the end of its TLS call, tells this connection's address. */
INLINE void want_address(struct thread *thread, __u64 id, struct connection_key *key, __u8 unproven)
{
#ifndef TLSCAP_BCC
	if (thread) {
		thread->wanted = *key;
		thread->unproven = unproven;
		thread->goroutine = 0;
		thread->wants = 1;
		return;
	}
#endif
	bpf_map_update_elem(&wanted, &id, key, BPF_ANY);
}

INLINE struct connection_key *wanted_by(struct thread *thread, __u64 *id)
{
#ifndef TLSCAP_BCC
	if (thread)
		return thread->wants ? &thread->wanted : 0;
#endif
	return bpf_map_lookup_elem(&wanted, id);
}

INLINE void want_no_more(struct thread *thread, __u64 *id)
{
#ifndef TLSCAP_BCC
	if (thread) {
		thread->wants = 0;
		return;
	}
#endif
	bpf_map_delete_elem(&wanted, id);
}

/* --- Entering a TLS call --- */

INLINE int is_write(__u32 kind)
{
	return kind == CALL_WRITE || kind == CALL_WRITE_EX || kind == CALL_WRITE_INNER;
}

INLINE int is_handshake(__u32 kind)
{
	return kind == CALL_HANDSHAKE || kind == CALL_HANDSHAKE_ZERO || kind == CALL_GO_CLIENT || kind == CALL_GO_SERVER;
}

enum entered { ADDRESS_KNOWN = 0, ADDRESS_WANTED = 1, NOT_COUNTED = 2 };

/* A call of this connection begins. */
INLINE enum entered enter_connection(struct config *c, struct thread *thread, struct call *call, __u64 id)
{
	struct connection_key key = {};
	struct connection *conn;
	__u64 now = current_epoch(); /* before the table is looked at */

	key.ssl = call->ssl;
	key.pid = id >> 32;
	key.incarnation = call->incarnation;
	conn = connection_of(c, &key, !is_handshake(call->kind));
	if (!conn)
		return ADDRESS_KNOWN;
	if (is_handshake(call->kind)) {
		if (!(conn->flags & HAS_HANDSHAKE)) {
			if (!conn->handshake_start_ns)
				conn->handshake_start_ns = call->entry_ns;
			conn->handshake_calls++;
		}
	} else if (call->kind == CALL_FLUSH) {
		conn->flags |= FLUSHING;
		settle(thread, 0, now);
		return ADDRESS_KNOWN;
	} else if (conn->flags & FLUSHING) {
		return NOT_COUNTED;
	}
	/* At the end of a connection its round-trip time is known best: look once more. */
	if (!(conn->flags & HAS_ADDRESS) || call->kind == CALL_SHUTDOWN) {
		want_address(thread, id, &key, call->unproven);
		return ADDRESS_WANTED;
	}
	settle(thread, call->ssl, now);
	return ADDRESS_KNOWN;
}

INLINE int enter_call(struct pt_regs *ctx, __u32 kind, __u64 count_address, int modern, __u8 unproven)
{
	struct config *c = settings();
	struct thread *thread = 0;
	struct call_key key = {};
	struct call call = {};

	if (!c)
		return 0;
	key.thread = bpf_get_current_pid_tgid();
	key.sp = PT_REGS_SP(ctx);
	call.incarnation = traced_incarnation(c, key.thread >> 32, &thread, modern);
	if (!call.incarnation)
		return 0;
	call.ssl = PT_REGS_PARM1(ctx);
	call.buffer = PT_REGS_PARM2(ctx);
	call.count = kind == CALL_ALPN ? PT_REGS_PARM3(ctx) : count_address;
	call.entry_ns = bpf_ktime_get_ns();
	call.kind = kind;
	call.unproven = unproven;
	switch (kind) {
	case CALL_SERVERNAME:
	case CALL_ALPN:
	case CALL_ALPN_DATUM:
	case CALL_ALPN_TEXT:
		break;
	case CALL_INIT: /* there is no session yet */
		call.buffer = PT_REGS_PARM1(ctx);
		call.count = PT_REGS_PARM2(ctx);
		break;
	case CALL_HANDSHAKE:
	case CALL_HANDSHAKE_ZERO:
	case CALL_SHUTDOWN:
	case CALL_FLUSH:
		call.wanted = enter_connection(c, thread, &call, key.thread);
		break;
	case CALL_RECV_FLAGS:
		call.kind = PT_REGS_PARM4(ctx) & 2 ? CALL_PEEK : CALL_READ;
		/* fall through */
	default:
		if (!settled(thread, call.ssl))
			call.wanted = enter_connection(c, thread, &call, key.thread);
		if (call.wanted == NOT_COUNTED)
			return 0;
	}
	remember_call(thread, &key, &call);
	return 0;
}

/*
 * With attach cookies (Linux 5.15) one program serves every function: the cookie holds the kind and
 * which argument is the address of the count.  Without them, one small program for each.
 */
#ifndef TLSCAP_BCC
/* An argument by its position, 2 to 5. */
INLINE __u64 argument(struct pt_regs *ctx, __u32 position)
{
	__u64 second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx), fourth = PT_REGS_PARM4(ctx), fifth = PT_REGS_PARM5(ctx);

	/* Plain loads: the optimizer would make one through a computed context pointer, which is refused. */
	OPAQUE(second);
	OPAQUE(third);
	OPAQUE(fourth);
	OPAQUE(fifth);
	return position == 2 ? second : position == 3 ? third : position == 4 ? fourth : position == 5 ? fifth : 0;
}

SEC("uprobe")
int enter_any(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx);

	return enter_call(ctx, COOKIE_KIND(cookie), argument(ctx, COOKIE_ARG(cookie)), 1, (cookie & COOKIE_UNPROVEN) != 0);
}
#endif

#define ENTER_PROGRAM(name, kind, count_address)                    \
	SEC("uprobe")                                               \
	int enter_##name(struct pt_regs *ctx)                       \
	{                                                           \
		return enter_call(ctx, CALL_##kind, count_address, 0, 0); \
	}

ENTER_PROGRAM(read, READ, 0)
ENTER_PROGRAM(write, WRITE, 0)
ENTER_PROGRAM(read_ex, READ_EX, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(write_ex, WRITE_EX, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(read_inner, READ_INNER, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(write_inner, WRITE_INNER, PT_REGS_PARM4(ctx))
/* OpenSSL 3.3 put flags before the count: SSL_write_ex2, ssl_write_internal. */
ENTER_PROGRAM(write_inner5, WRITE_INNER, PT_REGS_PARM5(ctx))
ENTER_PROGRAM(write_ex2, WRITE_EX, PT_REGS_PARM5(ctx))
ENTER_PROGRAM(sendfile, SENDFILE, 0)
ENTER_PROGRAM(handshake, HANDSHAKE, 0)
ENTER_PROGRAM(handshake_zero, HANDSHAKE_ZERO, 0)
ENTER_PROGRAM(peek, PEEK, 0)
ENTER_PROGRAM(peek_ex, PEEK_EX, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(read_early_data, READ_EARLY, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(write_early_data, WRITE_EARLY, PT_REGS_PARM4(ctx))
ENTER_PROGRAM(shutdown, SHUTDOWN, 0)
ENTER_PROGRAM(servername, SERVERNAME, 0)
ENTER_PROGRAM(alpn, ALPN, 0)
ENTER_PROGRAM(alpn_datum, ALPN_DATUM, 0)
ENTER_PROGRAM(alpn_text, ALPN_TEXT, 0)
ENTER_PROGRAM(recv_flags, RECV_FLAGS, 0)
ENTER_PROGRAM(recv_packet, RECV_PACKET, 0)
ENTER_PROGRAM(flush, FLUSH, 0)
ENTER_PROGRAM(init, INIT, 0)

/* --- Leaving it --- */

/*
 * What gnutls_record_recv_packet handed out: a list entry with {data, size} behind two pointers, and how much of it was
 * taken off before (mbuffer_st of GnuTLS 3.x).  False when it does not hold as many bytes as the call returned.
 */
INLINE int find_packet(__u64 *source, __u64 n)
{
	struct {
		__u64 next, previous, data;
		__u32 size, pad;
		__u64 mark;
	} packet = {};
	__u64 address = 0;

	if (bpf_probe_read_user(&address, sizeof(address), (void *)*source) ||
	    bpf_probe_read_user(&packet, sizeof(packet), (void *)address) || packet.size - packet.mark != n)
		return 0;
	*source = packet.data + packet.mark;
	return 1;
}

INLINE void left_data(struct config *c, struct call *call, struct connection_key *key, __u64 n, __u32 direction,
		      int has_loop)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key); /* made when the call was entered */
	struct transfer t = {};
	__u64 keep = n;

	if (call->unproven && !(conn && conn->flags & (PROVEN | HAS_ADDRESS))) {
		count(COUNT_UNPROVEN, 1);
		return;
	}
	t.c = c;
	t.source = call->buffer;
	t.call_len = n;
	t.entry_ns = call->entry_ns;
	t.return_ns = bpf_ktime_get_ns();
	t.thread = bpf_get_current_pid_tgid();
	t.direction = direction;
	t.kind = call->kind;
	count(COUNT_CALLS, 1);
	count(direction == OUTBOUND ? COUNT_BYTES_OUT : COUNT_BYTES_IN, n);
	if (conn) {
		t.conn = conn->id;
		if (direction == OUTBOUND) {
			t.offset = conn->bytes[1];
			conn->bytes[1] += n;
		} else {
			t.offset = conn->bytes[0];
			conn->bytes[0] += n;
		}
	} else {
		t.conn = fresh_id();
		t.flags = FLAG_NO_STATE;
	}
	if (call->kind == CALL_SENDFILE || (call->kind == CALL_RECV_PACKET && !find_packet(&t.source, n))) {
		submit_gap(&t, n, GAP_NOT_IN_MEMORY);
		return;
	}
	if (keep > c->snaplen)
		keep = c->snaplen;
	submit_call(&t, n, keep, has_loop);
}

INLINE void left_handshake(struct config *c, struct connection_key *key)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);
	struct sample_handshake *s;

	if (!conn || conn->flags & HAS_HANDSHAKE)
		return;
	conn->flags |= HAS_HANDSHAKE;
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_handshake), 0);
	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_HANDSHAKE, sizeof(*s), conn->id);
	s->start_ns = conn->handshake_start_ns;
	s->calls = conn->handshake_calls;
	s->pad = 0;
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

INLINE void left_mark(struct config *c, struct connection_key *key, __u64 n, __u32 kind, __u32 direction)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);
	struct sample_mark *s;

	if (!conn)
		return;
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_mark), 0);
	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_MARK, sizeof(*s), conn->id);
	s->offset = direction == OUTBOUND ? conn->bytes[1] : conn->bytes[0];
	s->length = n;
	s->kind = kind;
	s->direction = direction;
	__builtin_memset(s->pad, 0, sizeof(s->pad));
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

INLINE void left_alpn(struct config *c, struct connection_key *key, struct call *call)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);
	__u64 address = 0;
	__u32 length = 0;

	if (!conn || conn->flags & HAS_ALPN)
		return;
	bpf_probe_read_user(&address, sizeof(address), (void *)call->buffer);
	bpf_probe_read_user(&length, sizeof(length),
			    (void *)(call->kind == CALL_ALPN ? call->count : call->buffer + 8));
	if (!address || !length)
		return;
	conn->flags |= HAS_ALPN;
	report_name(c, conn->id, NAME_ALPN, address, length);
}

INLINE void left_servername(struct config *c, struct connection_key *key, __u64 address)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);

	if (!conn || !address || conn->flags & HAS_SNI)
		return;
	conn->flags |= HAS_SNI;
	report_name(c, conn->id, NAME_SNI, address, ZERO_ENDED);
}

INLINE void left_alpn_text(struct config *c, struct connection_key *key, __u64 address)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);

	if (!conn || !address || conn->flags & HAS_ALPN)
		return;
	conn->flags |= HAS_ALPN;
	report_name(c, conn->id, NAME_ALPN, address, ZERO_ENDED);
}

/* A session was made where another may have been before. */
INLINE void left_init(struct config *c, struct connection_key *key, struct call *call)
{
	struct connection *conn;

	if (bpf_probe_read_user(&key->ssl, sizeof(key->ssl), (void *)call->buffer) || !key->ssl)
		return;
	close_connection(c, key, 0);
	conn = connection_of(c, key, 0);
	if (conn)
		report_open(conn->id, key->ssl, 0, 0, call->count & 1 ? ROLE_SERVER : ROLE_CLIENT);
}

INLINE void left_flush(struct connection_key *key)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);

	if (conn)
		conn->flags &= ~FLUSHING;
}

INLINE void left_ended(struct config *c, struct connection_key *key, __u32 flag, __u16 type)
{
	struct connection *conn = bpf_map_lookup_elem(&connections, key);

	if (!conn || conn->flags & (flag | DATAGRAM))
		return;
	conn->flags |= flag;
	report_small(c, type, conn->id);
}

/* No socket call came inside a call that must have needed one: user space may have to look for memory BIOs. */
INLINE void left_unjoined(struct config *c, struct thread *thread, struct connection_key *key, struct call *call, __u64 n)
{
#ifndef TLSCAP_BCC
	struct process *p;

	if (!thread || !thread->wants || thread->goroutine || !(is_handshake(call->kind) || (n && is_write(call->kind))))
		return;
	p = bpf_map_lookup_elem(&processes, &key->pid);
	if (!p || p->flags & UNJOINED)
		return;
	p->flags |= UNJOINED;
	report_small(c, SAMPLE_UNJOINED, 0);
#endif
}

/* A call returns; `sp` is where its return address was. */
INLINE int leave(struct pt_regs *ctx, __u64 sp, int has_loop)
{
	struct config *c = settings();
	struct call_key key = {};
	struct connection_key conn_key = {};
	struct thread *thread = THREAD_OF(has_loop, 0);
	struct call call = {};
	__u64 n = 0;
	long result;
	int by_address;

	key.thread = bpf_get_current_pid_tgid();
	key.sp = sp;
	if (!c || !recall_call(thread, &key, &call))
		return 0;
	conn_key.ssl = call.ssl;
	conn_key.pid = key.thread >> 32;
	conn_key.incarnation = call.incarnation;
	result = (int)PT_REGS_RC(ctx);
	if (call.wanted == ADDRESS_WANTED) {
		left_unjoined(c, thread, &conn_key, &call, result > 0);
		want_no_more(thread, &key.thread);
	}

	switch (call.kind) {
	case CALL_SERVERNAME:
		left_servername(c, &conn_key, PT_REGS_RC(ctx));
		return 0;
	case CALL_ALPN_TEXT:
		left_alpn_text(c, &conn_key, PT_REGS_RC(ctx));
		return 0;
	case CALL_ALPN_DATUM:
		if (result == 0)
			left_alpn(c, &conn_key, &call);
		return 0;
	case CALL_ALPN:
		left_alpn(c, &conn_key, &call);
		return 0;
	case CALL_INIT:
		if (result == 0)
			left_init(c, &conn_key, &call);
		return 0;
	case CALL_FLUSH:
		left_flush(&conn_key);
		return 0;
	case CALL_HANDSHAKE:
	case CALL_HANDSHAKE_ZERO:
		if (result == (call.kind == CALL_HANDSHAKE))
			left_handshake(c, &conn_key);
		return 0;
	case CALL_SHUTDOWN:
		left_ended(c, &conn_key, SENT_SHUTDOWN, SAMPLE_SHUTDOWN);
		return 0;
	case CALL_SENDFILE:
		result = (long)PT_REGS_RC(ctx); /* ssize_t */
		break;
	}
	by_address = call.count != 0;
	if (result > 0) {
		if (by_address)
			bpf_probe_read_user(&n, sizeof(n), (void *)call.count);
		else
			n = result;
	}
	switch (call.kind) {
	case CALL_PEEK:
	case CALL_PEEK_EX:
		if (n)
			left_mark(c, &conn_key, n, MARK_PEEK, INBOUND);
		return 0;
	case CALL_READ_EARLY: /* the bytes themselves came with the read or write inside this call */
		if (n)
			left_mark(c, &conn_key, n, MARK_EARLY_DATA, INBOUND);
		return 0;
	case CALL_WRITE_EARLY:
		if (n)
			left_mark(c, &conn_key, n, MARK_EARLY_DATA, OUTBOUND);
		return 0;
	case CALL_READ:
	case CALL_READ_EX:
	case CALL_READ_INNER:
	case CALL_RECV_PACKET:
		if (n)
			left_data(c, &call, &conn_key, n, INBOUND, has_loop);
		else if (result == 0 && call.kind != CALL_READ_EX) /* there 0 is every failure */
			left_ended(c, &conn_key, SENT_EOF, SAMPLE_EOF);
		return 0;
	default:
		if (n)
			left_data(c, &call, &conn_key, n, OUTBOUND, has_loop);
		return 0;
	}
}

#ifndef TLSCAP_BCC
/* Where the return address was when the call began.  On a return instruction nothing is popped yet. */
INLINE __u64 return_slot(struct pt_regs *ctx)
{
	return PT_REGS_SP(ctx) - (bpf_get_attach_cookie(ctx) & COOKIE_AT_RETURN ? 0 : RETURN_SLOT);
}

SEC("uretprobe")
int leave_loop(struct pt_regs *ctx)
{
	return leave(ctx, return_slot(ctx), 1);
}
#endif

SEC("uretprobe")
int leave_bounded(struct pt_regs *ctx)
{
	return leave(ctx, PT_REGS_SP(ctx) - RETURN_SLOT, 0);
}

/* --- Files that processes run and map --- */

/* Executables are told of once each; what the dynamic linker maps is looked up in user space every time. */
INLINE void report_mapped(struct config *c, void *inode)
{
	struct file_id id = {};
	struct sample_mapped *s;
	void *super = 0;
	unsigned long number = 0;
	__u32 device = 0, one = 1;

	if (inode) {
		KERNEL_READ(number, inode, inode, i_ino);
		KERNEL_READ(super, inode, inode, i_sb);
		if (super)
			KERNEL_READ(device, super, super_block, s_dev);
		id.inode = number;
		id.device = device;
		if (bpf_map_lookup_elem(&seen_files, &id))
			return;
	}
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_mapped), 0);
	if (!s) {
		lost_sample(0);
		return;
	}
	if (inode)
		bpf_map_update_elem(&seen_files, &id, &one, BPF_ANY);
	fill_header(&s->h, SAMPLE_MAPPED, sizeof(*s), 0);
	s->inode = id.inode;
	s->device = device;
	s->executable = inode != 0;
	bpf_ringbuf_submit(s, BPF_RB_FORCE_WAKEUP); /* the sooner it is probed, the less is missed */
}

INLINE int watched(struct config *c, __u32 pid)
{
	struct process *known = bpf_map_lookup_elem(&processes, &pid);

	if (known)
		return known->flags & TRACED;
	return matches(c, pid, leader());
}

/* --- The life of a connection --- */

INLINE struct connection *named(struct pt_regs *ctx, struct config *c, struct connection_key *key, int create)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct process *p = traced_process(c, pid);

	if (!p)
		return 0;
	key->ssl = PT_REGS_PARM1(ctx);
	key->pid = pid;
	key->incarnation = p->incarnation;
	return create ? connection_of(c, key, 0) : bpf_map_lookup_elem(&connections, key);
}

INLINE int set_role(struct pt_regs *ctx, __u32 role)
{
	struct connection_key key = {};
	struct config *c = settings();
	struct connection *conn = c ? named(ctx, c, &key, 1) : 0;

	if (conn)
		report_open(conn->id, key.ssl, 0, 0, role);
	return 0;
}

/* SSL_ctrl(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, name) */
INLINE int on_ctrl_call(struct pt_regs *ctx)
{
	struct connection_key key = {};
	struct config *c;
	struct connection *conn;

	if ((int)PT_REGS_PARM2(ctx) != 55 || !PT_REGS_PARM4(ctx))
		return 0;
	c = settings();
	conn = c ? named(ctx, c, &key, 1) : 0;
	if (!conn)
		return 0;
	conn->flags |= HAS_SNI;
	report_name(c, conn->id, NAME_SNI, PT_REGS_PARM4(ctx), ZERO_ENDED);
	return 0;
}

/* The same by a function for it; wherever it has the name and its length. */
INLINE int on_name_call(struct pt_regs *ctx, __u64 address, __u64 length)
{
	struct connection_key key = {};
	struct config *c = settings();
	struct connection *conn = c && address ? named(ctx, c, &key, 1) : 0;

	if (!conn)
		return 0;
	conn->flags |= HAS_SNI;
	report_name(c, conn->id, NAME_SNI, address, length);
	return 0;
}

/* Another descriptor or another BIO: what was known of the socket no longer holds. */
INLINE int on_transport_call(struct pt_regs *ctx)
{
	struct connection_key key = {};
	struct config *c = settings();
	struct connection *conn = c ? named(ctx, c, &key, 0) : 0;

	if (conn) {
		conn->flags &= ~HAS_ADDRESS;
		unsettle();
	}
	return 0;
}

INLINE int on_end_call(struct pt_regs *ctx, __u32 recycled)
{
	struct connection_key key = {};
	struct config *c = settings();
	struct connection *conn = c ? named(ctx, c, &key, 0) : 0;

	/* A handshake begins with SSL_clear: nothing has passed yet, so it is the same connection. */
	if (!conn || (recycled && !conn->bytes[0] && !conn->bytes[1] && !(conn->flags & HAS_HANDSHAKE)))
		return 0;
	close_connection(c, &key, recycled);
	return 0;
}

INLINE int on_libraries_call(void)
{
	struct config *c = settings();

	if (c && watched(c, bpf_get_current_pid_tgid() >> 32))
		report_mapped(c, 0);
	return 0;
}

/* What a life-cycle function does to a connection; the cookie of `on_any`. */
enum life_kind {
	LIFE_CONNECT_STATE = 1,
	LIFE_ACCEPT_STATE = 2,
	LIFE_CTRL = 3,
	LIFE_SET_TRANSPORT = 4,
	LIFE_FREE = 5,
	LIFE_CLEAR = 6,
	LIFE_LIBRARIES = 7, /* the dynamic linker's _dl_debug_state: libraries were mapped or removed */
	LIFE_NAME = 8,      /* (ssl, ..., name, [length]): the cookie says where */
	LIFE_ROLE = 9,      /* (fd, as_server) */
	LIFE_GO_FREE = 10,
	LIFE_CALLBACKS = 11,       /* (ssl, ..., send, receive): the cookie says where, as of a name and its length */
	LIFE_CALLBACK_VECTOR = 12, /* (ssl, send): that takes a vector */
};

#ifndef TLSCAP_BCC
/* User space probes the function when it turns out that connections can't be found without. */
INLINE int report_callback(__u64 address, __u32 kind)
{
	struct config *c = settings();
	struct call_key key = {.sp = address};
	struct sample_callback *s;
	__u32 one = 1;

	key.thread = bpf_get_current_pid_tgid() >> 32;
	if (!address || !c || !traced_process(c, key.thread) || bpf_map_lookup_elem(&seen_callbacks, &key))
		return 0;
	s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_callback), 0);
	if (!s) {
		lost_sample(0);
		return 0;
	}
	bpf_map_update_elem(&seen_callbacks, &key, &one, BPF_ANY);
	fill_header(&s->h, SAMPLE_CALLBACK, sizeof(*s), 0);
	s->address = address;
	s->kind = kind;
	s->pad = 0;
	bpf_ringbuf_submit(s, BPF_RB_FORCE_WAKEUP);
	return 0;
}

SEC("uprobe")
int on_any(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), length = argument(ctx, COOKIE_LENGTH(cookie));

	switch (COOKIE_KIND(cookie)) {
	case LIFE_NAME:
		return on_name_call(ctx, argument(ctx, COOKIE_ARG(cookie)), COOKIE_LENGTH(cookie) ? length : ZERO_ENDED);
	case LIFE_CALLBACKS:
		on_transport_call(ctx);
		report_callback(argument(ctx, COOKIE_ARG(cookie)), CALL_BIO_WRITE);
		return report_callback(length, CALL_BIO_READ);
	case LIFE_CALLBACK_VECTOR:
		return report_callback(PT_REGS_PARM2(ctx), CALL_BIO_WRITEV);
	case LIFE_ROLE:
		return set_role(ctx, PT_REGS_PARM2(ctx) ? ROLE_SERVER : ROLE_CLIENT);
	case LIFE_CONNECT_STATE:
		return set_role(ctx, ROLE_CLIENT);
	case LIFE_ACCEPT_STATE:
		return set_role(ctx, ROLE_SERVER);
	case LIFE_CTRL:
		return on_ctrl_call(ctx);
	case LIFE_SET_TRANSPORT:
		return on_transport_call(ctx);
	case LIFE_FREE:
		return on_end_call(ctx, 0);
	case LIFE_CLEAR:
		return on_end_call(ctx, 1);
	case LIFE_LIBRARIES:
		return on_libraries_call();
	}
	return 0;
}
#endif

SEC("uprobe")
int on_name2(struct pt_regs *ctx)
{
	return on_name_call(ctx, PT_REGS_PARM2(ctx), ZERO_ENDED);
}

SEC("uprobe")
int on_name3(struct pt_regs *ctx)
{
	return on_name_call(ctx, PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx));
}

SEC("uprobe")
int on_role(struct pt_regs *ctx)
{
	return set_role(ctx, PT_REGS_PARM2(ctx) ? ROLE_SERVER : ROLE_CLIENT);
}

SEC("uprobe")
int on_connect_state(struct pt_regs *ctx)
{
	return set_role(ctx, ROLE_CLIENT);
}

SEC("uprobe")
int on_accept_state(struct pt_regs *ctx)
{
	return set_role(ctx, ROLE_SERVER);
}

SEC("uprobe")
int on_ctrl(struct pt_regs *ctx)
{
	return on_ctrl_call(ctx);
}

SEC("uprobe")
int on_set_transport(struct pt_regs *ctx)
{
	return on_transport_call(ctx);
}

SEC("uprobe")
int on_free(struct pt_regs *ctx)
{
	return on_end_call(ctx, 0);
}

SEC("uprobe")
int on_clear(struct pt_regs *ctx)
{
	return on_end_call(ctx, 1);
}

SEC("uprobe")
int on_libraries(struct pt_regs *ctx)
{
	return on_libraries_call();
}

/* --- Sockets --- */

INLINE void *file_of(__u32 fd)
{
	void *task = (void *)bpf_get_current_task(), *files = 0, *table = 0, *array = 0, *file = 0;
	__u32 limit = 0;

	KERNEL_READ(files, task, task_struct, files);
	if (!files)
		return 0;
	KERNEL_READ(table, files, files_struct, fdt);
	if (!table)
		return 0;
	KERNEL_READ(limit, table, fdtable, max_fds);
	KERNEL_READ(array, table, fdtable, fd);
	if (fd >= limit || !array)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), array + 8 * (__u64)fd);
	return file;
}

INLINE void *socket_of(__u32 fd)
{
	void *file = file_of(fd), *inode = 0, *socket = 0, *sk = 0;
	__u16 mode = 0;

	if (!file)
		return 0;
	KERNEL_READ(inode, file, file, f_inode);
	if (!inode)
		return 0;
	KERNEL_READ(mode, inode, inode, i_mode);
	if ((mode & S_IFMT) != S_IFSOCK)
		return 0; /* a handshake reads certificates and configuration, too */
	KERNEL_READ(socket, file, file, private_data);
	if (socket)
		KERNEL_READ(sk, socket, socket, sk);
	return sk;
}

/* What a socket says of itself.  False for families that tlscap does not know. */
INLINE int read_socket(struct socket_address *a, void *sk)
{
	__u16 port = 0;

	KERNEL_READ(a->family, sk, sock_common, skc_family);
	if (a->family == AF_UNIX)
		return 1;
	if (a->family == AF_INET6) {
		KERNEL_READ(a->local, sk, sock_common, skc_v6_rcv_saddr);
		KERNEL_READ(a->remote, sk, sock_common, skc_v6_daddr);
	} else if (a->family == AF_INET) {
		__u32 address = 0;

		KERNEL_READ(address, sk, sock_common, skc_rcv_saddr);
		__builtin_memcpy(a->local, &address, 4);
		KERNEL_READ(address, sk, sock_common, skc_daddr);
		__builtin_memcpy(a->remote, &address, 4);
	} else {
		return 0;
	}
	KERNEL_READ(port, sk, sock_common, skc_num);
	a->local_port = port;
	KERNEL_READ(port, sk, sock_common, skc_dport);
	a->remote_port = port >> 8 | port << 8; /* network order */
	KERNEL_READ(a->protocol, sk, sock, sk_protocol);
	if (a->protocol == IPPROTO_TCP_) {
		KERNEL_READ(a->srtt_us, sk, tcp_sock, srtt_us);
		a->srtt_us >>= 3; /* kept in eighths */
	}
	return 1;
}

SHARED void report_address(struct config *c, struct connection *conn, struct socket_address *a, __u32 fd, __u16 flags)
{
	struct sample_address *s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_address), 0);

	if (!s) {
		lost_sample(0);
		return;
	}
	fill_header(&s->h, SAMPLE_ADDRESS, sizeof(*s), conn->id);
	s->h.flags = flags;
	s->at = *a;
	s->fd = fd;
	conn->flags |= HAS_ADDRESS | (a->protocol == IPPROTO_UDP_ ? DATAGRAM : 0);
	bpf_ringbuf_submit(s, wake_flag(c, sizeof(*s)));
}

/* The address of a connection is that of this socket, which its own call uses. */
INLINE int report_socket(struct config *c, struct connection *conn, void *sk, __u32 fd)
{
	struct socket_address a = {};

	if (!read_socket(&a, sk))
		return 0;
	report_address(c, conn, &a, fd, 0);
	return 1;
}

#ifndef TLSCAP_BCC
#define HAS_THREADS 1
#include "ciphertext.h"
#include "golang.h"
#include "rustls.h"
#endif

#ifndef TLSCAP_BCC
/*
 * Whether a socket call on this thread is made for the TLS call that is running on it; `brought` is how many bytes are in its buffer.
 * What a TLS library receives can be any part of a record; what an unproven function receives must begin with one.
 */
INLINE int is_of_call(struct thread *thread, void *sk, int outbound, int brought)
{
	if (!thread || (thread->goroutine && !goroutine_calls(thread)))
		return 0;
	if (thread->unproven)
		return (outbound || brought >= RECORD_HEADER) && carries_record();
	return !outbound || sends_record(sk);
}

INLINE int sends(long number)
{
	return number == NR_write || number == NR_writev || number == NR_sendto || number == NR_sendmsg;
}
#endif

/* A socket call begins: report its socket if the thread's TLS call wants to know it. */
INLINE int on_syscall_enter(struct bpf_raw_tracepoint_args *ctx, int modern)
{
	void *regs = (void *)ctx->args[0], *sk;
	struct thread *thread = 0;
	struct connection_key *key;
	struct connection *conn;
	struct config *c;
	__u64 id, fd = 0;

	switch ((long)ctx->args[1]) {
	case NR_read:
	case NR_write:
	case NR_readv:
	case NR_writev:
	case NR_sendto:
	case NR_recvfrom:
	case NR_sendmsg:
	case NR_recvmsg:
		break;
	default:
		return 0;
	}
	id = bpf_get_current_pid_tgid();
	thread = THREAD_OF(modern, 0);
	if (modern && !thread)
		return 0;
	key = wanted_by(thread, &id);
	if (!key)
		return 0;
	c = settings();
	conn = bpf_map_lookup_elem(&connections, key);
	if (!c || !conn)
		return 0;
	bpf_probe_read_kernel(&fd, sizeof(fd), SYSCALL_ARG(regs, 0));
	sk = socket_of((__u32)fd);
	if (!sk)
		return 0;
#ifndef TLSCAP_BCC
	if (modern && !is_of_call(thread, sk, sends((long)ctx->args[1]), 0))
		return 0;
#endif
	if (report_socket(c, conn, sk, (__u32)fd))
		want_no_more(thread, &id);
	return 0;
}

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	return on_syscall_enter(ctx, 0);
}

#ifndef TLSCAP_BCC
SEC("raw_tp/sys_enter")
int on_syscall_modern(struct bpf_raw_tracepoint_args *ctx)
{
	return on_syscall_enter(ctx, 1);
}
#endif

/*
 * Since Linux 6.3 (commit 6e6eda44b939) sockets have tracepoints of their own: they name the socket, and other system
 * calls stay as fast as they were.  Elsewhere on_syscall does the same with more work.
 */
INLINE int on_socket(void *sk, struct thread *thread)
{
	struct connection_key *key;
	struct connection *conn;
	struct config *c;
	__u64 id = bpf_get_current_pid_tgid();

	key = wanted_by(thread, &id);
	if (!key)
		return 0;
	c = settings();
	conn = bpf_map_lookup_elem(&connections, key);
	if (c && conn && sk && report_socket(c, conn, sk, NO_FD))
		want_no_more(thread, &id);
	return 0;
}

#ifdef TLSCAP_BCC
SEC("raw_tp/sock_send_length")
int on_socket_send(struct bpf_raw_tracepoint_args *ctx)
{
	return on_socket((void *)ctx->args[0], 0);
}

SEC("raw_tp/sock_recv_length")
int on_socket_receive(struct bpf_raw_tracepoint_args *ctx)
{
	return on_socket((void *)ctx->args[0], 0);
}
#else
INLINE int on_socket_call(struct bpf_raw_tracepoint_args *ctx, __u32 direction)
{
	struct thread *thread = THREAD_OF(HAS_THREADS, 0);
	void *sk = (void *)ctx->args[0];

	if (thread && thread->wants && is_of_call(thread, sk, direction == OUTBOUND, (int)ctx->args[1]))
		on_socket(sk, thread);
	if (somebody_joins())
		join_socket(sk, (int)ctx->args[1], direction);
	return 0;
}

SEC("raw_tp/sock_send_length")
int on_socket_send(struct bpf_raw_tracepoint_args *ctx)
{
	return on_socket_call(ctx, OUTBOUND);
}

SEC("raw_tp/sock_recv_length")
int on_socket_receive(struct bpf_raw_tracepoint_args *ctx)
{
	return on_socket_call(ctx, INBOUND);
}
#endif

/* --- Processes come and go --- */

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
	struct config *c = settings();
	__u32 parent_pid = 0, pid = 0, tid = 0, one = 1;

	if (!c || !(c->filter & FOLLOW_FORKS))
		return 0;
	KERNEL_READ(parent_pid, parent, task_struct, tgid);
	if (!bpf_map_lookup_elem(&targets, &parent_pid))
		return 0;
	KERNEL_READ(pid, child, task_struct, tgid);
	KERNEL_READ(tid, child, task_struct, pid);
	if (pid == tid) /* a process, not a thread */
		bpf_map_update_elem(&targets, &pid, &one, BPF_ANY);
	return 0;
}

/* A new program: another name, other libraries, none of the old connections. */
SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	void *binprm = (void *)ctx->args[2], *file = 0, *inode = 0;
	struct config *c = settings();

	bpf_map_delete_elem(&processes, &pid);
	if (!c || !matches(c, pid, leader()))
		return 0;
	KERNEL_READ(file, binprm, linux_binprm, file);
	if (file)
		KERNEL_READ(inode, file, file, f_inode);
	if (inode)
		report_mapped(c, inode);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	void *task = (void *)bpf_get_current_task(), *signal = 0;
	struct process *known;
	struct config *c = settings();
	int live = 1;

	KERNEL_READ(signal, task, task_struct, signal);
	if (signal)
		KERNEL_READ(live, signal, signal_struct, live);
	if (live) /* other threads go on */
		return 0;
	known = bpf_map_lookup_elem(&processes, &pid);
	if (known && known->flags & TRACED && c)
		report_small(c, SAMPLE_EXIT, 0);
	bpf_map_delete_elem(&processes, &pid);
	bpf_map_delete_elem(&targets, &pid);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#ifndef TLSCAP_BCC
/*
 * Types that are used inside functions only are missing from the object's BTF.  This pointer, in a section that
 * loaders skip, brings in those that tools/check_layout.py compares with user space.
 */
union layouts {
	struct sample_data data;
	struct sample_open open;
	struct sample_address address;
	struct sample_handshake handshake;
	struct sample_name name;
	struct sample_close close;
	struct sample_process process;
	struct sample_mapped mapped;
	struct sample_mark mark;
	struct sample_callback callback;
	enum sample_type sample_type;
	enum direction direction;
	enum gap_reason gap_reason;
	enum role role;
	enum name_kind name_kind;
	enum mark_kind mark_kind;
	enum sample_flags sample_flags;
	enum call_kind call_kind;
	enum life_kind life_kind;
	enum filter_flags filter_flags;
	enum counter counter;
};
const union layouts *layout_types SEC("layouts");
#endif
