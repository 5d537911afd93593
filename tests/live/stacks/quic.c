/*
 * QUIC by OpenSSL 3.5 or newer, loaded at run time: EXTRA are libraries to load in this order, libssl last.
 *
 * One bidirectional stream, with calls that block, on a socket that is connected to the peer.
 */
#define SUBJECT_SOCKET SOCK_DGRAM
#include "loaded.h"

static void *connection, *stream, *context;

/* Macros, and what they need: openssl/tls1.h, openssl/bio.h, openssl/ssl.h. */
#define SSL_CTRL_SET_TLSEXT_HOSTNAME 55
#define BIO_NOCLOSE 0
#define SSL_DEFAULT_STREAM_MODE_NONE 0
#define SSL_STREAM_FLAG_NONE 0

static void check(const char *what, int done)
{
	if (done != 1)
		fail(what, done);
}

/* Where the peer is, as the library wants to have it. */
static void *peer_address(int fd)
{
	struct sockaddr_in remote;
	socklen_t size = sizeof remote;
	void *address = CALL(void *(*)(void), "BIO_ADDR_new")();

	if (getpeername(fd, (struct sockaddr *)&remote, &size))
		fail("getpeername", 0);
	check("BIO_ADDR_rawmake",
	      CALL(int (*)(void *, int, const void *, size_t, unsigned short), "BIO_ADDR_rawmake")(
		      address, AF_INET, &remote.sin_addr, sizeof remote.sin_addr, remote.sin_port));
	return address;
}

static void tls_connect(int fd, char **extra)
{
	static const unsigned char protocols[] = "\x0b" ALPN;
	void *bio, *address;
	int done;

	load(extra);
	context = CALL(void *(*)(void *), "SSL_CTX_new")(CALL(void *(*)(void), "OSSL_QUIC_client_method")());
	CALL(void (*)(void *, int, void *), "SSL_CTX_set_verify")(context, 0, NULL);
	connection = CALL(void *(*)(void *), "SSL_new")(context);
	CALL(int (*)(void *, const unsigned char *, unsigned), "SSL_set_alpn_protos")(connection, protocols,
										      sizeof protocols - 1);
	CALL(long (*)(void *, int, long, void *), "SSL_ctrl")(connection, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, NAME);
	address = peer_address(fd);
	check("SSL_set1_initial_peer_addr", CALL(int (*)(void *, void *), "SSL_set1_initial_peer_addr")(connection, address));
	CALL(void (*)(void *), "BIO_ADDR_free")(address);
	bio = CALL(void *(*)(int, int), "BIO_new_dgram")(fd, BIO_NOCLOSE);
	CALL(void (*)(void *, void *, void *), "SSL_set_bio")(connection, bio, bio);
	check("SSL_set_default_stream_mode",
	      CALL(int (*)(void *, unsigned), "SSL_set_default_stream_mode")(connection, SSL_DEFAULT_STREAM_MODE_NONE));
	done = CALL(int (*)(void *), "SSL_connect")(connection);
	if (done != 1)
		fail("SSL_connect", CALL(int (*)(void *, int), "SSL_get_error")(connection, done));
	stream = CALL(void *(*)(void *, unsigned long), "SSL_new_stream")(connection, SSL_STREAM_FLAG_NONE);
	if (!stream)
		fail("SSL_new_stream", 0);
}

static long tls_write(const char *from, size_t size)
{
	return CALL(int (*)(void *, const void *, int), "SSL_write")(stream, from, size);
}

static long tls_read(char *into, size_t size)
{
	return CALL(int (*)(void *, void *, int), "SSL_read")(stream, into, size);
}

static void tls_close(void)
{
	char end;
	int done;

	CALL(int (*)(void *, unsigned long), "SSL_stream_conclude")(stream, 0);
	if (tls_read(&end, 1) > 0)
		fail("more came than the plan says", 0);
	do
		done = CALL(int (*)(void *), "SSL_shutdown")(connection);
	while (!done);
	CALL(void (*)(void *), "SSL_free")(stream);
	CALL(void (*)(void *), "SSL_free")(connection);
	CALL(void (*)(void *), "SSL_CTX_free")(context);
}

static const char *tls_version(void)
{
	return CALL(const char *(*)(int), "OpenSSL_version")(0);
}
