/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The contract between the kernel and user space: every sample that crosses the ring.
 *
 * A sample starts with struct sample_header.  `size` is what the sample really uses; the ring
 * record around it may be longer, because reservations come in a few fixed sizes.  The layouts
 * are mirrored in tlscap/decode.py, and tools/check_layout.py compares the two by BTF.
 * All integers are native-endian on the ring; the supported machines are little-endian.
 */
#ifndef TLSCAP_EVENTS_H
#define TLSCAP_EVENTS_H

enum sample_type {
	SAMPLE_DATA = 1,      /* plaintext of one TLS call, or a part of it */
	SAMPLE_OPEN = 2,      /* a connection was seen for the first time */
	SAMPLE_ADDRESS = 3,   /* the socket under a connection */
	SAMPLE_HANDSHAKE = 4, /* a handshake succeeded */
	SAMPLE_NAME = 5,      /* SNI or ALPN */
	SAMPLE_SHUTDOWN = 6,  /* close_notify was sent */
	SAMPLE_EOF = 7,       /* a read returned 0: the peer is done */
	SAMPLE_CLOSE = 8,     /* the library freed or recycled the connection */
	SAMPLE_PROCESS = 9,   /* a process made its first TLS call */
	SAMPLE_MAPPED = 10,   /* a process runs another program, or mapped libraries */
	SAMPLE_EXIT = 11,     /* a process that made TLS calls ended */
	SAMPLE_MARK = 12,     /* early data or a peek: says something about bytes, moves none */
	SAMPLE_CALLBACK = 14, /* a library was given a function to send or receive ciphertext with */
	SAMPLE_UNJOINED = 13, /* a process's TLS call made no socket call: the library may not own the socket */
};

enum direction { INBOUND = 0, OUTBOUND = 1 };

enum gap_reason {
	GAP_NONE = 0,
	GAP_SNAPLEN = 1,
	GAP_UNREADABLE = 2,
	GAP_NOT_IN_MEMORY = 3, /* SSL_sendfile */
	GAP_CALL_TOO_LARGE = 4,
};

enum role { ROLE_UNKNOWN = 0, ROLE_CLIENT = 1, ROLE_SERVER = 2 };
enum name_kind { NAME_SNI = 1, NAME_ALPN = 2 };
enum mark_kind { MARK_EARLY_DATA = 1, MARK_PEEK = 2 };

enum sample_flags {
	FLAG_NO_STATE = 1,   /* the connection table is full: `conn` names this call only */
	FLAG_CIPHERTEXT = 2, /* of an address: the socket carried the bytes of a TLS record of this connection */
};

#define CHUNK_MAX 16384
#define NAME_MAX_LEN 256
#define NO_FD 0xffffffff
#define CMDLINE_MAX 1024
#define EXE_MAX 256

struct sample_header {
	__u16 type;
	__u16 flags;
	__u32 size;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 pid;     /* thread group */
	__u32 tid;
	__u64 conn; /* connection id, unique in a recording; 0 when the sample is about a process */
};

/* Bytes [offset, offset + captured) follow the struct; [offset + captured, offset + length) are missing. */
struct sample_data {
	struct sample_header h;
	__u64 offset;   /* ledger: bytes of this direction before this sample */
	__u64 call_len; /* bytes the whole TLS call moved */
	__u64 entry_ns; /* when the call began; h.time_ns is when it returned */
	__u32 length;   /* ledger bytes that this sample stands for */
	__u32 captured; /* of these, how many are here */
	__u8 direction;
	__u8 reason; /* enum gap_reason, why captured < length */
	__u16 call;  /* enum call_kind */
	__u32 pad;
};

struct sample_open {
	struct sample_header h;
	__u64 ssl;
	__u64 start_ns; /* process start, nanoseconds after boot */
	__u32 midstream;
	__u32 role;
};

struct socket_address {
	__u8 local[16]; /* IPv4 in the first four bytes */
	__u8 remote[16];
	__u16 family; /* AF_INET 2, AF_INET6 10, AF_UNIX 1 */
	__u16 local_port;
	__u16 remote_port;
	__u16 protocol;
	__u32 srtt_us;
};

struct sample_address {
	struct sample_header h;
	struct socket_address at;
	__u32 fd;
};

struct sample_handshake {
	struct sample_header h;
	__u64 start_ns;
	__u32 calls;
	__u32 pad;
};

struct sample_name {
	struct sample_header h;
	__u16 kind;
	__u16 length;
	__u32 pad;
	char text[NAME_MAX_LEN];
};

struct sample_close {
	struct sample_header h;
	__u64 bytes[2]; /* the ledger at the end, by direction */
	__u32 recycled; /* SSL_clear: the same SSL* goes on as another connection */
	__u32 pad;
};

struct sample_process {
	struct sample_header h;
	__u64 start_ns;
	__u32 ppid;
	__u32 uid;
	char comm[16];
	__u32 cmdline_len;
	__u32 pad;
	char exe[EXE_MAX]; /* as given to execve, zero-terminated: maybe relative */
	char cmdline[CMDLINE_MAX];
};

struct sample_mapped {
	struct sample_header h;
	__u64 inode;
	__u32 device;
	__u32 executable; /* a program began to run from this file; else look at what the process maps */
};

struct sample_callback {
	struct sample_header h;
	__u64 address;
	__u32 kind; /* enum call_kind: what the function does */
	__u32 pad;
};

struct sample_mark {
	struct sample_header h;
	__u64 offset; /* the ledger when the call returned */
	__u64 length;
	__u16 kind;
	__u8 direction;
	__u8 pad[5];
};

/* --- What user space reads and writes in maps --- */

enum filter_flags {
	FILTER_PID = 1, /* the process is in `targets` */
	FILTER_UID = 2,
	FILTER_COMM = 4,
	FILTER_CGROUP = 8,
	FOLLOW_FORKS = 16, /* children of targets become targets */
};

struct config {
	__u32 filter;
	__u32 wake_always; /* low latency: wake the reader for every sample */
	__u64 snaplen;     /* most bytes kept of one TLS call; ~0 keeps all */
	__u64 data_limit;  /* no data samples when more than this is unread: room for the small ones */
	__u64 wake_mark;   /* unread bytes at which the reader is woken */
};

enum counter {
	COUNT_CALLS = 0,
	COUNT_BYTES_IN = 1,
	COUNT_BYTES_OUT = 2,
	COUNT_SAMPLES = 3,
	COUNT_DROPPED_SAMPLES = 4,
	COUNT_DROPPED_BYTES = 5,
	COUNT_CONNECTIONS = 6,
	COUNT_TABLE_FULL = 7,
	COUNT_UNREADABLE = 8,
	COUNT_UNPROVEN = 9, /* calls of functions found by signature, before the connection was seen to be one */
	COUNTERS = 16,
};

struct connection_key {
	__u64 ssl;
	__u32 pid;
	__u32 incarnation; /* of the process: a reused pid never meets old state */
};

struct connection {
	__u64 id;
	__u64 bytes[2];
	__u64 handshake_start_ns;
	__u32 handshake_calls;
	__u32 flags;
	__u32 pid;
	__u32 pad;
};
#endif
