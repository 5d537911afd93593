/*
 * A library, or a program, with the names of TLS functions, that needs no C library: to be compiled with -m32 -nostdlib.
 *
 * The program calls them a few times, says "hello", and ends with status 42.
 */
__attribute__((noinline, visibility("default"))) int SSL_write(void *ssl, const void *data, int size)
{
	int done;

	__asm__ volatile("int $0x80" : "=a"(done) : "a"(4), "b"(1), "c"(data), "d"(size) : "memory"); /* write */
	return done;
}

__attribute__((noinline, visibility("default"))) int SSL_read(void *ssl, void *data, int size)
{
	return 0;
}

void _start(void)
{
	for (int i = 0; i < 1000; i++)
		SSL_read(0, 0, i);
	SSL_write(0, "hello\n", 6);
	__asm__ volatile("int $0x80" : : "a"(1), "b"(42)); /* exit */
}
