/*
 * What every subject in C has in common: SUBJECT HOST PORT OUTFILE INFILE PLAN [EXTRA...].
 *
 * It connects, and carries out PLAN, items of the form [REPEATx]OUT:IN: sends the next OUT bytes of OUTFILE, then appends the
 * next IN bytes that come to INFILE.  At the end it prints one line of JSON with its addresses and the library's version.
 * A subject includes this file once and writes the five functions that are declared below.  Whatever fails ends the program.
 */
#ifndef SUBJECT_H
#define SUBJECT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define NAME "localhost"
#define ALPN "tlscap-test"
#ifndef SUBJECT_SOCKET
#define SUBJECT_SOCKET SOCK_STREAM
#endif

/* The handshake, on a connected socket; extra ends with NULL. */
static void tls_connect(int fd, char **extra);
/* One call that writes; returns how many bytes it took, or less than 1 for an error. */
static long tls_write(const char *from, size_t size);
/* One call that reads; returns how many bytes came, or less than 1 for an error or the end. */
static long tls_read(char *into, size_t size);
/* Says goodbye, and waits for the peer's; frees everything. */
static void tls_close(void);
static const char *tls_version(void);

static __attribute__((noreturn)) void fail(const char *what, long code)
{
	fprintf(stderr, "%s: %ld (errno: %s)\n", what, code, strerror(errno));
	exit(1);
}

static FILE *subject_out, *subject_in;

static void subject_send(size_t size)
{
	char *content = malloc(size + 1), *at = content, *end = content + size;

	if (!content || fread(content, 1, size, subject_out) != size)
		fail("read OUTFILE", size);
	while (at < end) {
		long done = tls_write(at, end - at);

		if (done < 1)
			fail("write", done);
		at += done;
	}
	free(content);
}

static void subject_receive(size_t size)
{
	static char buffer[1 << 16];

	while (size) {
		long done = tls_read(buffer, size < sizeof buffer ? size : sizeof buffer);

		if (done < 1)
			fail("read", done);
		if (fwrite(buffer, 1, done, subject_in) != (size_t)done)
			fail("write INFILE", done);
		size -= done;
	}
}

static void subject_carry_out(char *plan)
{
	for (char *item = strtok(plan, ","); item; item = strtok(NULL, ",")) {
		char *times = strchr(item, 'x'), *colon = strchr(item, ':');
		size_t repeat = times ? strtoul(item, NULL, 10) : 1, out = strtoul(times ? times + 1 : item, NULL, 10);

		if (!colon)
			fail("PLAN has no colon", 0);
		while (repeat--) {
			subject_send(out);
			subject_receive(strtoul(colon + 1, NULL, 10));
		}
	}
}

static void subject_print(const char *key, const struct sockaddr_in *address)
{
	char text[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &address->sin_addr, text, sizeof text);
	printf("\"%s\": [\"%s\", %d], ", key, text, ntohs(address->sin_port));
}

int main(int argc, char **argv)
{
	struct sockaddr_in local, remote = {.sin_family = AF_INET};
	socklen_t size = sizeof remote;
	int fd = socket(AF_INET, SUBJECT_SOCKET, 0);

	if (argc < 6)
		fail("usage: HOST PORT OUTFILE INFILE PLAN [EXTRA...]", argc);
	inet_pton(AF_INET, argv[1], &remote.sin_addr);
	remote.sin_port = htons(atoi(argv[2]));
	subject_out = fopen(argv[3], "rb");
	subject_in = fopen(argv[4], "wb");
	if (!subject_out || !subject_in)
		fail("open OUTFILE and INFILE", 0);
	if (connect(fd, (struct sockaddr *)&remote, sizeof remote))
		fail("connect", 0);
	getpeername(fd, (struct sockaddr *)&remote, &size);
	size = sizeof local;
	getsockname(fd, (struct sockaddr *)&local, &size);
	tls_connect(fd, argv + 6);
	subject_carry_out(argv[5]);
	tls_close();
	if (fclose(subject_in))
		fail("close INFILE", 0);
	printf("{");
	subject_print("local", &local);
	subject_print("remote", &remote);
	printf("\"version\": \"%s\"}\n", tls_version());
	return 0;
}

#endif
