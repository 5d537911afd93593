/*
 * A program without symbols whose functions raise errors as rules of signatures want it: SCENE PORT, where PORT echoes.
 * What a recorder must make of it is written in test_proof.py.
 *
 * In one scene they are a TLS library's, in the other they only look so.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAIL(reason) (raise_error(__LINE__, "src/wire.c", reason), -1)
#define LINE "<14>a line of a log"
#define RECORD "\27\3\3\0\20a record's body."
#define SIZE(text) (sizeof text - 1)

static const char *hands, *says; /* what the next call does inside */
static int hands_size, says_size, hears_size, fd, port;
static volatile int sink;

static __attribute__((noipa)) void raise_error(int line, const char *file, int reason) { sink = line + reason; }

static __attribute__((noipa)) int bio_write(void *bio, const void *from, int size)
{
	return size < 0 ? FAIL(105) : size;
}

static __attribute__((noipa)) int do_write(void *ssl, const void *from, int size)
{
	if (size < 0)
		return FAIL(101);
	if (hands_size)
		bio_write(NULL, hands, hands_size);
	if (says_size)
		send(fd, says, says_size, 0);
	return size;
}

static __attribute__((noipa)) int do_read(void *ssl, void *to, int size)
{
	char buffer[64];

	if (size < 0)
		return FAIL(102);
	if (hears_size)
		recv(fd, buffer, hears_size, MSG_WAITALL);
	return size;
}

static int connected(int type)
{
	struct sockaddr_in remote = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, type, 0);

	if (connect(fd, (struct sockaddr *)&remote, sizeof remote))
		_exit(9);
	return fd;
}

static void out(long connection, const char *text)
{
	do_write((void *)connection, text, strlen(text));
	hands_size = says_size = 0;
}

static void in(long connection, const char *text, const char *brought, int size)
{
	if (size && send(fd, brought, size, 0) != size)
		_exit(8);
	hears_size = size;
	do_read((void *)connection, (void *)text, strlen(text));
	hears_size = 0;
}

static void handing(const char *what, int size) { hands = what, hands_size = size; }
static void saying(const char *what, int size) { says = what, says_size = size; }

static void other(void)
{
	out(0x1000, "a secret");
	in(0x1000, "another", NULL, 0);
	saying(LINE, SIZE(LINE));
	out(0x1000, "and its log");
	recv(fd, (char[64]){}, SIZE(LINE), MSG_WAITALL); /* the echo */
	in(0x1000, "from the network", LINE, SIZE(LINE));
	in(0x1000, "too little", "\27\3\3", 3); /* of a record's header */
	handing(LINE, SIZE(LINE));
	out(0x2000, "to memory");
	fd = connected(SOCK_DGRAM);
	saying(LINE, SIZE(LINE));
	out(0x3000, "and a question to a name server");
}

static void tls(void)
{
	out(0x1000, "before");
	in(0x1000, "before", NULL, 0);
	saying(RECORD, SIZE(RECORD));
	out(0x1000, "from here ");
	out(0x1000, "on");
	in(0x1000, "both ways", NULL, 0);
	recv(fd, (char[64]){}, SIZE(RECORD), MSG_WAITALL); /* the echo */

	in(0x2000, "before", NULL, 0);
	in(0x2000, "what a record brought", RECORD, SIZE(RECORD));
	out(0x2000, "answered");

	out(0x3000, "before");
	handing(RECORD, SIZE(RECORD));
	out(0x3000, "in memory");
	in(0x3000, "heard", NULL, 0);

	out(0x4000, "of a connection that has no proof");
}

int main(int argc, char **argv)
{
	port = atoi(argv[2]);
	fd = connected(SOCK_STREAM);
	if (!strcmp(argv[1], "tls"))
		tls();
	else
		other();
	return 0;
}
