/*
 * The reader's side of a BPF ring buffer (kernel: Documentation/bpf/ringbuf.rst).
 *
 * Python would spend 2-3 microseconds on every sample; here a call moves all that is there into
 * one buffer, and the interpreter is entered once for many thousand samples.  The memory order
 * follows libbpf's ringbuf.c: the producer position and the record headers are read with acquire
 * semantics, the consumer position is written with release semantics.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUSY_BIT (1u << 31)
#define DISCARD_BIT (1u << 30)
#define RECORD_HEADER 8

/* struct sample_header of bpf/events.h */
struct sample_header {
	uint16_t type;
	uint16_t flags;
	uint32_t size;
	uint64_t time_ns;
	uint32_t pid;
	uint32_t tid;
	uint64_t conn;
};

/* Start of struct sample_data behind the header, and what else is needed of it. */
struct sample_data {
	struct sample_header h;
	uint64_t offset;
	uint64_t call_len;
	uint64_t entry_ns;
	uint32_t length;
	uint32_t captured;
	uint8_t direction;
};

#define SAMPLE_DATA 1
#define SAMPLE_CLOSE 8

/* How far each direction of a connection has been read: an open-addressing table with linear probing. */
struct reached {
	uint64_t conn; /* 0: free */
	uint64_t bytes[2];
};

typedef struct {
	PyObject_HEAD
	struct reached *table;
	size_t slots; /* a power of two, or 0 when nobody asked */
	size_t taken;
	size_t size; /* bytes of data area, a power of two */
	size_t page;
	uint64_t *consumer;
	uint8_t *producer; /* one page of position, then the data twice in a row */
} Ring;

static struct reached *slot_of(Ring *self, uint64_t conn)
{
	/* The id is a CPU number above a counter: spread both. */
	size_t at = (size_t)((conn * 0x9e3779b97f4a7c15u) >> 20) & (self->slots - 1);

	while (self->table[at].conn && self->table[at].conn != conn)
		at = (at + 1) & (self->slots - 1);
	return &self->table[at];
}

static void forget(Ring *self, uint64_t conn)
{
	struct reached *slot = slot_of(self, conn);
	size_t hole, at;

	if (!slot->conn)
		return;
	self->taken--;
	hole = (size_t)(slot - self->table);
	slot->conn = 0;
	/* Entries behind the hole may have been pushed there by it: put them in again. */
	for (at = (hole + 1) & (self->slots - 1); self->table[at].conn; at = (at + 1) & (self->slots - 1)) {
		struct reached moved = self->table[at];

		self->table[at].conn = 0;
		*slot_of(self, moved.conn) = moved;
	}
}

static void reach(Ring *self, const struct sample_data *data)
{
	struct reached *slot = slot_of(self, data->h.conn);

	if (!slot->conn) {
		if (self->taken * 2 >= self->slots)
			return; /* as many as the kernel's own table holds: nothing to grow for */
		memset(slot, 0, sizeof(*slot));
		slot->conn = data->h.conn;
		self->taken++;
	}
	slot->bytes[data->direction & 1] = data->offset + data->length;
}

static int ring_init(Ring *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", "size", "track", NULL};
	int fd, track = 0;
	Py_ssize_t size;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "in|p", names, &fd, &size, &track))
		return -1;
	if (track) {
		self->slots = 1u << 18; /* four times the kernel's table of connections */
		self->table = PyMem_RawCalloc(self->slots, sizeof(*self->table));
		if (!self->table) {
			PyErr_NoMemory();
			return -1;
		}
	}
	self->page = (size_t)sysconf(_SC_PAGESIZE);
	if (size <= 0 || (size & (size - 1)) || (size_t)size < self->page) {
		PyErr_SetString(PyExc_ValueError, "size must be a power of two and at least a page");
		return -1;
	}
	self->size = (size_t)size;
	self->consumer = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (self->consumer == MAP_FAILED) {
		self->consumer = NULL;
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	self->producer = mmap(NULL, self->page + 2 * self->size, PROT_READ, MAP_SHARED, fd, (off_t)self->page);
	if (self->producer == MAP_FAILED) {
		self->producer = NULL;
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	return 0;
}

static void ring_unmap(Ring *self)
{
	if (self->consumer)
		munmap(self->consumer, self->page);
	if (self->producer)
		munmap(self->producer, self->page + 2 * self->size);
	self->consumer = NULL;
	self->producer = NULL;
}

static void ring_dealloc(Ring *self)
{
	PyTypeObject *type = Py_TYPE(self);

	ring_unmap(self);
	PyMem_RawFree(self->table);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyObject *ring_close(Ring *self, PyObject *unused)
{
	(void)unused;
	ring_unmap(self);
	Py_RETURN_NONE;
}

static PyObject *ring_unread(Ring *self, PyObject *unused)
{
	(void)unused;
	if (!self->consumer) {
		PyErr_SetString(PyExc_ValueError, "the ring is closed");
		return NULL;
	}
	return PyLong_FromUnsignedLongLong(__atomic_load_n((uint64_t *)self->producer, __ATOMIC_ACQUIRE) -
					   __atomic_load_n(self->consumer, __ATOMIC_RELAXED));
}

#define MAX_NOTICES 512
#define RELEASE_STEP (256u << 10)

static PyObject *ring_drain(Ring *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"into", "at", "notice", NULL};
	Py_buffer into;
	Py_ssize_t at = 0;
	unsigned long long notice = 0;
	uint32_t offsets[MAX_NOTICES];
	size_t used, samples = 0, notices = 0, bad = 0;
	uint64_t position, released, end;
	PyObject *list;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*|nK", names, &into, &at, &notice))
		return NULL;
	if (!self->consumer || at < 0 || at > into.len) {
		PyBuffer_Release(&into);
		PyErr_SetString(PyExc_ValueError, "the ring is closed, or `at` is outside the buffer");
		return NULL;
	}
	used = (size_t)at;
	Py_BEGIN_ALLOW_THREADS
	released = position = __atomic_load_n(self->consumer, __ATOMIC_RELAXED);
	end = __atomic_load_n((uint64_t *)self->producer, __ATOMIC_ACQUIRE);
	while (position < end && notices < MAX_NOTICES) {
		uint8_t *record = self->producer + self->page + (position & (self->size - 1));
		uint32_t word = __atomic_load_n((uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t length = word & ~(BUSY_BIT | DISCARD_BIT);
		struct sample_header *sample = (struct sample_header *)(record + RECORD_HEADER);

		if (word & BUSY_BIT)
			break; /* a CPU is still writing it; those after it must wait, too */
		if (!(word & DISCARD_BIT)) {
			uint32_t size = sample->size;
			size_t padded = ((size_t)size + 7) & ~(size_t)7;

			if (length < sizeof(*sample) || size < sizeof(*sample) || size > length) {
				bad++;
			} else {
				if (padded > (size_t)into.len - used)
					break;
				memcpy((uint8_t *)into.buf + used, sample, size);
				memset((uint8_t *)into.buf + used + size, 0, padded - size);
				if (self->slots) {
					if (sample->type == SAMPLE_DATA && size >= sizeof(struct sample_data))
						reach(self, (const struct sample_data *)sample);
					else if (sample->type == SAMPLE_CLOSE)
						forget(self, sample->conn);
				}
				if (sample->type < 64 && (notice >> sample->type) & 1)
					offsets[notices++] = (uint32_t)used;
				used += padded;
				samples++;
			}
		}
		position += ((uint64_t)length + RECORD_HEADER + 7) & ~(uint64_t)7;
		/* Probes read this position for every sample: giving room back in steps keeps its cache line still. */
		if (position - released >= RELEASE_STEP) {
			__atomic_store_n(self->consumer, position, __ATOMIC_RELEASE);
			released = position;
		}
	}
	__atomic_store_n(self->consumer, position, __ATOMIC_RELEASE);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&into);
	if (bad) {
		PyErr_Format(PyExc_RuntimeError, "%zu samples of the ring have an impossible size", bad);
		return NULL;
	}
	list = PyList_New((Py_ssize_t)notices);
	if (!list)
		return NULL;
	for (size_t i = 0; i < notices; i++) {
		PyObject *offset = PyLong_FromUnsignedLong(offsets[i]);

		if (!offset) {
			Py_DECREF(list);
			return NULL;
		}
		PyList_SET_ITEM(list, (Py_ssize_t)i, offset);
	}
	return Py_BuildValue("nnN", (Py_ssize_t)used, (Py_ssize_t)samples, list);
}

static PyObject *ring_reached(Ring *self, PyObject *arg)
{
	unsigned long long conn = PyLong_AsUnsignedLongLong(arg);
	struct reached *slot;

	if (conn == (unsigned long long)-1 && PyErr_Occurred())
		return NULL;
	slot = self->slots && conn ? slot_of(self, conn) : NULL;
	return Py_BuildValue("KK", slot && slot->conn ? slot->bytes[0] : 0ULL, slot && slot->conn ? slot->bytes[1] : 0ULL);
}

static PyObject *ring_forget(Ring *self, PyObject *arg)
{
	unsigned long long conn = PyLong_AsUnsignedLongLong(arg);

	if (conn == (unsigned long long)-1 && PyErr_Occurred())
		return NULL;
	if (self->slots && conn)
		forget(self, conn);
	Py_RETURN_NONE;
}

static PyMethodDef ring_methods[] = {
	{"reached", (PyCFunction)ring_reached, METH_O,
	 "reached(conn) -> (inbound, outbound): up to where the data samples of a connection that were drained go.\n\n"
	 "Zeros for an unknown one, and always when the ring was made without `track`."},
	{"forget", (PyCFunction)ring_forget, METH_O, "forget(conn): its last ledger came another way than over the ring."},
	{"drain", (PyCFunction)(void (*)(void))ring_drain, METH_VARARGS | METH_KEYWORDS,
	 "drain(into, at=0, notice=0) -> (end, samples, offsets)\n\n"
	 "Copy complete samples into a writable buffer, starting at byte `at`, each padded to 8 bytes.\n"
	 "Returns where the copied bytes end, how many samples came, and the offsets of those whose\n"
	 "type's bit is set in `notice`.  Stops when the buffer or the list is full; releases the GIL."},
	{"unread", (PyCFunction)ring_unread, METH_NOARGS, "unread() -> bytes that wait in the ring"},
	{"close", (PyCFunction)ring_close, METH_NOARGS, "Unmap the ring.  Further calls raise ValueError."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
	{Py_tp_doc, "Ring(fd, size, track=False): a BPF ring buffer map, by its file descriptor and size in bytes.\n\n"
		     "With `track` it remembers how far every open connection was drained."},
	{Py_tp_init, ring_init},
	{Py_tp_dealloc, ring_dealloc},
	{Py_tp_methods, ring_methods},
	{0, NULL},
};

static PyType_Spec ring_spec = {
	.name = "tlscap.live._ring.Ring",
	.basicsize = sizeof(Ring),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = ring_slots,
};

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&ring_spec);

	if (!type)
		return -1;
	if (PyModule_AddObject(module, "Ring", type) < 0) {
		Py_DECREF(type);
		return -1;
	}
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "tlscap.live._ring",
	.m_doc = "Bulk reader of BPF ring buffers.",
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__ring(void)
{
	return PyModuleDef_Init(&module);
}
