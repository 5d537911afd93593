/*
 * A TLS client and server in one thread, over an in-memory BIO pair: the cost of a TLS call and nothing else.
 *
 *     bench_tls CERT KEY SIZE CALLS
 *
 * Writes CALLS times SIZE bytes from the client and reads them in the server, after a line "ready" on stdout and a
 * line on stdin.  Prints the nanoseconds per call (a write or a read) and the bytes that passed.
 */
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	size_t size = strtoul(argv[3], NULL, 10), calls = strtoul(argv[4], NULL, 10), passed = 0, n;
	SSL_CTX *ours = SSL_CTX_new(TLS_client_method()), *theirs = SSL_CTX_new(TLS_server_method());
	SSL *client, *server;
	BIO *a, *b;
	char *out = malloc(size), *in = malloc(size), line[8];

	if (SSL_CTX_use_certificate_file(theirs, argv[1], SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_use_PrivateKey_file(theirs, argv[2], SSL_FILETYPE_PEM) != 1)
		return 1;
	client = SSL_new(ours);
	server = SSL_new(theirs);
	BIO_new_bio_pair(&a, 1 << 20, &b, 1 << 20);
	SSL_set_bio(client, a, a);
	SSL_set_bio(server, b, b);
	SSL_set_connect_state(client);
	SSL_set_accept_state(server);
	while (!SSL_is_init_finished(client) || !SSL_is_init_finished(server)) {
		SSL_do_handshake(client);
		SSL_do_handshake(server);
	}
	for (size_t i = 0; i < size; i++) /* text-like, and not all the same */
		out[i] = " etaoin shrdlu0123"[(i * 7 + i / 13 * 5) % 18];
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;

	double start = now();
	for (size_t i = 0; i < calls; i++) {
		if (SSL_write_ex(client, out, size, &n) != 1)
			return 1;
		for (size_t got = 0; got < size; got += n)
			if (SSL_read_ex(server, in, size - got, &n) != 1)
				return 1;
		passed += size;
	}
	double spent = now() - start;

	printf("%.1f %zu %.6f\n", spent / (2.0 * calls), 2 * passed, spent / 1e9);
	return 0;
}
