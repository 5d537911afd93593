"""Records to events: the layouts of bpf/events.h, and of the records user space adds.

A record starts with the kernel's ``struct sample_header`` and is padded to 8 bytes.  Types below 256
come from the kernel, as they were on the ring; the others are ours, with a JSON text as body.
Unknown types are skipped, so that older readers read newer files of the same version.
``tools/check_layout.py`` compares the structures here with the BTF of the built object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tlscap.errors import CorruptError

HEADER = struct.Struct("<HHIQIIQ")  # type, flags, size, time_ns, pid, tid, conn
DATA = struct.Struct("<QQQIIBBHI")  # offset, call_len, entry_ns, length, captured, direction, reason, call, pad
OPEN = struct.Struct("<QQII")  # ssl, start_ns, midstream, role
ADDRESS = struct.Struct("<16s16sHHHHII")  # local, remote, family, local_port, remote_port, protocol, srtt_us, fd
HANDSHAKE = struct.Struct("<QII")  # start_ns, calls, pad
NAME = struct.Struct("<HHI")  # kind, length, pad; the text follows
CLOSE = struct.Struct("<QQII")  # bytes inbound, bytes outbound, recycled, pad
PROCESS = struct.Struct("<QII16sII256s")  # start_ns, ppid, uid, comm, cmdline_len, pad, exe; the command line follows
MAPPED = struct.Struct("<QII")  # inode, device, executable
CALLBACK = struct.Struct("<QII")  # address, kind, pad
MARK = struct.Struct("<QQHB5x")  # offset, length, kind, direction

SAMPLE_DATA = 1
SAMPLE_OPEN = 2
SAMPLE_ADDRESS = 3
SAMPLE_HANDSHAKE = 4
SAMPLE_NAME = 5
SAMPLE_SHUTDOWN = 6
SAMPLE_EOF = 7
SAMPLE_CLOSE = 8
SAMPLE_PROCESS = 9
SAMPLE_MAPPED = 10
SAMPLE_EXIT = 11
SAMPLE_MARK = 12
SAMPLE_UNJOINED = 13
SAMPLE_CALLBACK = 14

RECORD_START = 256
"""JSON: who recorded, where, with what settings; the clock.  First in every file."""
RECORD_CLOCK = 257
"""JSON: the wall clock moved against the monotonic one."""
RECORD_PROCESS = 258
"""JSON: what /proc says of a process: executable, libraries."""
RECORD_LEDGER = 259
"""The kernel's ledger of a connection at the end of the recording; body as CLOSE."""
RECORD_END = 260
"""JSON: the kernel's counters at the end."""
RECORD_ORPHAN = 261
"""As RECORD_LEDGER, for a connection that was closed while the ring was full."""

RECORD_CARRY = 262
"""In a file that continues another: how far the ledger of an open connection was when this file began; body as CLOSE."""

NAME_SNI, NAME_ALPN = 1, 2
FLAG_NO_STATE = 1
FLAG_CIPHERTEXT = 2
REWRITTEN_IMPORTED = 0x4000
"""A flag that the kernel never sets, of an address: taken over from another program's file."""
REWRITTEN_PLAINTEXT = 0x8000
"""Likewise, of an open record: the connection was not encrypted."""

NO_NUMBER = 0xFFFFFFFF
"""Of a process, its parent or its user: not known.  None of them can have this number."""


@dataclass(slots=True)
class DataEvent:
    time_ns: int
    """When the TLS call returned."""
    entry_ns: int
    """When it was entered."""
    pid: int
    conn: int
    direction: int
    offset: int
    length: int
    data: bytes
    reason: int
    no_state: bool


@dataclass(slots=True)
class OpenEvent:
    time_ns: int
    pid: int
    conn: int
    ssl: int
    start_ns: int
    midstream: bool
    role: int
    plaintext: bool = False


@dataclass(slots=True)
class AddressEvent:
    time_ns: int
    conn: int
    family: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    protocol: int
    srtt_us: int
    by_ciphertext: bool = False
    """The socket carried a TLS record of the connection; else, the connection's own call used the socket."""
    imported: bool = False
    """Taken over from another program's file; each end whose port is 0 is not known."""


@dataclass(slots=True)
class HandshakeEvent:
    time_ns: int
    conn: int
    start_ns: int


@dataclass(slots=True)
class NameEvent:
    time_ns: int
    conn: int
    kind: int
    text: str


@dataclass(slots=True)
class EndEvent:
    """One direction has ended: close_notify sent (SHUTDOWN) or end of file read (EOF)."""

    time_ns: int
    conn: int
    outbound: bool


@dataclass(slots=True)
class CloseEvent:
    """The connection's last ledger.  ``final`` is false when it was still open at the end of the recording."""

    time_ns: int
    pid: int
    conn: int
    bytes_in: int
    bytes_out: int
    final: bool


@dataclass(slots=True)
class CarryEvent:
    """A connection goes on from an earlier file: its ledger where this one begins."""

    time_ns: int
    pid: int
    conn: int
    bytes_in: int
    bytes_out: int


@dataclass(slots=True)
class ProcessEvent:
    time_ns: int
    pid: int
    start_ns: int
    ppid: int
    uid: int
    comm: str
    exe: str
    cmdline: tuple[str, ...]


@dataclass(slots=True)
class ExitEvent:
    time_ns: int
    pid: int


@dataclass(slots=True)
class UnjoinedEvent:
    """A TLS call of the process made no socket call: its addresses may have to be found by ciphertext."""

    time_ns: int
    pid: int


@dataclass(slots=True)
class CallbackEvent:
    """A TLS library was given the function at an address of the process, to send or receive ciphertext with."""

    time_ns: int
    pid: int
    address: int
    kind: int
    """`CallKind` of `tlscap.live.loader`."""


@dataclass(slots=True)
class MappedEvent:
    time_ns: int
    pid: int
    inode: int
    device: int
    executable: bool


@dataclass(slots=True)
class MarkEvent:
    time_ns: int
    conn: int
    kind: int
    direction: int
    offset: int
    length: int


@dataclass(slots=True)
class NoteEvent:
    """A record of user space: its type and its JSON body."""

    time_ns: int
    type: int
    pid: int
    body: Mapping[str, Any]


Event = (
    DataEvent
    | OpenEvent
    | AddressEvent
    | HandshakeEvent
    | NameEvent
    | EndEvent
    | CloseEvent
    | CarryEvent
    | ProcessEvent
    | ExitEvent
    | UnjoinedEvent
    | CallbackEvent
    | MappedEvent
    | MarkEvent
    | NoteEvent
)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def decode(records: bytes) -> Iterator[Event]:
    """The events of whole records, in order.

    Raises `CorruptError`, with ``offset`` counted from the first byte given, where a size can't be right.
    """
    at, end = 0, len(records)
    while at < end:
        if end - at < HEADER.size:
            raise CorruptError("the records end inside a header", offset=at)
        kind, flags, size, time_ns, pid, _, conn = HEADER.unpack_from(records, at)
        body = at + HEADER.size
        following = at + (size + 7 & ~7)
        if size < HEADER.size or following > end:
            raise CorruptError(f"a record of type {kind} claims {size} bytes", offset=at)
        try:
            if kind == SAMPLE_DATA:
                offset, _, entry_ns, length, captured, direction, reason, _, _ = DATA.unpack_from(records, body)
                start = body + DATA.size
                if start + captured > at + size or captured > length or direction > 1:
                    raise CorruptError("a data record contradicts itself", offset=at)
                data = records[start : start + captured]
                yield DataEvent(
                    time_ns, entry_ns, pid, conn, direction, offset, length, data, reason, bool(flags & FLAG_NO_STATE)
                )
            elif size - HEADER.size < _BODY_SIZES.get(kind, 0):
                raise CorruptError(f"a record of type {kind} is too short", offset=at)
            elif event := _small(kind, flags, records[body : at + size], time_ns, pid, conn):
                yield event
        except (struct.error, ValueError, RecursionError) as error:
            raise CorruptError(f"a record of type {kind} can't be decoded: {error}", offset=at) from error
        at = following


_BODY_SIZES = {
    SAMPLE_OPEN: OPEN.size, SAMPLE_ADDRESS: ADDRESS.size, SAMPLE_HANDSHAKE: HANDSHAKE.size, SAMPLE_NAME: NAME.size,
    SAMPLE_CLOSE: CLOSE.size, SAMPLE_PROCESS: PROCESS.size, SAMPLE_MAPPED: MAPPED.size, SAMPLE_MARK: MARK.size,
    SAMPLE_CALLBACK: CALLBACK.size,
    RECORD_LEDGER: CLOSE.size, RECORD_ORPHAN: CLOSE.size, RECORD_CARRY: CLOSE.size,
}  # fmt: skip


def _small(kind: int, flags: int, body: bytes, time_ns: int, pid: int, conn: int) -> Event | None:
    match kind:
        case 2:
            ssl, start_ns, midstream, role = OPEN.unpack_from(body)
            return OpenEvent(
                time_ns, pid, conn, ssl, start_ns, bool(midstream), role, bool(flags & REWRITTEN_PLAINTEXT)
            )
        case 3:
            local, remote, family, local_port, remote_port, protocol, srtt, _ = ADDRESS.unpack_from(body)
            by_ciphertext, imported = bool(flags & FLAG_CIPHERTEXT), bool(flags & REWRITTEN_IMPORTED)
            return AddressEvent(
                time_ns, conn, family, local, local_port, remote, remote_port, protocol, srtt, by_ciphertext, imported
            )
        case 4:
            return HandshakeEvent(time_ns, conn, HANDSHAKE.unpack_from(body)[0])
        case 5:
            name_kind, length, _ = NAME.unpack_from(body)
            return NameEvent(time_ns, conn, name_kind, _text(body[NAME.size : NAME.size + length]))
        case 6 | 7:
            return EndEvent(time_ns, conn, kind == SAMPLE_SHUTDOWN)
        case 8 | 259 | 261:
            bytes_in, bytes_out, _, _ = CLOSE.unpack_from(body)
            return CloseEvent(time_ns, pid, conn, bytes_in, bytes_out, kind != RECORD_LEDGER)
        case 262:
            return CarryEvent(time_ns, pid, conn, *CLOSE.unpack_from(body)[:2])
        case 9:
            start_ns, ppid, uid, comm, length, _, exe = PROCESS.unpack_from(body)
            raw = body[PROCESS.size : PROCESS.size + length]
            words = tuple(_text(word) for word in raw.removesuffix(b"\0").split(b"\0")) if raw else ()
            name, path = _text(comm.split(b"\0")[0]), _text(exe.split(b"\0")[0])
            return ProcessEvent(time_ns, pid, start_ns, ppid, uid, name, path, words)
        case 10:
            inode, device, is_executable = MAPPED.unpack_from(body)
            return MappedEvent(time_ns, pid, inode, device, bool(is_executable))
        case 11:
            return ExitEvent(time_ns, pid)
        case 12:
            offset, length, mark, direction = MARK.unpack_from(body)
            return MarkEvent(time_ns, conn, mark, direction, offset, length)
        case 13:
            return UnjoinedEvent(time_ns, pid)
        case 14:
            address, callback_kind, _ = CALLBACK.unpack_from(body)
            return CallbackEvent(time_ns, pid, address, callback_kind)
        case 256 | 257 | 258 | 260:
            parsed = json.loads(body)
            if not isinstance(parsed, dict):
                raise ValueError("the body is not an object")  # noqa: TRY004 - decode() turns it into CorruptError
            return NoteEvent(time_ns, kind, pid, parsed)
    return None


def note(kind: int, body: Mapping[str, Any], *, time_ns: int = 0, pid: int = 0) -> bytes:
    """A record of ours with a JSON body, padded."""
    # The body is the rest of the record without padding: `size` counts what is used.
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()
    size = HEADER.size + len(text)
    return HEADER.pack(kind, 0, size, time_ns, pid, 0, 0) + text + bytes(-size % 8)


def ledger(kind: int, pid: int, conn: int, bytes_in: int, bytes_out: int, *, time_ns: int) -> bytes:
    """A `RECORD_LEDGER`, `RECORD_ORPHAN` or `RECORD_CARRY`."""
    body = CLOSE.pack(bytes_in, bytes_out, 0, 0)
    return HEADER.pack(kind, 0, HEADER.size + len(body), time_ns, pid, 0, conn) + body
