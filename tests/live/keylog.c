/*
 * Preloaded into a program that uses OpenSSL's library and writes no key log: the keys of its connections go to the file that
 * SSLKEYLOGFILE names, in the format of NSS, as other programs write them.  Only the creation of contexts is wrapped; what is
 * read and written is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;

/* Open before the first key: servers clear their environment and change their user. */
static int file = -1;

/* One system call a line, so that processes and threads that share the file don't mix. */
static void log_line(const SSL *ssl, const char *line)
{
	struct iovec parts[] = { { (void *)line, strlen(line) }, { "\n", 1 } };

	(void)ssl;
	if (writev(file, parts, 2) < 0)
		abort();
}

SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
{
	SSL_CTX *(*create)(const SSL_METHOD *) = (SSL_CTX * (*)(const SSL_METHOD *)) dlsym(RTLD_NEXT, "SSL_CTX_new");
	void (*set_callback)(SSL_CTX *, void (*)(const SSL *, const char *)) =
		(void (*)(SSL_CTX *, void (*)(const SSL *, const char *)))dlsym(RTLD_NEXT, "SSL_CTX_set_keylog_callback");
	const char *path = getenv("SSLKEYLOGFILE");
	SSL_CTX *context = create(method);

	if (file < 0 && path)
		file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (context && file >= 0)
		set_callback(context, log_line);
	return context;
}
