/*
 * A program with the function names of GnuTLS, wolfSSL, Mbed TLS and NSS and none of their code: every call returns what the scene
 * wants.  What a recorder must make of it is written in test_libraries.py.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int result;
static int wire = -1; /* the socket that calls which send use, as the library would */
static volatile int sink;

#define API __attribute__((noinline, visibility("default")))
#define BODY(number) sink = number; __asm__ volatile("" ::: "memory")

static void transmit(void)
{
	if (wire >= 0)
		send(wire, "\27\3\3\0\5hello", 10, 0);
}

static int connected(int listener)
{
	struct sockaddr_in address;
	socklen_t size = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	getsockname(listener, (struct sockaddr *)&address, &size);
	if (connect(fd, (struct sockaddr *)&address, size))
		_exit(9);
	getsockname(fd, (struct sockaddr *)&address, &size);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

/* --- GnuTLS --- */

struct datum {
	const char *data;
	unsigned size;
};

struct buffer { /* mbuffer_st */
	struct buffer *next, *previous;
	const char *data;
	unsigned size;
	unsigned long mark;
};

static void *made;             /* what gnutls_init makes */
static const char *negotiated; /* what gnutls_alpn_get_selected_protocol finds */
static const char *corked;     /* what gnutls_record_uncork sends */
static void *other;            /* a session that sends something while gnutls_record_uncork does */
static struct buffer *packet;

API long gnutls_record_send2(void *session, const void *data, size_t size, size_t pad, unsigned flags) { transmit(); BODY(1); return result; }
API long gnutls_record_send(void *session, const void *data, size_t size)
{
	long sent = gnutls_record_send2(session, data, size, 0, 0);

	BODY(2);
	return sent;
}
API long gnutls_record_recv(void *session, void *data, size_t size) { BODY(3); return result; }
API long gnutls_record_recv_seq(void *session, void *data, size_t size, unsigned char *sequence) { BODY(4); return result; }
API long gnutls_record_recv_packet(void *session, struct buffer **to) { BODY(5); *to = packet; return result; }
API long gnutls_record_send_early_data(void *session, const void *data, size_t size) { BODY(6); return result; }
API long gnutls_record_recv_early_data(void *session, void *data, size_t size) { BODY(7); return result; }
API int gnutls_record_uncork(void *session, unsigned flags)
{
	int wanted = result;

	result = strlen(corked);
	gnutls_record_send(session, corked, result);
	if (other) {
		result = strlen("through another");
		gnutls_record_send(other, "through another", result);
	}
	BODY(8);
	return wanted;
}
API int gnutls_handshake(void *session) { BODY(9); return result; }
API int gnutls_bye(void *session, int how) { transmit(); BODY(10); return 0; }
API int gnutls_alpn_get_selected_protocol(void *session, struct datum *protocol)
{
	BODY(11);
	protocol->data = negotiated;
	protocol->size = strcspn(negotiated, " ");
	return result;
}
API int gnutls_init(void **session, unsigned flags) { BODY(12); *session = made; return result; }
API int gnutls_server_name_set(void *session, int type, const void *name, size_t length) { BODY(13); return 0; }
API void gnutls_transport_set_int2(void *session, int in, int out) { BODY(14); wire = out; }
API void gnutls_transport_set_ptr(void *session, void *both) { BODY(16); wire = (long)both; }
API void gnutls_transport_set_ptr2(void *session, void *in, void *out) { BODY(17); wire = (long)out; }
API void gnutls_deinit(void *session) { BODY(15); }

static long say(void *session, const char *text)
{
	result = strlen(text);
	return gnutls_record_send(session, text, result);
}

static long hear(void *session, const char *text)
{
	result = strlen(text);
	return gnutls_record_recv(session, (void *)text, result);
}

static int begin(void *session, unsigned flags, int returns)
{
	void *filled;

	made = session;
	result = returns;
	return gnutls_init(&filled, flags);
}

static int flush(void *session, const char *what, int returns)
{
	corked = what;
	result = returns;
	return gnutls_record_uncork(session, 0);
}

static void take_packet(void *session, struct buffer *given, int returns)
{
	struct buffer *got;

	packet = given;
	result = returns;
	gnutls_record_recv_packet(session, &got);
}

static void gnutls(int listener)
{
	enum { SERVER = 1, CLIENT = 2, NO_TICKETS = 8 };
	void *one = (void *)0x1000, *two = (void *)0x1100, *three = (void *)0x1200, *never = (void *)0x1300;
	struct buffer whole = {NULL, NULL, "in a packet", 11, 0}, rest = {NULL, NULL, "gone, the rest", 14, 6};
	struct datum protocol;
	int in_use = connected(listener), moved;

	begin(never, CLIENT, -50);
	begin(one, CLIENT | NO_TICKETS, 0);
	gnutls_server_name_set(one, 1, "gnutls.example, and what follows", 14);
	negotiated = "none at all";
	result = -56; /* GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE */
	gnutls_alpn_get_selected_protocol(one, &protocol);
	result = -28; /* GNUTLS_E_AGAIN */
	gnutls_handshake(one);
	result = 0;
	gnutls_handshake(one);
	negotiated = "h2 and what follows";
	gnutls_alpn_get_selected_protocol(one, &protocol);
	negotiated = "later";
	gnutls_alpn_get_selected_protocol(one, &protocol);

	wire = in_use;
	say(one, "a, "); /* by two functions that are hooked, of which one calls the other */
	say(one, "b, ");  /* by now the thread relies on what it knows */
	wire = -1;
	say(one, "corked, "); /* only taken over */
	wire = in_use;
	flush(one, "corked, ", -28); /* sends, and isn't done */
	say(one, "more, ");
	other = two;
	flush(one, "more, ", 6);
	other = NULL;
	say(one, "after");
	moved = connected(listener);
	gnutls_transport_set_int2(one, moved, moved);
	say(one, ", elsewhere");
	gnutls_transport_set_ptr(one, (void *)(long)connected(listener));
	say(one, ", and");
	gnutls_transport_set_ptr2(one, (void *)0, (void *)(long)connected(listener));
	say(one, " again");

	hear(one, "plain, ");
	result = strlen("in order, ");
	gnutls_record_recv_seq(one, "in order, ", result, NULL);
	take_packet(one, &whole, 11);
	take_packet(one, &rest, 8);
	take_packet(one, &whole, 9); /* not as it says: its bytes can't be found */
	take_packet(one, &whole, -28);
	take_packet(one, NULL, 0); /* the end */
	gnutls_bye(one, 0);

	wire = -1;
	begin(one, SERVER, 0); /* in the same place; nobody saw the end of the first */
	result = 5;
	gnutls_record_recv_early_data(one, "early", 5);
	say(one, "served");
	gnutls_deinit(one);

	begin(three, CLIENT, 0);
	result = 6;
	gnutls_record_send_early_data(three, "sooner", 6);
	gnutls_deinit(three);
}

/* --- wolfSSL --- */

API int wolfSSL_read(void *ssl, void *data, int size) { BODY(21); return result; }
API int wolfSSL_write(void *ssl, const void *data, int size) { transmit(); BODY(22); return result; }
API int wolfSSL_peek(void *ssl, void *data, int size) { BODY(23); return result; }
API int wolfSSL_connect(void *ssl) { BODY(24); return result; }
API int wolfSSL_accept(void *ssl) { BODY(25); return result; }
API int wolfSSL_shutdown(void *ssl) { BODY(26); return 1; }
API int wolfSSL_UseSNI(void *ssl, unsigned char type, const void *name, unsigned short size) { BODY(27); return 1; }
API int wolfSSL_clear(void *ssl) { BODY(28); return 1; }
API int wolfSSL_set_fd(void *ssl, int fd) { BODY(30); wire = fd; return 1; }
API void wolfSSL_set_bio(void *ssl, void *in, void *out) { BODY(20); wire = (long)out; }
API void wolfSSL_free(void *ssl) { BODY(29); }

static void wolfssl(int listener)
{
	void *ssl = (void *)0x2000;
	char name[300];

	memset(name, 'n', sizeof name); /* longer than any that is kept, and no zero behind it */
	wolfSSL_UseSNI(ssl, 0, name, sizeof name);
	result = -1;
	wolfSSL_connect(ssl);
	result = 1;
	wolfSSL_connect(ssl);
	wire = connected(listener);
	result = 4;
	wolfSSL_write(ssl, "wolf", 4);
	wolfSSL_set_fd(ssl, connected(listener));
	wolfSSL_write(ssl, "SSL ", 4);
	wolfSSL_set_bio(ssl, NULL, (void *)(long)connected(listener));
	wolfSSL_write(ssl, "says", 4);
	wire = -1;
	wolfSSL_peek(ssl, "answer", 4);
	result = 6;
	wolfSSL_read(ssl, "answer", 6);
	wolfSSL_shutdown(ssl);
	wolfSSL_clear(ssl);
	result = 1;
	wolfSSL_accept(ssl);
	result = 5;
	wolfSSL_read(ssl, "again", 5);
	wolfSSL_free(ssl);
}

/* --- Mbed TLS --- */

static const char *protocol_name;

API int mbedtls_ssl_read(void *ssl, void *data, size_t size) { BODY(31); return result; }
API int mbedtls_ssl_write(void *ssl, const void *data, size_t size) { BODY(32); return result; }
API int mbedtls_ssl_handshake(void *ssl) { BODY(33); return result; }
API int mbedtls_ssl_close_notify(void *ssl) { BODY(34); return 0; }
API const char *mbedtls_ssl_get_alpn_protocol(const void *ssl) { BODY(35); return protocol_name; }
API int mbedtls_ssl_set_hostname(void *ssl, const char *name) { BODY(36); return 0; }
API int mbedtls_ssl_session_reset(void *ssl) { BODY(37); return 0; }
API void mbedtls_ssl_free(void *ssl) { BODY(38); }

static void mbedtls(void)
{
	void *ssl = (void *)0x3000;

	mbedtls_ssl_set_hostname(ssl, "mbed.example");
	mbedtls_ssl_session_reset(ssl); /* nothing has passed: it is the same connection */
	mbedtls_ssl_get_alpn_protocol(ssl);
	result = 1; /* 0 is success */
	mbedtls_ssl_handshake(ssl);
	result = -0x6900; /* MBEDTLS_ERR_SSL_WANT_READ */
	mbedtls_ssl_handshake(ssl);
	protocol_name = "mqtt";
	mbedtls_ssl_get_alpn_protocol(ssl);
	protocol_name = "later";
	mbedtls_ssl_get_alpn_protocol(ssl);
	result = -0x6880; /* MBEDTLS_ERR_SSL_WANT_WRITE */
	mbedtls_ssl_write(ssl, "bed", 3);
	result = 3;
	mbedtls_ssl_write(ssl, "bed", 3);
	result = 0;
	mbedtls_ssl_read(ssl, "", 9);
	mbedtls_ssl_close_notify(ssl);
	mbedtls_ssl_session_reset(ssl);
	result = 0;
	mbedtls_ssl_handshake(ssl);
	result = 4;
	mbedtls_ssl_read(ssl, "next", 4);
	mbedtls_ssl_free(ssl);
}

/* --- NSS, whose functions for data have no names --- */

API int SSL_ForceHandshake(void *fd) { BODY(41); return result; }
API int SSL_SetURL(void *fd, const char *name) { BODY(42); return 0; }
API int SSL_ResetHandshake(void *fd, int as_server) { BODY(43); return 0; }

static int nss_close(void *fd) { BODY(51); return 0; }
static int nss_read(void *fd, void *data, int size) { BODY(52); return result; }
static int nss_write(void *fd, const void *data, int size) { BODY(53); return result; }
static int nss_shutdown(void *fd, int how) { BODY(54); return 0; }
static int nss_recv(void *fd, void *data, int size, int flags, unsigned timeout) { BODY(55); return result; }
static int nss_send(void *fd, const void *data, int size, int flags, unsigned timeout) { BODY(56); return result; }
static int nss_more(void *fd) { BODY(57); return 0; }

static struct { /* PRIOMethods */
	int type;
	void *close, *read, *write, *others_4, *others_5, *others_6, *others_7, *others_8, *others_9, *others_10, *others_11, *others_12,
		*others_13, *others_14, *others_15, *shutdown, *recv, *send, *others_19, *others_20;
} methods;

API void *SSL_ImportFD(void *model, void *fd)
{
	methods.type = 4;
	methods.close = nss_close;
	methods.read = nss_read;
	methods.write = nss_write;
	methods.others_4 = nss_more;
	methods.others_5 = nss_more;
	methods.others_6 = nss_more;
	methods.others_7 = nss_more;
	methods.others_8 = nss_more;
	methods.others_9 = nss_more;
	methods.others_10 = nss_more;
	methods.others_11 = nss_more;
	methods.others_12 = nss_more;
	methods.others_13 = nss_more;
	methods.others_14 = nss_more;
	methods.others_15 = nss_more;
	methods.others_19 = nss_more;
	methods.others_20 = nss_more;
	methods.shutdown = nss_shutdown;
	methods.recv = nss_recv;
	methods.send = nss_send;
	return fd;
}

static void nss(void)
{
	enum { PEEK = 2, OTHER = 0x11 };
	void *fd = (void *)0x4000, *served = (void *)0x4100;

	SSL_ImportFD(NULL, fd);
	SSL_SetURL(fd, "nss.example");
	SSL_ResetHandshake(fd, 0);
	result = -1;
	SSL_ForceHandshake(fd);
	result = 0;
	SSL_ForceHandshake(fd);
	result = 5;
	nss_write(fd, "data ", 5);
	nss_send(fd, "and more", 5, 0, 0);
	nss_recv(fd, "hello, ", 7, PEEK, 0);
	nss_recv(fd, "hello, ", 7, PEEK | OTHER, 0);
	result = 7;
	nss_recv(fd, "hello, ", 7, OTHER, 0);
	result = 5;
	nss_read(fd, "world", 5);
	result = 0;
	nss_recv(fd, "", 1, PEEK, 0); /* says that the end is near; it is not read */
	result = 1;
	nss_recv(fd, "!", 1, 0, 0);
	result = 0;
	nss_recv(fd, "", 1, 0, 0);
	nss_shutdown(fd, 1);
	nss_close(fd);

	SSL_ResetHandshake(served, 1);
	result = 2;
	nss_read(served, "ok", 2);
	nss_close(served);
}

int main(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 9))
		return 9;
	gnutls(listener);
	wolfssl(listener);
	mbedtls();
	nss();
	return 0;
}
