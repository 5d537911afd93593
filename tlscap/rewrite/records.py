"""The records of a sidecar (docs/format.md) that say what is known of connections and processes, and what passed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from tlscap import decode
from tlscap.flows import REASONS, REWRITTEN_REASONS
from tlscap.http.events import Side
from tlscap.model import Direction, Flow, GapReason, Process, Role, TupleSource
from tlscap.replay.recording import Hole
from tlscap.rewrite.steps import Step

_MAX_NS: Final = (1 << 63) - 1
_MAX_DATA: Final = 16 << 20  # of one record: whole records go into frames of bounded size
_MAX_HOLE: Final = 1 << 30
_U32: Final = 0xFFFFFFFF
_REASONS: Final = {reason: number for number, reason in (REASONS | REWRITTEN_REASONS).items()} | {GapReason.UNKNOWN: 0}
_FAMILIES: Final = {4: 2, 6: 10}
_AF_UNIX: Final = 1
_TRANSPORTS: Final = {"tcp": 6, "udp": 17, "unix": 0}


class Processes:
    """Which process has which number, so far in the file."""

    def __init__(self) -> None:
        self._current: dict[int, Process] = {}

    def introduce(self, process: Process, time_ns: int) -> Iterator[bytes]:
        """Yield what has to be said of a process before its next connection."""
        pid = process.pid & _U32
        if self._current.get(pid) is process:
            return
        was_known = pid in self._current
        self._current[pid] = process
        if not (was_known or process.comm or process.exe or process.cmdline or process.uid >= 0 or process.ppid >= 0):
            return
        if process.exe or process.libraries:
            libraries = [
                {"path": one.path, "build_id": one.build_id, "flavor": one.flavor} for one in process.libraries
            ]
            body = {"start_ns": process.start_ns, "exe": process.exe, "libraries": libraries}
            yield decode.note(decode.RECORD_PROCESS, body, time_ns=time_ns, pid=pid)
        words = b"".join(_bytes(word) + b"\0" for word in process.cmdline)
        head = decode.PROCESS.pack(
            process.start_ns,
            process.ppid & _U32,
            process.uid & _U32,
            _bytes(process.comm)[:16],
            len(words),
            0,
            _bytes(process.exe)[:255],
        )
        yield _record(decode.SAMPLE_PROCESS, head + words, time_ns=time_ns, pid=pid)


class FlowRecords:
    """The records of one connection.  Its bytes are counted as they pass."""

    def __init__(self, flow: Flow, conn: int, opened_ns: int) -> None:
        self._flow = flow
        self._conn = conn
        self._pid = flow.process.pid & _U32
        self._offsets = [0, 0]
        self._ended: set[Direction] = set()
        self.opened_ns = opened_ns
        self._requests_go = _requests_go(flow)

    def opening(self) -> Iterator[bytes]:
        """Yield what is known of the connection: all of it before its first byte."""
        flow, opened_ns = self._flow, self.opened_ns
        flags = decode.REWRITTEN_PLAINTEXT if flow.plaintext else 0
        start_ns = flow.process.start_ns
        body = decode.OPEN.pack(flow.ssl, start_ns, flow.joined_midstream, int(flow.role))
        yield self._record(decode.SAMPLE_OPEN, body, opened_ns, flags=flags)
        if address := _address(flow):
            imported = flow.tuple_source is TupleSource.IMPORTED
            by_ciphertext = flow.tuple_source is TupleSource.CIPHERTEXT
            flags = decode.REWRITTEN_IMPORTED * imported | decode.FLAG_CIPHERTEXT * by_ciphertext
            yield self._record(decode.SAMPLE_ADDRESS, address, opened_ns, flags=flags)
        if flow.handshake_start_ns or flow.handshake_end_ns:
            body = decode.HANDSHAKE.pack(_clamp(flow.handshake_start_ns), 1, 0)
            yield self._record(decode.SAMPLE_HANDSHAKE, body, flow.handshake_end_ns)
            if (
                flow.joined_midstream
            ):  # a handshake says the contrary; what goes on from an earlier file is not from its start
                carry = decode.CLOSE.pack(0, 0, 0, 0)
                yield self._record(decode.RECORD_CARRY, carry, opened_ns)
        for kind, text in ((decode.NAME_SNI, flow.sni), (decode.NAME_ALPN, flow.alpn)):
            if text:
                raw = _bytes(text)[:256]
                yield self._record(decode.SAMPLE_NAME, decode.NAME.pack(kind, len(raw), 0) + raw, opened_ns)

    def passing(self, step: Step) -> Iterator[bytes]:
        """Yield what passed."""
        direction = self._requests_go if step.side is Side.REQUEST else self._requests_go.opposite
        held = b""
        for part in (*step.parts, None):
            if isinstance(part, bytes):
                held += part
                continue
            for begin in range(0, len(held), _MAX_DATA):
                yield self._data(direction, held[begin : begin + _MAX_DATA], 0, GapReason.UNKNOWN, step.time_ns)
            held = b""
            if isinstance(part, Hole):
                for begin in range(0, part.length, _MAX_HOLE):
                    length = min(_MAX_HOLE, part.length - begin)
                    yield self._data(direction, b"", length, part.reason, part.time_ns or step.time_ns)
        if step.ends_side:
            kind = decode.SAMPLE_SHUTDOWN if direction is Direction.OUTBOUND else decode.SAMPLE_EOF
            yield self._record(kind, b"", step.time_ns)

    def closing(self, time_ns: int) -> bytes:
        """Return the last ledger: of a connection that was closed, or still open at the end."""
        kind = decode.SAMPLE_CLOSE if self._flow.closed_ns else decode.RECORD_LEDGER
        inbound, outbound = self._offsets
        return self._record(kind, decode.CLOSE.pack(inbound, outbound, 0, 0), time_ns)

    def _data(self, direction: Direction, data: bytes, missing: int, reason: GapReason, time_ns: int) -> bytes:
        length = len(data) + missing
        body = decode.DATA.pack(
            self._offsets[direction], length, _clamp(time_ns), length, len(data), direction, _REASONS[reason], 0, 0
        )
        self._offsets[direction] += length
        return self._record(decode.SAMPLE_DATA, body + data, time_ns)

    def _record(self, kind: int, body: bytes, time_ns: int, *, flags: int = 0) -> bytes:
        return _record(kind, body, time_ns=time_ns, pid=self._pid, conn=self._conn, flags=flags)


def _requests_go(flow: Flow) -> Direction:
    """Return the direction of a connection's requests; where nobody knows, the lower port is the server's."""
    if flow.role is Role.UNKNOWN and flow.local and flow.remote:
        return Direction.INBOUND if flow.local.port < flow.remote.port else Direction.OUTBOUND
    return Direction.INBOUND if flow.role is Role.SERVER else Direction.OUTBOUND


def _address(flow: Flow) -> bytes | None:
    """Return the body of an address record; ``None``: there is nothing to say."""
    transport = _TRANSPORTS.get(flow.transport, int(flow.transport) if flow.transport.isdecimal() else 6)
    known = flow.tuple_source is not TupleSource.PLACEHOLDER
    packed: list[bytes | None] = []
    for end in (flow.local, flow.remote):
        try:
            packed.append(ipaddress.ip_address(end.address).packed if end and known else None)
        except ValueError:  # a name
            packed.append(None)
    local, remote = packed
    srtt_us = max(0, flow.srtt_us) & _U32
    if local is None and (remote is None or flow.tuple_source is not TupleSource.IMPORTED):
        if flow.transport == "tcp" and not srtt_us:
            return None
        return decode.ADDRESS.pack(b"", b"", _AF_UNIX * (flow.transport == "unix"), 0, 0, transport, srtt_us, _U32)
    size = max(len(local or b""), len(remote or b""))
    ends = [_widened(one, size) for one in (local, remote)]
    ports = [end.port & 0xFFFF if end and raw else 0 for end, raw in ((flow.local, local), (flow.remote, remote))]
    return decode.ADDRESS.pack(*ends, _FAMILIES[4 if size == 4 else 6], *ports, transport, srtt_us, _U32)


def _widened(address: bytes | None, size: int) -> bytes:
    """Return an address of so many bytes; of an IPv4 address beside an IPv6 one its mapped form (RFC 4291, 2.5.5.2)."""
    if address is None:
        return bytes(size)
    return address if len(address) == size else bytes(10) + b"\xff\xff" + address


def _record(kind: int, body: bytes, *, time_ns: int, pid: int, conn: int = 0, flags: int = 0) -> bytes:
    size = decode.HEADER.size + len(body)
    return decode.HEADER.pack(kind, flags, size, _clamp(time_ns), pid, pid, conn) + body + bytes(-size % 8)


def _clamp(time_ns: int) -> int:
    return max(0, min(_MAX_NS, time_ns))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace").replace(b"\0", b" ")
