/*
 * Any libssl, loaded at run time: EXTRA are libraries to load in this order, libssl last.
 *
 * Only functions that OpenSSL has had from 1.1.1 on and that BoringSSL has, too, with the same arguments.
 */
#include "loaded.h"

static void *ssl, *context;

#define SSL_CTRL_SET_TLSEXT_HOSTNAME 55 /* openssl/tls1.h: there SSL_set_tlsext_host_name is a macro */

static void tls_connect(int fd, char **extra)
{
	static const unsigned char protocols[] = "\x0b" ALPN;
	int (*set_name)(void *, const char *);
	int done;

	load(extra);
	context = CALL(void *(*)(void *), "SSL_CTX_new")(CALL(void *(*)(void), "TLS_client_method")());
	CALL(void (*)(void *, int, void *), "SSL_CTX_set_verify")(context, 0, NULL);
	ssl = CALL(void *(*)(void *), "SSL_new")(context);
	CALL(int (*)(void *, const unsigned char *, unsigned), "SSL_set_alpn_protos")(ssl, protocols, sizeof protocols - 1);
	set_name = (int (*)(void *, const char *))dlsym(library, "SSL_set_tlsext_host_name");
	if (set_name)
		set_name(ssl, NAME);
	else
		CALL(long (*)(void *, int, long, void *), "SSL_ctrl")(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, NAME);
	CALL(int (*)(void *, int), "SSL_set_fd")(ssl, fd);
	done = CALL(int (*)(void *), "SSL_connect")(ssl);
	if (done != 1)
		fail("SSL_connect", CALL(int (*)(void *, int), "SSL_get_error")(ssl, done));
}

static long tls_write(const char *from, size_t size)
{
	return CALL(int (*)(void *, const void *, int), "SSL_write")(ssl, from, size);
}

static long tls_read(char *into, size_t size)
{
	return CALL(int (*)(void *, void *, int), "SSL_read")(ssl, into, size);
}

static void tls_close(void)
{
	int (*shutdown_)(void *) = CALL(int (*)(void *), "SSL_shutdown");

	if (shutdown_(ssl) == 0)
		shutdown_(ssl);
	CALL(void (*)(void *), "SSL_free")(ssl);
	CALL(void (*)(void *), "SSL_CTX_free")(context);
}

static const char *tls_version(void)
{
	return CALL(const char *(*)(int), "OpenSSL_version")(0);
}
