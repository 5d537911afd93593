/* Mbed TLS, with its own functions for sockets. */
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>

#include "subject.h"

static mbedtls_net_context net;
static mbedtls_ssl_context ssl;
static mbedtls_ssl_config config;
static mbedtls_entropy_context entropy;
static mbedtls_ctr_drbg_context random_;

static void tls_connect(int fd, char **extra)
{
	static const char *protocols[] = {ALPN, NULL};
	int done;

	net.fd = fd;
	mbedtls_ssl_init(&ssl);
	mbedtls_ssl_config_init(&config);
	mbedtls_entropy_init(&entropy);
	mbedtls_ctr_drbg_init(&random_);
	mbedtls_ctr_drbg_seed(&random_, mbedtls_entropy_func, &entropy, NULL, 0);
	mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
	mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random_);
	mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_NONE);
	mbedtls_ssl_conf_alpn_protocols(&config, protocols);
	done = mbedtls_ssl_setup(&ssl, &config);
	if (done)
		fail("mbedtls_ssl_setup", done);
	mbedtls_ssl_set_hostname(&ssl, NAME);
	mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
	done = mbedtls_ssl_handshake(&ssl);
	if (done)
		fail("mbedtls_ssl_handshake", done);
}

static long tls_write(const char *from, size_t size)
{
	return mbedtls_ssl_write(&ssl, (const unsigned char *)from, size);
}

static long tls_read(char *into, size_t size)
{
	return mbedtls_ssl_read(&ssl, (unsigned char *)into, size);
}

static void tls_close(void)
{
	char byte;

	mbedtls_ssl_close_notify(&ssl);
	tls_read(&byte, 1); /* the peer's close_notify */
	mbedtls_ssl_free(&ssl);
	mbedtls_ssl_config_free(&config);
	mbedtls_ctr_drbg_free(&random_);
	mbedtls_entropy_free(&entropy);
	mbedtls_net_free(&net);
}

static const char *tls_version(void)
{
	static char text[32];

	mbedtls_version_get_string(text);
	return text;
}
