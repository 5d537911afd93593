/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Go's crypto/tls.
 *
 * A goroutine moves between threads and its stack moves in memory, so calls are remembered by goroutine, return
 * probes are out of the question (each return instruction has a probe), and a buffer on a stack is remembered by its
 * distance from the stack's upper end.  Since 1.17 (amd64; arm64: 1.18) arguments and results are in registers
 * and one register holds the goroutine; before, they are on the stack, and the goroutine in thread-local storage.
 */
#ifndef TLSCAP_GOLANG_H
#define TLSCAP_GOLANG_H

#if defined(__TARGET_ARCH_arm64)
#define GO_FIRST(ctx) ((ctx)->regs[0])
#define GO_SECOND(ctx) ((ctx)->regs[1])
#define GO_G(ctx) ((ctx)->regs[28])
#else
#define GO_FIRST(ctx) ((ctx)->rax)
#define GO_SECOND(ctx) ((ctx)->rbx)
#define GO_G(ctx) ((ctx)->r14)
#endif

/* The goroutine that this thread runs, from thread-local storage: where x86-64's Go keeps it, but in shared objects before 1.17. */
INLINE __u64 goroutine_of_thread(void)
{
	__u64 g = 0;
#if !defined(__TARGET_ARCH_arm64)
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

	bpf_probe_read_user(&g, sizeof(g), (void *)(task->thread.fsbase - 8));
#endif
	return g;
}

INLINE __u64 on_stack(struct pt_regs *ctx, __u32 place)
{
	__u64 value = 0;

	bpf_probe_read_user(&value, sizeof(value), (void *)(PT_REGS_SP(ctx) + 8 * place));
	return value;
}

INLINE int is_go_handshake(__u32 kind)
{
	return kind == CALL_GO_CLIENT || kind == CALL_GO_SERVER;
}

/* A call, by its goroutine and its place on that one's stack, counted from the upper end: calls nest (TLS in TLS). */
INLINE void go_key(struct call_key *key, struct pt_regs *ctx, __u64 g)
{
	__u64 high = 0;

	bpf_probe_read_user(&high, sizeof(high), (void *)(g + 8));
	key->thread = bpf_get_current_pid_tgid() >> 32 << 32 | (__u32)(high - PT_REGS_SP(ctx));
	key->sp = g;
}

/* Whether the socket call that is running is made by the goroutine that is inside the call whose address is wanted. */
INLINE int goroutine_calls(struct thread *thread)
{
	struct call_key key = {};
	struct call *call;
	long number;
	void *regs = system_call(&number);
	__u64 g = 0;

	bpf_probe_read_kernel(&g, sizeof(g), GOROUTINE_REGISTER(regs));
	if (g != thread->goroutine && goroutine_of_thread() != thread->goroutine)
		return 0;
	key.thread = thread->go_call;
	key.sp = thread->goroutine;
	call = bpf_map_lookup_elem(&calls, &key);
	return call && call->ssl == thread->wanted.ssl;
}

/* A handshake begins: what is known under this address belongs to a connection that was never closed. */
INLINE void go_handshake(struct config *c, struct call *call)
{
	struct connection_key key = {};
	struct connection *conn;

	key.ssl = call->ssl;
	key.pid = bpf_get_current_pid_tgid() >> 32;
	key.incarnation = call->incarnation;
	conn = bpf_map_lookup_elem(&connections, &key);
	if (conn && (conn->bytes[0] || conn->bytes[1] || conn->flags & HAS_HANDSHAKE))
		close_connection(c, &key, 1);
	conn = connection_of(c, &key, 0);
	if (conn)
		report_open(conn->id, key.ssl, 0, 0, call->kind == CALL_GO_CLIENT ? ROLE_CLIENT : ROLE_SERVER);
}

SEC("uprobe")
int enter_go(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), id = bpf_get_current_pid_tgid(), g, low = 0, high = 0;
	struct config *c = settings();
	struct thread *thread = 0;
	struct call_key key = {};
	struct call call = {};

	if (!begin_call(c, &call, &thread, cookie))
		return 0;
	if (cookie & COOKIE_STACK) {
		g = goroutine_of_thread();
		call.ssl = on_stack(ctx, 1);
		call.buffer = on_stack(ctx, 2);
	} else {
		g = GO_G(ctx);
		call.ssl = GO_FIRST(ctx);
		call.buffer = GO_SECOND(ctx);
	}
	if (cookie & COOKIE_INDIRECT && bpf_probe_read_user(&call.ssl, sizeof(call.ssl), (void *)call.ssl))
		return 0;
	/* runtime.g begins with the bounds of its stack. */
	bpf_probe_read_user(&low, sizeof(low), (void *)g);
	bpf_probe_read_user(&high, sizeof(high), (void *)(g + 8));
	if (call.buffer >= low && call.buffer < high)
		call.count = high - call.buffer;
	go_key(&key, ctx, g);
	if (is_go_handshake(call.kind) && !bpf_map_lookup_elem(&calls, &key))
		go_handshake(c, &call);
	if (is_go_handshake(call.kind) || !settled(thread, call.ssl)) {
		call.wanted = enter_connection(c, thread, &call, id);
		if (thread && call.wanted == ADDRESS_WANTED) {
			thread->goroutine = g;
			thread->go_call = key.thread;
		}
	}
	bpf_map_update_elem(&calls, &key, &call, BPF_ANY);
	return 0;
}

INLINE int leave_go(struct pt_regs *ctx, int handshake)
{
	__u64 stack = bpf_get_attach_cookie(ctx) & COOKIE_STACK, g = stack ? goroutine_of_thread() : GO_G(ctx), high = 0;
	struct thread *thread = THREAD_OF(1, 0);
	struct connection_key conn_key = {};
	struct config *c = settings();
	struct call_key key = {};
	struct call *pending, call;
	__s64 n;

	go_key(&key, ctx, g);
	pending = bpf_map_lookup_elem(&calls, &key);
	if (!c || !pending)
		return 0;
	call = *pending;
	bpf_map_delete_elem(&calls, &key);
	if (thread && thread->goroutine == g && thread->go_call == key.thread)
		thread->wants = 0;
	conn_key.ssl = call.ssl;
	conn_key.pid = key.thread >> 32; /* the process */
	conn_key.incarnation = call.incarnation;
	if (handshake) {
		/* The type of the error: nil has none. */
		if ((stack ? on_stack(ctx, 2) : GO_FIRST(ctx)) == 0)
			left_handshake(c, &conn_key);
		return 0;
	}
	n = stack ? on_stack(ctx, 5) : GO_FIRST(ctx);
	if (call.count) {
		bpf_probe_read_user(&high, sizeof(high), (void *)(g + 8));
		call.buffer = high - call.count;
	}
	if (n > 0)
		left_data(c, &call, &conn_key, n, call.kind == CALL_GO_WRITE ? OUTBOUND : INBOUND, 1);
	return 0;
}

SEC("uprobe")
int leave_go_data(struct pt_regs *ctx)
{
	return leave_go(ctx, 0);
}

SEC("uprobe")
int leave_go_handshake(struct pt_regs *ctx)
{
	return leave_go(ctx, 1);
}

SEC("uprobe")
int on_go_free(struct pt_regs *ctx)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u64 cookie = bpf_get_attach_cookie(ctx);
	struct connection_key key = {};
	struct config *c = settings();
	struct process *p = c ? traced_process(c, pid) : 0;

	if (!p)
		return 0;
	key.ssl = cookie & COOKIE_STACK ? on_stack(ctx, 1) : GO_FIRST(ctx);
	if (cookie & COOKIE_INDIRECT && bpf_probe_read_user(&key.ssl, sizeof(key.ssl), (void *)key.ssl))
		return 0;
	key.pid = pid;
	key.incarnation = p->incarnation;
	close_connection(c, &key, 0);
	return 0;
}
#endif
