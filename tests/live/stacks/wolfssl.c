/* wolfSSL. */
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

#include "subject.h"

static WOLFSSL_CTX *context;
static WOLFSSL *ssl;

static void tls_connect(int fd, char **extra)
{
	char protocols[] = ALPN;

	wolfSSL_Init();
	context = wolfSSL_CTX_new(wolfSSLv23_client_method());
	wolfSSL_CTX_set_verify(context, WOLFSSL_VERIFY_NONE, NULL);
	ssl = wolfSSL_new(context);
	wolfSSL_UseSNI(ssl, WOLFSSL_SNI_HOST_NAME, NAME, strlen(NAME));
	wolfSSL_UseALPN(ssl, protocols, strlen(protocols), WOLFSSL_ALPN_CONTINUE_ON_MISMATCH);
	wolfSSL_set_fd(ssl, fd);
	if (wolfSSL_connect(ssl) != WOLFSSL_SUCCESS)
		fail("wolfSSL_connect", wolfSSL_get_error(ssl, 0));
}

static long tls_write(const char *from, size_t size)
{
	return wolfSSL_write(ssl, from, size);
}

static long tls_read(char *into, size_t size)
{
	return wolfSSL_read(ssl, into, size);
}

static void tls_close(void)
{
	if (wolfSSL_shutdown(ssl) == WOLFSSL_SHUTDOWN_NOT_DONE)
		wolfSSL_shutdown(ssl);
	wolfSSL_free(ssl);
	wolfSSL_CTX_free(context);
	wolfSSL_Cleanup();
}

static const char *tls_version(void)
{
	return wolfSSL_lib_version();
}
