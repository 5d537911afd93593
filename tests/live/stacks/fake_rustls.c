/*
 * A program with the names of rustls 0.23, which does with them what a scene wants: SCENE PORT.
 *
 * Functions take what rustls's do, and connections are values that can be copied to another place.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define METHOD(module, type, name) __asm__("_ZN6rustls" #module #type #name "17h0123456789abcdefE")
#define BORROWED (1UL << 63)
#define MOMENT_US 700000

struct state {
	char before[0x10];
	void *cipher, *table;
	char between[0x78];
	char records[0x40]; /* ChunkVecBuffer */
	char after[0x280];
};

struct payload {
	unsigned long capacity;
	const void *address;
	unsigned long length;
};

struct slice {
	const void *address;
	unsigned long length;
};

struct outbound {
	const struct slice *chunks;
	unsigned long count, start, end;
};

unsigned long buffer(struct state *, const struct outbound *, unsigned long) METHOD(12common_state, 11CommonState, 16buffer_plaintext);
void received(struct state *, const struct payload *) METHOD(12common_state, 11CommonState, 23take_received_plaintext);
void start(struct state *) METHOD(12common_state, 11CommonState, 22start_outgoing_traffic);
void write_to(char *, int) METHOD(6vecbuf, 14ChunkVecBuffer, 8write_to);
void drop(struct state *) __asm__("_ZN4core3ptr54drop_in_place$LT$rustls..common_state..CommonState$GT$17h0123456789abcdefE");

/* What sends with the cipher: the only place that tells where in a connection it is. */
__asm__(".text\n"
	".type \"_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h0123456789abcdefE\",@function\n"
	"\"_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h0123456789abcdefE\":\n"
	".cfi_startproc\n"
	"push %rbx\n mov %rdi,%rbx\n mov 0x10(%rbx),%rsi\n mov 0x18(%rbx),%rax\n mov %rsp,%rdi\n call *0x18(%rax)\n pop %rbx\n ret\n"
	".cfi_endproc\n"
	".size \"_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h0123456789abcdefE\", "
	". - \"_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h0123456789abcdefE\"\n");

#define KEPT __attribute__((noinline, noclone))

KEPT unsigned long buffer(struct state *self, const struct outbound *what, unsigned long takes)
{
	__asm__ volatile("" ::: "memory");
	return takes;
}

KEPT void received(struct state *self, const struct payload *what)
{
	__asm__ volatile("" ::: "memory");
}

KEPT void start(struct state *self)
{
	__asm__ volatile("" ::: "memory");
}

KEPT void drop(struct state *self)
{
	__asm__ volatile("" ::: "memory");
}

KEPT void write_to(char *records, int fd)
{
	static const char record[64] = "\x17\x03\x03\x00\x3b";

	if (write(fd, record, sizeof record) != sizeof record)
		exit(2);
}

char bytes[4096];

static void send_(struct state *self, unsigned long size)
{
	struct outbound what = {0, (unsigned long)bytes, size, 0};

	buffer(self, &what, size);
}

static void receive(struct state *self, unsigned long capacity, unsigned long size)
{
	struct payload what = {capacity, bytes, size};

	received(self, &what);
}

int main(int argc, char **argv)
{
	struct sockaddr_in remote = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
	static struct state one, other;
	static struct slice chunks[1100];
	static char first, second;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "127.0.0.1", &remote.sin_addr);
	if (connect(fd, (struct sockaddr *)&remote, sizeof remote))
		return 1;
	for (unsigned i = 0; i < sizeof bytes; i++)
		bytes[i] = i;
	for (unsigned i = 0; i < 1100; i++)
		chunks[i] = (struct slice){bytes + i, 1};
	usleep(MOMENT_US);
	one.cipher = &first;
	if (!strcmp(argv[1], "moves")) {
		start(&one);
		receive(&one, BORROWED, 50);
		other = one;
		send_(&other, 100);
		write_to(other.records, fd);
		receive(&other, ~0UL, 60);
		receive(&other, 70, 70);
		drop(&other);
		start(&one); /* another connection in all its places */
		send_(&one, 7);
		receive(&one, 64, 70); /* no Vec holds more than its capacity */
		drop(&one);
	} else if (!strcmp(argv[1], "early")) {
		one.cipher = (void *)1;
		send_(&one, 10);
		one.cipher = &first;
		start(&one);
		send_(&one, 20);
		write_to(other.records, fd); /* of another connection */
		receive(&one, BORROWED, 5);
		start(&one); /* nobody saw the end */
		send_(&one, 3);
		one.cipher = &second;
		send_(&one, 4);
	} else {
		struct outbound what = {chunks, 3, 0, 3};

		start(&one);
		buffer(&one, &what, 2);
		chunks[1].address = NULL;
		buffer(&one, &what, 3);
		chunks[1].address = bytes + 1;
		what.count = what.end = 1100;
		buffer(&one, &what, 1100);
		buffer(&one, &what, 0);
	}
	return 0;
}
