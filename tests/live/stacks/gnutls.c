/*
 * GnuTLS.  With "memory" as EXTRA it never sees the socket: its own push and pull functions move TLS records from and to
 * memory, as proxies and event loops do, and this program sends and receives them between GnuTLS's calls.
 */
#include <unistd.h>
#include <gnutls/gnutls.h>

#include "subject.h"

struct buffer {
	char *data;
	size_t size, at;
};

static gnutls_session_t session;
static gnutls_certificate_credentials_t credentials;
static struct buffer outgoing, incoming;
static int descriptor;
static int starved; /* pull had nothing to give */

static void append(struct buffer *buffer, const char *data, size_t size)
{
	buffer->data = realloc(buffer->data, buffer->size + size);
	if (!buffer->data)
		fail("realloc", size);
	memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
}

static ssize_t push(gnutls_transport_ptr_t unused, const void *data, size_t size)
{
	append(&outgoing, data, size);
	return size;
}

static ssize_t pull(gnutls_transport_ptr_t unused, void *data, size_t size)
{
	size_t left = incoming.size - incoming.at;

	if (!left) {
		starved = 1;
		gnutls_transport_set_errno(session, EAGAIN);
		return -1;
	}
	size = size < left ? size : left;
	memcpy(data, incoming.data + incoming.at, size);
	incoming.at += size;
	if (incoming.at == incoming.size)
		incoming.at = incoming.size = 0;
	return size;
}

/*
 * Whether a call that returned code has to be made again.  Sends what GnuTLS pushed, and waits for more when pull had nothing.
 * With TLS 1.3 a call also wants to be made again when it came upon a session ticket, with a socket of its own, too.
 */
static int again(long code)
{
	static char received[1 << 16];
	ssize_t done;

	for (size_t at = 0; at < outgoing.size; at += done)
		if ((done = send(descriptor, outgoing.data + at, outgoing.size - at, 0)) < 1)
			fail("send", done);
	outgoing.size = 0;
	if (code == GNUTLS_E_AGAIN && starved) {
		starved = 0;
		done = recv(descriptor, received, sizeof received, 0);
		if (done < 1)
			return 0;
		append(&incoming, received, done);
	}
	return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED;
}

static void tls_connect(int fd, char **extra)
{
	gnutls_datum_t protocol = {(unsigned char *)ALPN, strlen(ALPN)};
	int done;

	descriptor = fd;
	gnutls_certificate_allocate_credentials(&credentials);
	gnutls_init(&session, GNUTLS_CLIENT);
	gnutls_set_default_priority(session);
	gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
	gnutls_server_name_set(session, GNUTLS_NAME_DNS, NAME, strlen(NAME));
	gnutls_alpn_set_protocols(session, &protocol, 1, 0);
	if (*extra && !strcmp(*extra, "memory")) {
		gnutls_transport_set_push_function(session, push);
		gnutls_transport_set_pull_function(session, pull);
		usleep(500000); /* functions of a program's own are probed when the library is told of them (docs/tls-stacks.md) */
	} else {
		gnutls_transport_set_int(session, fd);
	}
	do
		done = gnutls_handshake(session);
	while (again(done));
	if (done)
		fail("gnutls_handshake", done);
}

static long tls_write(const char *from, size_t size)
{
	long done;

	do
		done = gnutls_record_send(session, from, size);
	while (again(done));
	return done;
}

static long tls_read(char *into, size_t size)
{
	long done;

	do
		done = gnutls_record_recv(session, into, size);
	while (again(done));
	return done;
}

static void tls_close(void)
{
	int done;

	do
		done = gnutls_bye(session, GNUTLS_SHUT_RDWR);
	while (again(done));
	gnutls_deinit(session);
	gnutls_certificate_free_credentials(credentials);
}

static const char *tls_version(void)
{
	return gnutls_check_version(NULL);
}
