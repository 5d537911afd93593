"""Records made by hand, with the structs of `tlscap.decode`: what the kernel and user space would have written."""

from __future__ import annotations

import ipaddress
from typing import Any

from tlscap import decode

MONOTONIC_NS = 5_000_000_000
WALL_NS = 1_795_197_600_000_000_000
PID = 4711
CONN = 1 << 40 | 7
PROCESS_START_NS = 4_000_000_000
MS = 1_000_000
IN, OUT = 0, 1

NO_FD = 0xFFFFFFFF
COMM_SIZE, EXE_SIZE, NAME_SIZE, CMDLINE_SIZE = 16, 256, 256, 1024


def record(
    kind: int,
    body: bytes = b"",
    *,
    time_ns: int = MONOTONIC_NS,
    pid: int = PID,
    tid: int | None = None,
    conn: int = CONN,
    flags: int = 0,
    size: int | None = None,
) -> bytes:
    """Return a record, padded; ``size`` is what its header claims when it lies."""
    used = decode.HEADER.size + len(body)
    claimed = used if size is None else size
    head = decode.HEADER.pack(kind, flags, claimed, time_ns, pid, pid if tid is None else tid, conn)
    return head + body + bytes(-used % 8)


def data(
    payload: bytes,
    offset: int = 0,
    direction: int = OUT,
    *,
    length: int | None = None,
    captured: int | None = None,
    reason: int = 0,
    call: int = 2,
    entry_ns: int | None = None,
    **header: Any,
) -> bytes:
    """Return a data sample; ``length`` is what it stands for, when that is more than its payload.

    ``entry_ns`` is when the call began; without it, the call took no time.
    """
    stands_for = len(payload) if length is None else length
    holds = len(payload) if captured is None else captured
    began_ns = header.get("time_ns", MONOTONIC_NS) if entry_ns is None else entry_ns
    body = decode.DATA.pack(offset, stands_for, began_ns, stands_for, holds, direction, reason, call, 0)
    return record(decode.SAMPLE_DATA, body + payload, **header)


def opened(*, ssl: int = 0x7F00_1000, role: int = 1, midstream: bool = False, **header: Any) -> bytes:
    return record(decode.SAMPLE_OPEN, decode.OPEN.pack(ssl, PROCESS_START_NS, midstream, role), **header)


def address(
    local: str = "10.0.0.1",
    local_port: int = 40000,
    remote: str = "93.184.216.34",
    remote_port: int = 443,
    *,
    family: int | None = None,
    protocol: int = 6,
    srtt_us: int = 0,
    **header: Any,
) -> bytes:
    ends = [ipaddress.ip_address(text) for text in (local, remote)]
    kind = (2 if ends[0].version == 4 else 10) if family is None else family
    packed = [end.packed.ljust(16, b"\0") for end in ends]
    body = decode.ADDRESS.pack(*packed, kind, local_port, remote_port, protocol, srtt_us, NO_FD)
    return record(decode.SAMPLE_ADDRESS, body, **header)


def handshake(start_ns: int = MONOTONIC_NS, **header: Any) -> bytes:
    return record(decode.SAMPLE_HANDSHAKE, decode.HANDSHAKE.pack(start_ns, 2, 0), **header)


def name(kind: int, text: bytes, *, length: int | None = None, **header: Any) -> bytes:
    body = decode.NAME.pack(kind, len(text) if length is None else length, 0) + text.ljust(NAME_SIZE, b"\0")
    return record(decode.SAMPLE_NAME, body, **header)


def sni(text: bytes = b"example.org", **header: Any) -> bytes:
    return name(decode.NAME_SNI, text, **header)


def alpn(text: bytes = b"http/1.1", **header: Any) -> bytes:
    return name(decode.NAME_ALPN, text, **header)


def shutdown(**header: Any) -> bytes:
    return record(decode.SAMPLE_SHUTDOWN, **header)


def eof(**header: Any) -> bytes:
    return record(decode.SAMPLE_EOF, **header)


def closed(bytes_in: int, bytes_out: int, *, recycled: bool = False, **header: Any) -> bytes:
    return record(decode.SAMPLE_CLOSE, decode.CLOSE.pack(bytes_in, bytes_out, recycled, 0), **header)


def ledger(bytes_in: int, bytes_out: int, *, conn: int = CONN, time_ns: int = MONOTONIC_NS) -> bytes:
    """Return what is said at the end of a connection that is still open."""
    return decode.ledger(decode.RECORD_LEDGER, PID, conn, bytes_in, bytes_out, time_ns=time_ns)


def orphan(bytes_in: int, bytes_out: int, *, conn: int = CONN, pid: int = PID, time_ns: int = MONOTONIC_NS) -> bytes:
    """Return what is said of a connection that could not report its own end."""
    return decode.ledger(decode.RECORD_ORPHAN, pid, conn, bytes_in, bytes_out, time_ns=time_ns)


def carry(bytes_in: int, bytes_out: int, *, conn: int = CONN, time_ns: int = MONOTONIC_NS) -> bytes:
    """Return what begins a connection that goes on from an earlier file."""
    return decode.ledger(decode.RECORD_CARRY, PID, conn, bytes_in, bytes_out, time_ns=time_ns)


def process(
    comm: bytes = b"curl",
    *words: bytes,
    exe: bytes = b"curl",
    start_ns: int = PROCESS_START_NS,
    ppid: int = 1,
    uid: int = 1000,
    length: int | None = None,
    **header: Any,
) -> bytes:
    line = b"".join(word + b"\0" for word in words)
    head = decode.PROCESS.pack(
        start_ns, ppid, uid, comm.ljust(COMM_SIZE, b"\0"), len(line) if length is None else length, 0, exe
    )
    return record(decode.SAMPLE_PROCESS, head + line, conn=0, **header)


def mapped(inode: int = 99, device: int = 8, *, executable: bool = True, **header: Any) -> bytes:
    return record(decode.SAMPLE_MAPPED, decode.MAPPED.pack(inode, device, executable), conn=0, **header)


def exited(**header: Any) -> bytes:
    return record(decode.SAMPLE_EXIT, conn=0, **header)


def unjoined(**header: Any) -> bytes:
    return record(decode.SAMPLE_UNJOINED, conn=0, **header)


def callback(address: int = 0x7F00_2000, kind: int = 24, **header: Any) -> bytes:
    return record(decode.SAMPLE_CALLBACK, decode.CALLBACK.pack(address, kind, 0), conn=0, **header)


def mark(kind: int, offset: int, length: int, direction: int, **header: Any) -> bytes:
    return record(decode.SAMPLE_MARK, decode.MARK.pack(offset, length, kind, direction), **header)


def start(**changes: Any) -> bytes:
    """Return the first record of a file."""
    body: dict[str, Any] = {
        "tool": "tlscap 0.0-test",
        "host": "here",
        "os": "Linux 6.1",
        "hardware": "x86_64",
        "loader": "libbpf",
        "framing": "auto",
        "snaplen": 0,
        "wall_ns": WALL_NS,
        "monotonic_ns": MONOTONIC_NS,
    }
    return decode.note(decode.RECORD_START, body | changes)


def clock(wall_ns: int, monotonic_ns: int) -> bytes:
    return decode.note(decode.RECORD_CLOCK, {"wall_ns": wall_ns, "monotonic_ns": monotonic_ns})


def details(*, pid: int = PID, start_ns: int = PROCESS_START_NS, exe: str = "/usr/bin/curl") -> bytes:
    library = {"path": "/usr/lib/libssl.so.3", "build_id": "abcd", "flavor": "openssl"}
    body = {"start_ns": start_ns, "exe": exe, "libraries": [library]}
    return decode.note(decode.RECORD_PROCESS, body, pid=pid)


def end(**counters: int) -> bytes:
    body = {"counters": counters, "stopped": "command ended"}
    return decode.note(decode.RECORD_END, body, time_ns=MONOTONIC_NS + 1000 * MS)
