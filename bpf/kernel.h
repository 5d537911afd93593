/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The few kernel structures tlscap reads, and how.
 *
 * libbpf relocates the accesses to the running kernel (CO-RE); the structures name only the fields that
 * are used.  BCC compiles against headers that may belong to another kernel, so there tlscap/live/bcc.py
 * defines OFFSET_type_field, from the running kernel's BTF, for each type and field that KERNEL_READ names.
 */
#ifndef TLSCAP_KERNEL_H
#define TLSCAP_KERNEL_H

#ifdef TLSCAP_BCC
#define KERNEL_READ(dst, base, type, field) \
	bpf_probe_read_kernel(&(dst), sizeof(dst), (void *)((__u64)(base) + OFFSET_##type##_##field))
#else
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct signal_struct {
	struct {
		int counter;
	} live;
};
struct qstr {
	__u64 hash_len;
	const char *name;
};
struct dentry {
	struct qstr d_name;
};
struct path {
	void *mnt;
	struct dentry *dentry;
};
struct super_block {
	__u32 s_dev;
};
struct inode {
	__u16 i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
};
struct file {
	void *private_data;
	struct inode *f_inode;
	struct path f_path;
};
struct mm_struct {
	unsigned long arg_start, arg_end, env_end;
	struct file *exe_file;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct thread_struct {
	unsigned long fsbase; /* x86-64 */
};
struct task_struct {
	struct thread_struct thread;
	struct task_struct *group_leader, *real_parent;
	__u64 start_boottime;
	int tgid, pid;
	char comm[16];
	struct files_struct *files;
	struct mm_struct *mm;
	struct signal_struct *signal;
	__u64 self_exec_id; /* counts the programs a task has run */
};
struct sock_common {
	__u16 skc_family, skc_num, skc_dport;
	__u32 skc_rcv_saddr, skc_daddr;
	struct {
		__u8 bytes[16];
	} skc_v6_rcv_saddr, skc_v6_daddr;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct socket {
	struct sock *sk;
};
struct tcp_sock {
	__u32 srtt_us;
};
struct linux_binprm {
	struct file *file;
};
#pragma clang attribute pop
#define KERNEL_READ(dst, base, type, field) \
	bpf_probe_read_kernel(&(dst), sizeof(dst), &((struct type *)(base))->field)
#endif

#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP_ 6
#define IPPROTO_UDP_ 17

#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
enum { NR_read = 63, NR_write = 64, NR_readv = 65, NR_writev = 66, NR_sendto = 206, NR_recvfrom = 207,
       NR_sendmsg = 211, NR_recvmsg = 212 };
#define RETURN_SLOT 0 /* the return address is in a register */
#define SYSCALL_ARG(regs, n) ((void *)(regs) + 8 * (n))
#define SYSCALL_NUMBER(regs) ((void *)(regs) + 280) /* after regs[31], sp, pc, pstate, orig_x0: 32 bits and 32 unused ones */
#define GOROUTINE_REGISTER(regs) ((void *)(regs) + 8 * 28)
#else
enum { NR_read = 0, NR_write = 1, NR_readv = 19, NR_writev = 20, NR_sendto = 44, NR_recvfrom = 45,
       NR_sendmsg = 46, NR_recvmsg = 47 };
#define RETURN_SLOT 8 /* `ret` has popped the return address */
/* struct pt_regs of x86-64: di, si, dx, r10, r8, r9 hold a system call's arguments. */
#define SYSCALL_NUMBER(regs) ((void *)(regs) + 120) /* orig_ax */
#define GOROUTINE_REGISTER(regs) ((void *)(regs) + 8) /* r14 */
#define SYSCALL_ARG(regs, n) \
	((void *)(regs) + ((n) == 0 ? 112 : (n) == 1 ? 104 : (n) == 2 ? 96 : (n) == 3 ? 56 : (n) == 4 ? 72 : 64))
#endif
#endif
