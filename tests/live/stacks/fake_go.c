/*
 * A program with the functions of Go's crypto/tls and its copies, and the table of functions that Go's linker writes: PORT, where
 * PORT echoes.  What a recorder must make of it is written in test_go_calls.py.
 *
 * Functions have Go's calling conventions and run on stacks of their own, which move while they do.  Compile it with -no-pie.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STACK = 8192, ROOM = 512 /* at the upper end, for buffers */ };

struct goroutine { /* begins as runtime.g */
	char *low, *high;
	unsigned long guard;
	/* What is kept while it runs C, and while C runs it. */
	char *sp, *c;
	unsigned long r14, storage;
};
_Static_assert(offsetof(struct goroutine, sp) == 24 && offsetof(struct goroutine, storage) == 48, "as the code below has it");

struct goroutine *running;
unsigned long result;            /* the next function's first one */
__thread unsigned long storage;  /* the only one: at fs:-8 */
void (*inside)(void);            /* what it does */

/* Functions of both conventions; the last argument is where the second has its result, in words. */
__asm__(".macro REGISTERS label\n"
	"\\label: cmp 16(%r14), %rsp\n jbe 1f\n call go_inside\n"
	"mov result(%rip), %rax\n xor %ebx, %ebx\n ret\n"
	"1: call go_more_stack\n jmp \\label\n .p2align 4, 0xcc\n"
	".endm\n"
	".macro STACK label place\n"
	"\\label: mov %fs:-8, %rcx\n cmp 16(%rcx), %rsp\n jbe 1f\n call go_inside\n"
	"mov result(%rip), %rdx\n mov %rdx, 8 * \\place(%rsp)\n mov $99, %eax\n ret\n"
	"1: call go_more_stack\n jmp \\label\n .p2align 4, 0xcc\n"
	".endm\n"
	".text\n .p2align 4\n"
	"go_text:\n"
	"REGISTERS conn_read\n REGISTERS conn_write\n REGISTERS conn_close\n REGISTERS conn_client\n REGISTERS conn_server\n"
	"REGISTERS uconn_read\n REGISTERS uconn_write\n REGISTERS uconn_close\n"
	"STACK old_read 5\n STACK old_write 5\n STACK old_close 2\n STACK old_client 2\n"
	"STACK old_uconn_read 5\n STACK old_uconn_write 5\n STACK old_uconn_close 2\n"
	"go_text_end:\n");

/* The table of functions, as Go 1.20 and later have it (cmd/link/internal/ld/pcln.go). */
__asm__(".section .gopclntab, \"a\", @progbits\n .p2align 5\n"
	"table: .long 0xfffffff1\n .byte 0, 0, 1, 8\n"
	".quad 15, 3, go_text, names - table, units - table, units - table, units - table, functions - table\n"
	"names: .byte 0\n"
	".macro NAME label text\n name_\\label: .asciz \"\\text\"\n .endm\n"
	"NAME conn_read crypto/tls.(*Conn).Read\n"
	"NAME conn_write crypto/tls.(*Conn).Write\n"
	"NAME conn_close crypto/tls.(*Conn).Close\n"
	"NAME conn_client crypto/tls.(*Conn).clientHandshake\n"
	"NAME conn_server crypto/tls.(*Conn).serverHandshake\n"
	"NAME uconn_read github.com/refraction-networking/utls.(*UConn).Read\n"
	"NAME uconn_write github.com/refraction-networking/utls.(*UConn).Write\n"
	"NAME uconn_close github.com/refraction-networking/utls.(*UConn).Close\n"
	"NAME old_read github.com/xtls/reality.(*Conn).Read\n"
	"NAME old_write github.com/xtls/reality.(*Conn).Write\n"
	"NAME old_close github.com/xtls/reality.(*Conn).Close\n"
	"NAME old_client github.com/xtls/reality.(*Conn).clientHandshake\n"
	"NAME old_uconn_read github.com/sagernet/utls.(*UConn).Read\n"
	"NAME old_uconn_write github.com/sagernet/utls.(*UConn).Write\n"
	"NAME old_uconn_close github.com/sagernet/utls.(*UConn).Close\n"
	".p2align 3\n"
	"units: .quad 0\n"
	".macro ENTRY label\n .long \\label - go_text, about_\\label - functions\n .endm\n"
	".macro ABOUT label\n about_\\label: .long \\label - go_text, name_\\label - names\n .zero 32\n .endm\n"
	".macro ALL what\n"
	"\\what conn_read\n \\what conn_write\n \\what conn_close\n \\what conn_client\n \\what conn_server\n"
	"\\what uconn_read\n \\what uconn_write\n \\what uconn_close\n"
	"\\what old_read\n \\what old_write\n \\what old_close\n \\what old_client\n"
	"\\what old_uconn_read\n \\what old_uconn_write\n \\what old_uconn_close\n"
	".endm\n"
	"functions: ALL ENTRY\n .long go_text_end - go_text, 0\n"
	"ALL ABOUT\n"
	".zero 64\n .text\n");

/* go_call(goroutine, function, receiver, buffer, size) with arguments in registers; go_call_old: on the stack. */
#define SAVE "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, 32(%rdi)\n"
#define RESTORE "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
#define TO_GOROUTINE "mov 24(%rdi), %rsp\n mov 40(%rdi), %r14\n mov 48(%rdi), %r11\n mov %r11, %fs:-8\n"
__asm__("go_call: " SAVE TO_GOROUTINE "mov %rdx, %rax\n mov %rcx, %rbx\n mov %r8, %rcx\n call *%rsi\n jmp go_called\n"
	"go_call_old: " SAVE TO_GOROUTINE
	"sub $64, %rsp\n mov %rdx, (%rsp)\n mov %rcx, 8(%rsp)\n mov %r8, 16(%rsp)\n mov %r8, 24(%rsp)\n call *%rsi\n"
	"go_called: mov running(%rip), %rdi\n mov 32(%rdi), %rsp\n" RESTORE
	"go_resume: " SAVE "jmp go_on\n"
	"go_inside: mov running(%rip), %rdi\n mov %rsp, 24(%rdi)\n mov 32(%rdi), %rsp\n sub $8, %rsp\n call go_does\n"
	"go_on: mov running(%rip), %rdi\n" TO_GOROUTINE "ret\n"
	"go_more_stack: mov running(%rip), %rdi\n movq $0, 16(%rdi)\n ret\n");

typedef void function(void);
void go_call(struct goroutine *, function *, void *, const void *, size_t);
void go_call_old(struct goroutine *, function *, void *, const void *, size_t);
void go_resume(struct goroutine *);
function conn_read, conn_write, conn_close, conn_client, conn_server, uconn_read, uconn_write, uconn_close;
function old_read, old_write, old_close, old_client, old_uconn_read, old_uconn_write, old_uconn_close;

__attribute__((used)) void go_does(void)
{
	void (*what)(void) = inside;

	inside = NULL;
	if (what)
		what();
}

static struct goroutine *new_goroutine(void)
{
	struct goroutine *g = calloc(1, sizeof *g);

	g->low = calloc(1, STACK);
	g->high = g->low + STACK;
	g->sp = g->high - ROOM;
	return g;
}

/* Calls a function of Go, which does something and returns this. */
static void call(struct goroutine *g, function *what, void *receiver, const void *buffer, void (*does)(void), long returns)
{
	struct goroutine *before = running;
	char *sp = g->sp, *high = g->high, *c = g->c;
	int old = what >= old_read;

	g->sp = (char *)((size_t)(sp - 64) & ~15UL);
	g->r14 = old ? 0 : (size_t)g;
	g->storage = old ? (size_t)g : 0;
	running = g;
	inside = does;
	result = returns;
	(old ? go_call_old : go_call)(g, what, receiver, buffer, ROOM);
	running = before;
	g->sp = sp + (g->high - high);
	g->c = c;
}

/* --- What functions do --- */

static const char *arrives; /* what is read into the buffer that ends the stack */

/* The stack moves in memory, and what was there is overwritten. */
static void move(void)
{
	struct goroutine *g = running;
	char *old = g->low, *made = malloc(STACK);

	memcpy(made, old, STACK);
	memset(old, 'x', STACK);
	g->sp += made - old;
	g->low = made;
	g->high = made + STACK;
	if (arrives)
		memcpy(g->high - ROOM, arrives, strlen(arrives));
}

static int fd, port;
static struct goroutine *sender;

static int connected(void)
{
	struct sockaddr_in remote = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_in address;
	socklen_t size = sizeof address;
	int made = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(made, (struct sockaddr *)&remote, sizeof remote))
		_exit(9);
	getsockname(made, (struct sockaddr *)&address, &size);
	printf("%d\n", ntohs(address.sin_port));
	return made;
}

/* A goroutine sends a record: its own address is where Go has it. */
static void transmit(void)
{
	static const char record[] = "\27\3\3\0\5hello";
	register long flags __asm__("r10") = 0, address __asm__("r8") = 0, size __asm__("r9") = 0;
	long number = SYS_sendto;

	storage = sender->r14 ? 0 : (size_t)sender;
	__asm__ volatile("xchg %%r14, %[g]\n syscall\n xchg %%r14, %[g]"
			 : "+a"(number)
			 : "D"(fd), "S"(record), "d"(sizeof record - 1), "r"(flags), "r"(address), "r"(size), [g] "b"(sender->r14)
			 : "rcx", "r11", "memory");
}

static struct goroutine *one;

/* This thread ends; another one goes on with the goroutine. */
static void hand_over(void)
{
	pthread_exit(NULL);
}

static void *begin(void *unused)
{
	call(one, conn_write, (void *)0x1000, "and on another thread", hand_over, 21);
	return NULL;
}

static jmp_buf back;

static void *finish(void *unused)
{
	go_resume(one);
	return NULL;
}

/* Another thread goes on with the goroutine, and this one does something else. */
static void leave(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, finish, NULL);
	pthread_join(thread, NULL);
	longjmp(back, 1);
}

static void inner(void)
{
	call(one, conn_write, (void *)0x6100, "inner", move, 5);
	result = 5;
}

/* --- Scenes --- */

/* The upper end of a goroutine's stack, where it has a variable with this text. */
static char *variable(struct goroutine *g, const char *text)
{
	return strcpy(g->high - ROOM, text);
}

static void speaks(struct goroutine *g, function *read, function *write, void *connection)
{
	sender = g;
	fd = connected();
	call(g, write, connection, "from the heap, ", transmit, 15);
	call(g, write, connection, variable(g, "from the stack, "), NULL, 16);
	call(g, write, connection, variable(g, "from a stack that moved, "), move, 25);
	call(g, write, connection, "nothing", NULL, 0);
	arrives = "heard on a stack that moved";
	call(g, read, connection, g->high - ROOM, move, 27);
	arrives = NULL;
	call(g, read, connection, ", and on the heap", NULL, 17);
	g->guard = ~0UL; /* the stack is too small: the function begins twice */
	call(g, write, connection, "once", NULL, 4);
}

int main(int argc, char **argv)
{
	struct goroutine *two = new_goroutine();
	void *utls[] = {(void *)0x3000}, *old_utls[] = {(void *)0x5000};
	pthread_t thread;
	char *sp;

	port = atoi(argv[1]);
	one = new_goroutine();
	call(one, conn_client, (void *)0x1000, NULL, NULL, 0x7777); /* an error */
	call(one, conn_client, (void *)0x1000, NULL, move, 0);
	speaks(one, conn_read, conn_write, (void *)0x1000);

	/* A goroutine may go on on another thread. */
	sp = one->sp;
	pthread_create(&thread, NULL, begin, NULL);
	pthread_join(thread, NULL);
	go_resume(one);
	one->sp = sp;
	call(one, conn_server, (void *)0x1000, NULL, NULL, 0); /* another one, and nobody closed the first */
	call(one, conn_write, (void *)0x1000, "served", NULL, 6);
	call(one, conn_close, (void *)0x1000, NULL, NULL, 0);

	/* The socket is another goroutine's. */
	sender = two;
	two->r14 = (size_t)two;
	fd = connected();
	call(one, conn_write, (void *)0x2000, "hidden", transmit, 6);

	speaks(one, uconn_read, uconn_write, utls);
	call(one, uconn_close, utls, NULL, NULL, 0);
	call(two, old_client, (void *)0x4000, NULL, NULL, 0x7777);
	call(two, old_client, (void *)0x4000, NULL, NULL, 0);
	speaks(two, old_read, old_write, (void *)0x4000);
	call(two, old_close, (void *)0x4000, NULL, NULL, 0);
	speaks(two, old_uconn_read, old_uconn_write, old_utls);
	call(two, old_uconn_close, old_utls, NULL, NULL, 0);

	call(one, conn_write, (void *)0x6000, "outer", inner, 5);

	/* A thread was left by a call that wanted its address.  The next call there, of the same goroutine, has one and sends elsewhere. */
	sender = one;
	one->r14 = (size_t)one;
	fd = connected();
	call(one, conn_write, (void *)0x7100, "first, ", transmit, 7);
	sp = one->sp;
	if (!setjmp(back))
		call(one, conn_write, (void *)0x7000, "finished elsewhere", leave, 18);
	running = NULL;
	one->sp = sp;
	call(one, conn_write, (void *)0x7100, "then", transmit, 4);
	return 0;
}
