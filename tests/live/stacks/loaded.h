/* For subjects whose library is loaded at run time: EXTRA are libraries to load in this order, libssl last. */
#include <dlfcn.h>

#include "subject.h"

static void *library;

static void *find(const char *name)
{
	void *function = dlsym(library, name);

	if (!function)
		fail(name, 0);
	return function;
}

/* Calls a function by name.  The type stands at the call, where the arguments are. */
#define CALL(type, name) ((type)find(name))

/* A library that is loaded at run time is hooked a little later, with a C library that isn't the machine's up to a second. */
#define MOMENT_US 1500000

static void load(char **libraries)
{
	for (; *libraries; libraries++)
		if (!(library = dlopen(*libraries, RTLD_NOW | RTLD_GLOBAL)))
			fail(dlerror(), 0);
	usleep(MOMENT_US);
}
