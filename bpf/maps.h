/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The maps.  Both loaders build them from this list: libbpf reads the structures out of the
 * object's BTF, BCC has its own declarations.  Map *calls* are written in the kernel's way;
 * tlscap/live/bcc.py rewrites them to BCC's methods when it joins the text.
 */
#ifndef TLSCAP_MAPS_H
#define TLSCAP_MAPS_H

struct call_key {
	__u64 thread; /* pid and tid */
	__u64 sp;     /* TLS calls nest (QUIC, early data): a thread alone is no key */
};

struct call {
	__u64 ssl;
	__u64 buffer;
	__u64 count; /* address of the byte count, or 0 when the return value is the count */
	__u64 entry_ns;
	__u32 incarnation; /* of the process, see struct process */
	__u16 kind;
	__u8 wanted;
	__u8 unproven;
};

struct process {
	__u64 start_ns;
	__u32 incarnation;
	__u32 flags;
};

struct file_id {
	__u64 inode;
	__u64 device;
};

struct comm_key {
	char comm[16];
};

/* One element per CPU: ids without atomics. */
struct sequence {
	__u64 last;
};

#ifdef TLSCAP_BCC
#ifndef RING_PAGES
#define RING_PAGES 16384
#endif
#define MAP_HASH(name, key, value, entries) BPF_TABLE("hash", key, value, name, entries)
#define MAP_LRU_HASH(name, key, value, entries) BPF_TABLE("lru_hash", key, value, name, entries)
#define MAP_ARRAY(name, value, entries) BPF_TABLE("array", __u32, value, name, entries)
#define MAP_PERCPU_ARRAY(name, value, entries) BPF_TABLE("percpu_array", __u32, value, name, entries)
#define MAP_RING(name, pages) BPF_RINGBUF_OUTPUT(name, pages)
#else
#define RING_PAGES 16384 /* set again by the loader */
#define MAP_OF(map_type, name_, key_, value_, entries) \
	struct {                                       \
		int(*type)[map_type];                  \
		key_ *key;                             \
		value_ *value;                         \
		int(*max_entries)[entries];            \
	} name_ SEC(".maps")
#define MAP_HASH(name, key, value, entries) MAP_OF(BPF_MAP_TYPE_HASH, name, key, value, entries)
#define MAP_LRU_HASH(name, key, value, entries) MAP_OF(BPF_MAP_TYPE_LRU_HASH, name, key, value, entries)
#define MAP_ARRAY(name, value, entries) MAP_OF(BPF_MAP_TYPE_ARRAY, name, __u32, value, entries)
#define MAP_PERCPU_ARRAY(name, value, entries) MAP_OF(BPF_MAP_TYPE_PERCPU_ARRAY, name, __u32, value, entries)
#define MAP_RING(name_, pages)                          \
	struct {                                        \
		int(*type)[BPF_MAP_TYPE_RINGBUF];       \
		int(*max_entries)[(pages) * 4096];      \
	} name_ SEC(".maps")
#endif

MAP_RING(ring, RING_PAGES);
MAP_ARRAY(config, struct config, 1);
MAP_PERCPU_ARRAY(counters, __u64, COUNTERS);
MAP_PERCPU_ARRAY(sequence, struct sequence, 1);
MAP_ARRAY(epoch, __u64, 1); /* counts what makes `settled` stale: freed connections, exchanged sockets */
MAP_HASH(connections, struct connection_key, struct connection, 65536);
MAP_HASH(orphans, __u64, struct connection, 65536);      /* closed, but the ring had no room to say so */
MAP_HASH(calls, struct call_key, struct call, 16384);    /* entered, not yet returned */
MAP_HASH(wanted, __u64, struct connection_key, 16384);   /* threads whose next socket call tells an address; where there are no task maps */
MAP_HASH(processes, __u32, struct process, 16384);
MAP_HASH(targets, __u32, __u32, 16384);
MAP_HASH(match_uid, __u32, __u32, 256);
MAP_HASH(match_cgroup, __u64, __u32, 256);
MAP_HASH(match_comm, struct comm_key, __u32, 256);
MAP_LRU_HASH(seen_files, struct file_id, __u32, 8192);

#ifndef TLSCAP_BCC
/*
 * Pending calls of a thread, kept with the task itself (Linux 5.11): a third of the cost of a hash table's update, lookup
 * and delete.  Slots are found by stack pointer, in no order, since fibers switch stacks.  When all are taken, `calls` helps.
 */
#define SLOTS 4
struct thread {
	__u64 sp[SLOTS]; /* 0: free */
	struct call call[SLOTS];
	/* What was looked up before: the tables are asked again only when it may have changed. */
	__u64 exec_id;
	__u64 incarnation; /* of its process, when that is traced; else 0 */
	__u64 settled;     /* the SSL of the latest call, when its address is known */
	__u64 settled_epoch;
	__u64 wants; /* its next socket call tells the address of: */
	struct connection_key wanted;
	__u64 unproven; /* if it carries a TLS record, see COOKIE_UNPROVEN */
	__u64 goroutine; /* if it is made by this one, in this call; 0: by whatever runs here */
	__u64 go_call;
	/* A BIO_read inside a TLS call. */
	__u64 bio_sp;
	__u64 bio_buffer;
	struct connection_key bio_of;
	/* The rustls connection that was used last, when its address is still sought: where it is, and its name. */
	__u64 rustls;
	struct connection_key rustls_of;
};
struct {
	int(*type)[BPF_MAP_TYPE_TASK_STORAGE];
	int(*map_flags)[BPF_F_NO_PREALLOC];
	int *key;
	struct thread *value;
} threads SEC(".maps");

/* The beginning of a TLS record's body: as good as a name, since it is random or encrypted. */
#define CIPHER_BYTES 24
struct cipher_key {
	__u32 pid;
	__u32 length;
	__u8 bytes[CIPHER_BYTES];
};

/* A record that a socket brought. */
struct arrival {
	__u64 socket;
	struct socket_address at;
	__u32 ambiguous; /* another socket brought the same */
};

MAP_OF(BPF_MAP_TYPE_LRU_HASH, seen_callbacks, struct call_key, __u32, 1024); /* pid, address */
MAP_ARRAY(joining, __u64, 1); /* not 0: some process joins by ciphertext */
MAP_OF(BPF_MAP_TYPE_LRU_HASH, handed_out, struct cipher_key, struct connection_key, 16384);
MAP_OF(BPF_MAP_TYPE_LRU_HASH, taken_in, struct cipher_key, struct arrival, 16384);
MAP_OF(BPF_MAP_TYPE_LRU_HASH, relays, __u64, __u32, 4096); /* sockets whose records were passed on to others */
#endif
#endif
