/*
 * A program whose TLS library works in memory, with OpenSSL's function names and none of its code: SCENE PORT, where PORT echoes.
 * What a recorder must make of it is written in test_ciphertext.py.
 *
 * A connection is a number.  For each, the program says on which local port its records were carried.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define API __attribute__((noinline, visibility("default")))
#define BODY(number) sink = number; __asm__ volatile("" ::: "memory")
#define CHAIN ((void *)0xc0)

enum { CHANGE_CIPHER_SPEC = 20, HANDSHAKE = 22, DATA = 23 }; /* types of records, RFC 8446 5.1 */
enum { CLIENT_HELLO = 1, SERVER_HELLO = 2, CERTIFICATE = 11 };
enum { HEADER = 5, SHORT = 15, ENOUGH = 16, BODY_SIZE = 64 };

struct bytes {
	char at[256];
	int size;
};

/* What the next call does inside. */
static struct bytes hands[3], takes, says;
static int hands_count, says_at = -1;
static void *nested, *bio;
static int in_pieces, result;
static long port;
static volatile int sink;

API int BIO_write(void *bio, const void *from, int size) { BODY(1); return size; }
API int BIO_read(void *bio, void *to, int size)
{
	char other[256];

	if (bio == CHAIN) {
		BIO_read(NULL, other, size);
		memset(to, 'x', size); /* what it makes of it */
		return size;
	}
	memcpy(to, takes.at, size);
	memmove(takes.at, takes.at + size, sizeof takes.at - size);
	BODY(2);
	return size;
}
API int SSL_do_handshake(void *ssl) { BODY(3); return result; }
API int SSL_write(void *ssl, const void *from, int size)
{
	int count = hands_count;

	hands_count = 0;
	for (int i = 0; i < count; i++)
		BIO_write(bio, hands[i].at, hands[i].size);
	if (nested) {
		void *inner = nested;

		nested = NULL;
		hands_count = 1;
		hands[0] = hands[1];
		SSL_write(inner, "inner", result);
	}
	if (says_at >= 0)
		send(says_at, says.at, says.size, 0);
	BODY(4);
	return result;
}
API int SSL_read(void *ssl, void *to, int size)
{
	char buffer[256];
	int left = takes.size;

	if (in_pieces && left)
		left -= BIO_read(bio, buffer, HEADER);
	if (left)
		BIO_read(bio, buffer, left);
	BODY(5);
	return result;
}
API void SSL_set_bio(void *ssl, void *in, void *out) { BODY(6); }
API void SSL_free(void *ssl) { BODY(7); }

/* --- Sockets --- */

static int connected(int type)
{
	struct sockaddr_in remote = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, type, 0);

	if (connect(fd, (struct sockaddr *)&remote, sizeof remote))
		_exit(9);
	return fd;
}

static void tell(unsigned long connection, int fd)
{
	struct sockaddr_in address;
	socklen_t size = sizeof address;

	getsockname(fd, (struct sockaddr *)&address, &size);
	printf("%#lx %d\n", connection, ntohs(address.sin_port));
}

static void carry(int fd, const struct bytes *what)
{
	if (send(fd, what->at, what->size, 0) != what->size)
		_exit(8);
}

/* What the peer sends back. */
static void receive(int fd, const struct bytes *what)
{
	static char buffer[256];

	if (recv(fd, buffer, what->size, MSG_WAITALL) != what->size || memcmp(buffer, what->at, what->size))
		_exit(7);
	memset(buffer, 0, sizeof buffer);
}

/* Bytes come from the peer, through this socket. */
static void bring(int fd, const struct bytes *what)
{
	carry(fd, what);
	receive(fd, what);
}

/* --- Records --- */

/* Appends one whose body begins with `first`, if that is not 0, and is unlike all others. */
static void add(struct bytes *to, int type, int first, int size)
{
	static unsigned noise = 1;
	char *body = to->at + to->size + HEADER;

	memcpy(to->at + to->size, (char[]){type, 3, 3, size >> 8, size}, HEADER);
	for (int i = 0; i < size; i++)
		body[i] = (noise = noise * 1103515245 + 12345) >> 16;
	if (first)
		body[0] = first;
	to->size += HEADER + size;
}

static struct bytes record(int type, int first, int size)
{
	struct bytes made = {"", 0};

	add(&made, type, first, size);
	return made;
}

static struct bytes data(void)
{
	return record(DATA, 0, BODY_SIZE);
}

/* --- Calls --- */

static void say(void *ssl, const char *text)
{
	result = strlen(text);
	SSL_write(ssl, text, result);
	hands_count = 0;
	says_at = -1;
}

static void hand_out(void *ssl, const struct bytes *what)
{
	hands[0] = *what;
	hands_count = 1;
	say(ssl, "out");
}

static void take_in(void *ssl, const struct bytes *what)
{
	takes = *what;
	result = 2;
	SSL_read(ssl, "in", result);
	takes.size = 0;
}

static void say_inside(void *ssl, int fd, const char *text, int size)
{
	says_at = fd;
	says.size = size;
	memcpy(says.at, text, size);
	say(ssl, "sent");
}

/* A connection hands out a record, which a new socket carries. */
static int out(unsigned long connection, struct bytes what)
{
	int fd = connected(SOCK_STREAM);

	hand_out((void *)connection, &what);
	carry(fd, &what);
	tell(connection, fd);
	return fd;
}

/* A new socket brings a record, which a connection takes in. */
static int in(unsigned long connection, struct bytes what)
{
	int fd = connected(SOCK_STREAM);

	bring(fd, &what);
	take_in((void *)connection, &what);
	tell(connection, fd);
	return fd;
}

/* --- Scenes --- */

static void handed_out(void)
{
	struct bytes what = record(CHANGE_CIPHER_SPEC, 0, 1), other, again;
	int fd, elsewhere;

	out(0x1001, data());
	out(0x1002, record(DATA, 0, ENOUGH));
	out(0x1003, record(DATA, 0, SHORT));
	add(&what, DATA, 0, BODY_SIZE);
	out(0x1004, what); /* what is too short to prove anything stands in front */
	out(0x1005, record(HANDSHAKE, CLIENT_HELLO, BODY_SIZE));
	out(0x1006, record(HANDSHAKE, SERVER_HELLO, BODY_SIZE));
	out(0x1007, record(HANDSHAKE, CERTIFICATE, BODY_SIZE)); /* every connection to a server has this one */
	what = record(HANDSHAKE, SERVER_HELLO, BODY_SIZE);
	memcpy(what.at + HEADER + 6, "\xcf\x21\xad\x74", 4); /* and this "random": HelloRetryRequest */
	out(0x1008, what);
	what = data();
	what.at[1] = 4; /* no version of TLS: no record */
	out(0x1009, what);

	/* Two at once: each is the connection's that handed it out. */
	what = data(), other = data();
	fd = connected(SOCK_STREAM), elsewhere = connected(SOCK_STREAM);
	hand_out((void *)0x100a, &what);
	hand_out((void *)0x100b, &other);
	carry(elsewhere, &other);
	carry(fd, &what);
	tell(0x100a, fd);
	tell(0x100b, elsewhere);

	/* TLS in TLS: what the inner call hands out is carried, what the outer one did goes into it. */
	hands[0] = data(), hands[1] = what = data();
	hands_count = 1;
	nested = (void *)0x100d;
	fd = connected(SOCK_STREAM);
	say((void *)0x100c, "outer");
	carry(fd, &what);
	tell(0x100d, fd);

	/* On another socket from now on; then somebody sends once more what was sent before. */
	again = data();
	out(0x100e, again);
	SSL_set_bio((void *)0x100e, NULL, NULL);
	carry(connected(SOCK_STREAM), &again);

	/* No call of a connection: nobody's. */
	what = data();
	BIO_write(NULL, what.at, what.size);
	carry(connected(SOCK_STREAM), &what);
}

static void taken_in(void)
{
	struct bytes what = data(), unique = data();
	int one, two;

	in(0x2001, data());
	in_pieces = 1; /* the header first */
	in(0x2002, data());
	in_pieces = 0;
	in(0x2003, record(DATA, 0, SHORT));
	in(0x2004, record(HANDSHAKE, SERVER_HELLO, BODY_SIZE));
	in(0x2005, record(HANDSHAKE, CERTIFICATE, BODY_SIZE));
	bio = CHAIN;
	in(0x2006, data());
	bio = NULL;

	/* Two sockets brought the same: that tells nothing, but what only the second brings later does. */
	one = connected(SOCK_STREAM), two = connected(SOCK_STREAM);
	carry(one, &what);
	carry(two, &what);
	receive(one, &what);
	receive(two, &what);
	take_in((void *)0x2007, &what);
	take_in((void *)0x2008, &what);
	bring(two, &unique);
	take_in((void *)0x2008, &unique);
	tell(0x2008, two);
	unique = data();
	bring(one, &unique); /* the first may be a proxy's, whose other side is the second */
	take_in((void *)0x2009, &unique);

	/* What comes back through the socket that brought it is no proxy's. */
	what = data(), unique = data();
	one = connected(SOCK_STREAM);
	bring(one, &what);
	bring(one, &what);
	bring(one, &unique);
	take_in((void *)0x200a, &unique);
	tell(0x200a, one);

	/* What a socket brought goes on through another one: the first is a proxy's, whatever it brings. */
	what = data(), unique = data();
	one = connected(SOCK_STREAM), two = connected(SOCK_STREAM);
	bring(one, &what);
	carry(two, &what);
	take_in((void *)0x200b, &what);
	bring(one, &unique);
	take_in((void *)0x200c, &unique);
}

/* Inside TLS calls, programs write to logs, too. */
static void sent_inside(void)
{
	static const char line[] = "<14>a line of a log", record[] = "\27\3\3\0\5hello";
	int fd = connected(SOCK_STREAM), log = connected(SOCK_STREAM), datagrams = connected(SOCK_DGRAM);
	void *ssl = (void *)0x3001, *quic = (void *)0x3003;

	say_inside(ssl, log, line, sizeof line);
	say_inside(ssl, fd, record, sizeof record);
	say_inside(ssl, log, record, sizeof record); /* it is known already */
	tell(0x3001, fd);
	say_inside((void *)0x3002, log, line, sizeof line);
	say_inside(quic, datagrams, line, sizeof line);
	tell(0x3003, datagrams);
	result = 0;
	SSL_read(quic, "", 1); /* of datagrams, nothing is not the end */
	result = 4;
	SSL_read(quic, "more", 4);
}

/* --- What is probed while the program runs --- */

/* Until a function has a breakpoint. */
static void probed(const void *function, const char *before)
{
	for (int i = 0; !memcmp(function, before, 16); i++, usleep(1000))
		if (i > 20000)
			_exit(6);
}

/* A program that nobody expects to work in memory: it shows when a call that must have sent something sent nothing. */
static void lazily(int by_handshake)
{
	static char reads[16], writes[16];
	struct bytes early = data(), late = data();
	int fd = connected(SOCK_STREAM), other = connected(SOCK_STREAM);

	memcpy(reads, BIO_read, sizeof reads);
	memcpy(writes, BIO_write, sizeof writes);
	result = 4;
	SSL_read((void *)0x4001, "read", 4); /* of what had come before */
	result = -1;
	SSL_write((void *)0x4001, "nothing", 7);
	say_inside((void *)0x4003, other, early.at, early.size);
	tell(0x4003, other);
	if (memcmp(BIO_read, reads, sizeof reads) || memcmp(BIO_write, writes, sizeof writes))
		_exit(5);
	result = -1;
	if (by_handshake)
		SSL_do_handshake((void *)0x4001); /* whatever it returns: it has said hello */
	else
		hand_out((void *)0x4001, &early);
	carry(fd, &early); /* too early */
	probed(BIO_read, reads);
	probed(BIO_write, writes);
	hand_out((void *)0x4002, &early); /* nobody sends it any more */
	hand_out((void *)0x4001, &late);
	carry(fd, &late);
	tell(0x4001, fd);
}

/* --- Functions that a library is given to send and receive with --- */

static int send_one(void *unused, const void *from, int size) { BODY(11); return size; }
static int receive_one(void *unused, void *to, int size) { BODY(12); memcpy(to, takes.at, size); return size; }
static long send_vector(void *unused, const struct iovec *from, int count) { BODY(13); return from->iov_len; }
static int send_two(void *unused, const void *from, int size) { BODY(14); return size; }
static int receive_two(void *unused, void *to, int size) { BODY(15); memcpy(to, takes.at, size); return size; }
static int send_three(void *unused, const void *from, int size) { BODY(16); return size; }
static int receive_three(void *unused, void *to, int size) { BODY(17); memcpy(to, takes.at, size); return size; }

typedef int function(void *, void *, int);
static function *sender, *receiver;

API int gnutls_record_recv(void *session, void *to, size_t size) { receiver(NULL, (char[256]){}, takes.size); BODY(21); return result; }
API int gnutls_record_send(void *session, const void *from, size_t size)
{
	if (sender)
		sender(NULL, hands[0].at, hands[0].size);
	else
		send_vector(NULL, &(struct iovec){hands[0].at, hands[0].size}, 1);
	BODY(22);
	return result;
}
API void gnutls_transport_set_push_function(void *session, void *push) { BODY(23); }
API void gnutls_transport_set_pull_function(void *session, void *pull) { BODY(24); }
API void gnutls_transport_set_vec_push_function(void *session, void *push) { BODY(25); }
API void wolfSSL_SSLSetIOSend(void *ssl, void *send) { BODY(26); }
API void wolfSSL_SSLSetIORecv(void *ssl, void *receive) { BODY(27); }
API int wolfSSL_read(void *ssl, void *to, int size) { BODY(28); return result; }
API int wolfSSL_write(void *ssl, const void *from, int size) { BODY(29); return result; }
API void mbedtls_ssl_set_bio(void *ssl, void *context, void *send, void *receive, void *receive_timeout) { BODY(30); }
API int mbedtls_ssl_read(void *ssl, void *to, size_t size) { BODY(31); return result; }
API int mbedtls_ssl_write(void *ssl, const void *from, size_t size) { BODY(32); return result; }

/* A connection that hands out through this function, and one that takes in through the other. */
static void through(unsigned long connection, function *writes, function *reads)
{
	int fd = connected(SOCK_STREAM);

	sender = writes;
	receiver = reads;
	hands[0] = data();
	result = 3;
	gnutls_record_send((void *)connection, "out", 3);
	carry(fd, &hands[0]);
	tell(connection, fd);
	if (!reads)
		return;
	fd = connected(SOCK_STREAM);
	takes = data();
	bring(fd, &takes);
	result = 2;
	gnutls_record_recv((void *)(connection + 1), "in", 2);
	tell(connection + 1, fd);
	takes.size = 0;
}

static void given(void)
{
	function *all[] = {send_one, receive_one, (function *)send_vector, send_two, receive_two, send_three, receive_three};
	char before[7][16];

	for (int i = 0; i < 7; i++)
		memcpy(before[i], all[i], sizeof before[i]);
	gnutls_transport_set_push_function((void *)0x5f00, send_one);
	gnutls_transport_set_pull_function((void *)0x5f00, receive_one);
	gnutls_transport_set_vec_push_function((void *)0x5f00, send_vector);
	wolfSSL_SSLSetIOSend((void *)0x5f00, send_two);
	wolfSSL_SSLSetIORecv((void *)0x5f00, receive_two);
	mbedtls_ssl_set_bio((void *)0x5f00, NULL, send_three, receive_three, NULL);
	for (int i = 0; i < 7; i++)
		probed(all[i], before[i]);
	through(0x5001, (function *)send_one, receive_one);
	through(0x5003, NULL, NULL);
	through(0x5004, (function *)send_two, receive_two);
	through(0x5006, (function *)send_three, receive_three);
}

int main(int argc, char **argv)
{
	port = atoi(argv[2]);
	if (!strcmp(argv[1], "inside")) {
		sent_inside();
	} else if (!strcmp(argv[1], "memory")) {
		handed_out();
		taken_in();
		given();
	} else {
		lazily(!strcmp(argv[1], "handshake"));
	}
	return 0;
}
