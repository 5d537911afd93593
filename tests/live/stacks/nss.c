/* NSS, by PR_Read and PR_Write; with "recv" as EXTRA by PR_Recv, which looks before it takes, and PR_Send. */
#include <nspr.h>
#include <nss.h>
#include <private/pprio.h>
#include <ssl.h>

#include "subject.h"

static PRFileDesc *connection;
static int sockets;

static SECStatus accept_any(void *unused, PRFileDesc *fd, PRBool check, PRBool is_server)
{
	return SECSuccess;
}

static void tls_connect(int fd, char **extra)
{
	static const unsigned char protocols[] = "\x0b" ALPN;
	PRFileDesc *plain;

	sockets = *extra && !strcmp(*extra, "recv");
	if (NSS_NoDB_Init(NULL) != SECSuccess)
		fail("NSS_NoDB_Init", PR_GetError());
	plain = PR_ImportTCPSocket(fd);
	connection = plain ? SSL_ImportFD(NULL, plain) : NULL;
	if (!connection)
		fail("SSL_ImportFD", PR_GetError());
	SSL_OptionSet(connection, SSL_SECURITY, PR_TRUE);
	SSL_OptionSet(connection, SSL_HANDSHAKE_AS_CLIENT, PR_TRUE);
	SSL_AuthCertificateHook(connection, accept_any, NULL);
	SSL_SetURL(connection, NAME);
	SSL_SetNextProtoNego(connection, protocols, sizeof protocols - 1);
	SSL_ResetHandshake(connection, PR_FALSE);
	if (SSL_ForceHandshake(connection) != SECSuccess)
		fail("SSL_ForceHandshake", PR_GetError());
}

static long tls_write(const char *from, size_t size)
{
	return sockets ? PR_Send(connection, from, size, 0, PR_INTERVAL_NO_TIMEOUT) : PR_Write(connection, from, size);
}

static long receive(char *into, size_t size)
{
	static char seen[4096];
	long peeked = PR_Recv(connection, seen, size < sizeof seen ? size : sizeof seen, PR_MSG_PEEK, PR_INTERVAL_NO_TIMEOUT);
	long done = PR_Recv(connection, into, size, 0, PR_INTERVAL_NO_TIMEOUT);

	if (peeked > done || (peeked > 0 && memcmp(seen, into, peeked)))
		fail("PR_MSG_PEEK", peeked);
	return done;
}

static long tls_read(char *into, size_t size)
{
	return sockets ? receive(into, size) : PR_Read(connection, into, size);
}

static void tls_close(void)
{
	char byte;

	PR_Shutdown(connection, PR_SHUTDOWN_SEND);
	if (tls_read(&byte, 1) != 0)
		fail("the peer's end", PR_GetError());
	PR_Close(connection);
	NSS_Shutdown();
}

static const char *tls_version(void)
{
	return NSS_GetVersion();
}
