/*
 * One SSL object for one connection after the other: PORT COUNT.
 *
 * After each it is cleared and given a new socket (SSL_clear), after every third it is freed and a new one made, which malloc
 * mostly puts at the same address.  Prints a JSON array with an object for each: its port, the SSL's address, and what was sent,
 * and what came back.
 */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define LENGTH 500

static void must(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static int open_socket(int port, int *local)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t size = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	must(connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
	getsockname(fd, (struct sockaddr *)&address, &size);
	*local = ntohs(address.sin_port);
	return fd;
}

static void print_hex(const char *key, const unsigned char *data)
{
	printf(", \"%s\": \"", key);
	for (int i = 0; i < LENGTH; i++)
		printf("%02x", data[i]);
	printf("\"");
}

int main(int argc, char **argv)
{
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());
	SSL *ssl = SSL_new(context);
	int port = atoi(argv[1]), count = atoi(argv[2]);
	unsigned char out[LENGTH], in[LENGTH];

	printf("[");
	for (int n = 0; n < count; n++) {
		int local, fd = open_socket(port, &local);

		must(getrandom(out, LENGTH, 0) == LENGTH, "getrandom");
		SSL_set_fd(ssl, fd);
		must(SSL_connect(ssl) == 1, "SSL_connect");
		must(SSL_write(ssl, out, LENGTH) == LENGTH, "SSL_write");
		for (int at = 0, got; at < LENGTH; at += got)
			must((got = SSL_read(ssl, in + at, LENGTH - at)) > 0, "SSL_read");
		printf("%s{\"local\": %d, \"remote\": %d, \"ssl\": %lu", n ? ", " : "", local, port, (unsigned long)ssl);
		print_hex("sent", out);
		print_hex("received", in);
		printf("}");
		SSL_shutdown(ssl);
		close(fd);
		if (n % 3 == 2) {
			SSL_free(ssl);
			ssl = SSL_new(context);
		} else {
			must(SSL_clear(ssl), "SSL_clear");
		}
	}
	printf("]\n");
	return 0;
}
