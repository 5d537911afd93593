/*
 * dlssl.c under a seccomp filter that allows the system calls it makes and kills the process for any other.
 *
 * The filter is in place from the first line on: loading the library, the name and the clock are under it, too.
 */
#define main subject_main
#include "dlssl.c"
#undef main

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

static const int allowed[] = {
	SYS_read, SYS_write, SYS_openat, SYS_close, SYS_newfstatat, SYS_fstat, SYS_lseek, SYS_pread64, SYS_mmap, SYS_mprotect,
	SYS_munmap, SYS_brk, SYS_futex, SYS_getrandom, SYS_socket, SYS_connect, SYS_getpeername, SYS_getsockname, SYS_getpid,
	SYS_clock_nanosleep, SYS_sysinfo, SYS_exit_group,
};

#define COUNT (sizeof allowed / sizeof *allowed)

static void seal(void)
{
	struct sock_filter filter[3 + 2 * COUNT + 1];
	struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
	struct sock_filter *at = filter;

	*at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	*at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 1 + 2 * COUNT);
	*at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < COUNT; i++) {
		*at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		*at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	*at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		fail("seccomp", 0);
}

int main(int argc, char **argv)
{
	seal();
	if (getenv("FORBIDDEN")) /* the proof that the filter is one */
		getppid();
	return subject_main(argc, argv);
}
