/*
 * A program with OpenSSL's function names and none of its code: every call returns what the scene wants.
 * What a recorder must make of it is written in test_semantics.py.
 */
#include <arpa/inet.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static int result;
static size_t moved;
static int wire = -1; /* the socket that SSL_write uses, as the library would */
static volatile int sink;

#define API __attribute__((noinline, visibility("default")))
#define BODY(number) sink = number; __asm__ volatile("" ::: "memory")

API int SSL_read(void *ssl, void *buf, int n) { BODY(1); return result; }
API int SSL_write(void *ssl, const void *buf, int n)
{
	if (wire >= 0)
		send(wire, "\27\3\3\0\5hello", 10, 0);
	BODY(2);
	return result;
}
API int SSL_read_ex(void *ssl, void *buf, size_t n, size_t *count) { BODY(3); *count = moved; return result; }
API int SSL_write_ex(void *ssl, const void *buf, size_t n, size_t *count) { BODY(4); *count = moved; return result; }
API int SSL_peek(void *ssl, void *buf, int n) { BODY(5); return result; }
API int SSL_peek_ex(void *ssl, void *buf, size_t n, size_t *count) { BODY(6); *count = moved; return result; }
API int SSL_write_early_data(void *ssl, const void *buf, size_t n, size_t *count)
{
	int done = SSL_write_ex(ssl, buf, n, count);

	BODY(7);
	return done;
}
API int SSL_read_early_data(void *ssl, void *buf, size_t n, size_t *count)
{
	int done = SSL_read_ex(ssl, buf, n, count);

	BODY(8);
	return done == 1 ? 1 : 0;
}
API ssize_t SSL_sendfile(void *ssl, int fd, off_t at, size_t size, int flags) { BODY(9); return moved; }
API int SSL_do_handshake(void *ssl) { BODY(10); return result; }
API int SSL_shutdown(void *ssl) { BODY(11); return 0; }
API void SSL_set_connect_state(void *ssl) { BODY(12); }
API void SSL_set_accept_state(void *ssl) { BODY(13); }
API void SSL_free(void *ssl) { BODY(14); }
API int SSL_set_fd(void *ssl, int fd) { BODY(18); return 1; }
API int SSL_clear(void *ssl) { BODY(15); return 1; }
API long SSL_ctrl(void *ssl, int command, long arg, void *pointer) { BODY(16); return 1; }
API void SSL_get0_alpn_selected(void *ssl, const unsigned char **data, unsigned *length)
{
	BODY(17);
	*data = (const unsigned char *)"h2";
	*length = 2;
}

static const char *server_name;
API const char *SSL_get_servername(void *ssl, int type) { BODY(19); return server_name; }

/* What QUIC does: a read on one object reads from another inside. */
API int outer_read(void *outer, void *inner, char *buf)
{
	int got;

	result = 5;
	got = SSL_read(inner, buf, 16);
	memcpy(buf + 100, "outer", 5);
	moved = 5, result = 1;
	SSL_read_ex(outer, buf + 100, 16, &(size_t){0});
	return got;
}

static void say(void *ssl, const char *text)
{
	result = strlen(text);
	SSL_write(ssl, text, result);
}

static int connected(int listener)
{
	struct sockaddr_in address;
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	getsockname(listener, (struct sockaddr *)&address, &size);
	if (connect(fd, (struct sockaddr *)&address, size))
		_exit(9);
	getsockname(fd, (struct sockaddr *)&address, &size);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

/* One SSL* over time: what was known of it must be forgotten at the right moments, and only then. */
static int reuse(char *self, char *round)
{
	void *one = (void *)0x1000;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 9))
		return 9;
	wire = connected(listener);
	say(one, "its address ");
	say(one, "is known ");
	if (!strcmp(round, "last"))
		return 0;
	say(one, "now, ");
	wire = connected(listener);
	SSL_set_fd(one, wire);
	say(one, "on another ");
	say(one, "socket"); /* by now the thread relies on what it knows */
	SSL_free(one);
	say(one, "another connection, ");
	say(one, "in one piece");
	return execl(self, self, "reuse", "last", NULL); /* the same thread and the same SSL* in another program */
}

int main(int argc, char **argv)
{
	if (argc > 2)
		return reuse(argv[0], argv[2]);

	size_t big = argc > 1 ? strtoul(argv[1], NULL, 10) : 3000000, n;
	char *bytes = malloc(big + 1), buf[256] = "inner";
	void *one = (void *)0x1000, *two = (void *)0x2000, *three = (void *)0x3000;

	for (size_t i = 0; i < big; i++)
		bytes[i] = "0123456789abcdef"[i * 7 % 16];

	SSL_set_connect_state(one);
	SSL_ctrl(one, 55, 0, "fake.example");
	SSL_ctrl(one, 33, 0, "not a name");
	server_name = "other.example";
	SSL_get_servername(one, 0); /* it has a name already */
	SSL_clear(one); /* as a handshake does at its beginning: still the same connection */
	result = -1;
	SSL_do_handshake(one);
	result = 1;
	SSL_do_handshake(one);
	SSL_get0_alpn_selected(one, &(const unsigned char *){0}, &(unsigned){0});
	result = -1;
	SSL_write(one, "hello", 5); /* not yet: nothing moved */
	result = 3;
	SSL_write(one, "hello", 5); /* a partial write */
	say(one, "lo, ");
	moved = 60, result = 0;
	SSL_write_ex(one, bytes, 100, &n); /* failed, whatever the count says */
	moved = 6, result = 1;
	SSL_write_ex(one, "world!??", 8, &n);
	memcpy(buf, "answer", 6);
	result = 4;
	SSL_peek(one, buf, 4);
	moved = 4, result = 1;
	SSL_peek_ex(one, buf, 4, &n);
	result = -1;
	SSL_read(one, buf, 16);
	moved = 0, result = 0;
	SSL_read_ex(one, buf, 16, &n); /* the _ex functions return 0 for "try again", too: not an end */
	result = 6;
	SSL_read(one, buf, 16);
	moved = 1000;
	SSL_sendfile(one, 3, 0, 1000, 0);
	say(one, "after the file");
	moved = 5, result = 1;
	SSL_write_early_data(one, "early", 5, &n);
	result = big;
	SSL_write(one, bytes, big); /* one call, many chunks */
	result = 0;
	SSL_read(one, buf, 16); /* the end */
	SSL_shutdown(one);
	SSL_shutdown(one);
	SSL_free(one);

	say(one, "another connection at the same address"); /* never announced: joined in its middle */
	SSL_free(one);

	SSL_set_accept_state(two);
	server_name = NULL;
	SSL_get_servername(two, 0);
	server_name = "served.example";
	SSL_get_servername(two, 0);
	memcpy(buf, "inner", 5);
	outer_read(two, three, buf);
	SSL_clear(two); /* used again, for another connection */
	say(two, "recycled");
	result = 7;
	SSL_write(two, (void *)8, 7); /* memory that can't be read */
	say(two, "still in step");
	return 0; /* without freeing: the process ends */
}
