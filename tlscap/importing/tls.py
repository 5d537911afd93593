"""TLS among the flows of a capture: told from plaintext, cut into records, and put together again once decrypted.

Decrypting is somebody else's work (`Decryptor`).  It is asked in passes over the same capture: the first hands out the
records, the last, which comes to the same records in the same order, gets what was found in them.  So results
are in the place of their packets, nothing waits, and the same capture gives the same items.  Which records are handed out
depends on nothing that a decryptor says.

Holes: a record in which bytes are missing goes out with zeros in their place.  It can't be decrypted, but the ones after it
can, because it is counted.  A hole that hides where the next record begins ends decryption in its direction.  The
gap of a record has the length of its plaintext, as far as the records before it tell how much encryption adds; that of a
direction's rest has the length of the ciphertext, which is a little more.

TLS may begin later in a flow, after CONNECT or STARTTLS.  With keys for it, the plaintext's flow ends there
and a new one with the same addresses begins; without, it stays what it is: bytes of the flow around it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from tlscap.importing.hello import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    FINISHED,
    HEARTBEAT,
    MAX_RECORD,
    RECORD,
    is_client_hello,
    is_record,
    parse_client_hello,
)
from tlscap.importing.keylog import KeyLog
from tlscap.model import (
    Data,
    Direction,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Role,
)
from tlscap.tlsnull import sniff_sender

WITHOUT_KEYS: Final = "without keys"
WITHOUT_BEGINNING: Final = "without their beginning"
NOT_OPENED: Final = "that their keys don't open"

_TLS_PORTS = frozenset({443, 465, 563, 636, 853, 989, 990, 993, 994, 995, 5061, 8443})
_CLOSE_NOTIFY = 0
_OVERHEAD_TLS13 = 17  # type and tag
_OVERHEAD = 24  # explicit nonce and tag of AES-GCM
_MAX_EMPTY = 80  # an empty record with an IV of 16 bytes, a MAC of 48, and padding


class Decrypted(NamedTuple):
    """What was found in one record."""

    content_types: tuple[int, ...] = ()
    """Of what it holds, where that is known: in TLS 1.3 only after decryption."""
    is_tls13: bool = False
    """Whether it is an encrypted record of TLS 1.3."""
    handshakes: tuple[int, ...] = ()
    """Types of handshake messages."""
    alpn: str = ""
    alerts: tuple[int, ...] = ()
    data: bytes = b""
    """Application data."""


class Decryptor(Protocol):
    """What opens records.  Connections are numbered from 1."""

    def begin(self, connection: int) -> None:
        """Take the news of a connection for which there are keys."""
        ...

    def record(
        self, connection: int, direction: Direction, record: bytes, time_ns: int, *, damaged: bool
    ) -> Decrypted | None:
        """Take the next record of a connection, in which bytes may be missing; return what is in it if that is known."""
        ...

    def end(self, connection: int) -> None:
        """Take the news that no more records of a connection will come."""
        ...


class TlsFilter:
    """Items of captured flows in; items of their plaintext out."""

    def __init__(self, keys: KeyLog, decryptor: Decryptor | None) -> None:
        """Without a decryptor, or without keys, every TLS connection is left out."""
        self._keys = keys if decryptor else KeyLog()
        self._decryptor = decryptor
        self._flows: dict[Flow, _Undecided | _Plain | _Tls | None] = {}
        """What is known of each open flow; None: it is left out."""
        self._count = 0
        self.left_out: Counter[str] = Counter()
        """TLS connections that are not imported, by the reason."""

    def feed(self, item: Item) -> list[Item]:
        """Return what an item becomes."""
        flow = item.flow
        if isinstance(item, FlowOpened):
            self._flows[flow] = _Undecided(item)
            return []
        state = self._flows[flow]
        if isinstance(item, FlowClosed):
            del self._flows[flow]
        match state:
            case None:
                return []
            case _Undecided():
                return self._decide(state, item)
            case _Plain():
                if isinstance(item, Data) and item.direction is Direction.OUTBOUND and is_client_hello(item.data):
                    return self._enter(item)
                return [item]
            case _Tls():
                return self._tls(state, item)

    def finish(self) -> list[Item]:
        """Return what is left at the end of the capture."""
        items: list[Item] = []
        for state in self._flows.values():
            if isinstance(state, _Undecided):
                items += state.items
            elif isinstance(state, _Tls):
                items += state.finish()
                self._ended(state)
        self._flows.clear()
        return items

    def _decide(self, state: _Undecided, item: Item) -> list[Item]:
        """Tell by the first bytes of a flow what it is; they may come in small pieces."""
        flow = item.flow
        state.items.append(item)
        if isinstance(item, Data) and state.direction in (None, item.direction):
            state.direction = item.direction
            state.begin += item.data
            is_tls = is_record(state.begin)
            if is_tls is None:
                return []
        else:
            is_tls = False
        missed = flow.joined_midstream or isinstance(state.items[1], Gap)
        if isinstance(item, FlowClosed):
            return state.items
        if is_tls and isinstance(state.items[1], Data):
            tls = self._flows[flow] = _Tls(flow)
            return [found for held in state.items[1:] for found in self._tls(tls, held)]
        if missed and _is_tls_port(flow) and sniff_sender(state.begin) is Role.UNKNOWN:
            self._leave_out(flow, WITHOUT_BEGINNING)
            return []
        flow.plaintext = True
        self._flows[flow] = _Plain()
        return state.items

    def _leave_out(self, flow: Flow, why: str) -> None:
        self.left_out[why] += 1
        if flow in self._flows:
            self._flows[flow] = None

    def _enter(self, item: Data) -> list[Item]:
        """Begin a TLS connection inside a flow, if it can be opened."""
        hello = parse_client_hello(item.data)
        if hello is None or not self._keys.has(hello.random):
            return [item]
        outer = item.flow
        inner = dataclasses.replace(
            outer, id=0, opened_ns=item.time_ns, closed_ns=0, joined_midstream=False, plaintext=False
        )
        outer.closed_ns = item.time_ns
        tls = self._flows[outer] = _Tls(inner)
        return [FlowClosed(outer, item.time_ns), *self._tls(tls, item)]

    def _tls(self, state: _Tls, item: Item) -> list[Item]:
        items: list[Item] = []
        for direction, record, damaged, time_ns in state.records(item):
            if not state.number and not self._begin(state, item.flow, record, time_ns):
                return []
            if self._decryptor:
                found = self._decryptor.record(state.number, direction, record, time_ns, damaged=damaged)
                if found is not None:
                    items += state.take(direction, record, found, time_ns, damaged=damaged)
        items += state.follow(item)
        if isinstance(item, FlowClosed):
            self._ended(state)
        return items

    def _begin(self, state: _Tls, flow: Flow, record: bytes, time_ns: int) -> bool:
        """Look for the keys of a connection by its first record; tell whether it can be opened."""
        hello = parse_client_hello(record)
        if hello is None or not self._keys.has(hello.random) or self._decryptor is None:
            self._leave_out(flow, WITHOUT_KEYS if hello else WITHOUT_BEGINNING)
            return False
        self._count += 1
        state.number = self._count
        state.flow.sni = hello.sni
        state.flow.handshake_start_ns = time_ns
        self._decryptor.begin(state.number)
        return True

    def _ended(self, state: _Tls) -> None:
        if state.number and self._decryptor:
            self._decryptor.end(state.number)
            if not state.is_open:
                self.left_out[NOT_OPENED] += 1
        elif not state.number:
            self.left_out[WITHOUT_BEGINNING] += 1


class _Undecided:
    """A flow whose first bytes are still too few: what came so far."""

    __slots__ = ("begin", "direction", "items")

    def __init__(self, opened: FlowOpened) -> None:
        self.items: list[Item] = [opened]
        self.direction: Direction | None = None
        self.begin = b""


class _Plain:
    """A flow that goes through as it is."""

    __slots__ = ()


class _Tls:
    """A TLS connection: two streams of records, and the flow that they become."""

    __slots__ = ("_closed", "_finished", "_halves", "_time_ns", "flow", "is_open", "number")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.number = 0
        """The decryptor's; 0 before the first record."""
        self.is_open = False
        """Whether anything could be decrypted."""
        self._halves = (_Records(), _Records())
        self._finished = 0
        self._closed = [False, False]
        self._time_ns = 0

    def records(self, item: Item) -> Iterable[tuple[Direction, bytes, bool, int]]:
        """Return the records that are whole with an item: direction, bytes, whether bytes are missing in it, time."""
        if isinstance(item, Data):
            found = self._halves[item.direction].feed(item.data)
        elif isinstance(item, Gap):
            found = self._halves[item.direction].hole(item.length)
        else:
            return ()
        return [(item.direction, record, damaged, item.time_ns) for record, damaged in found]

    def take(self, direction: Direction, record: bytes, found: Decrypted, time_ns: int, *, damaged: bool) -> list[Item]:
        """Return what a record becomes."""
        half, flow = self._halves[direction], self.flow
        if found.alpn and direction is Direction.INBOUND:
            flow.alpn = found.alpn
        items: list[Item] = []
        is_opened = bool(found.content_types) if found.is_tls13 else FINISHED in found.handshakes or bool(found.data)
        if is_opened and not self.is_open:
            self.is_open = True
            items.append(FlowOpened(flow, time_ns))
        if FINISHED in found.handshakes and self._finished < 2:
            self._finished += 1
            flow.handshake_end_ns = time_ns
            if self.is_open:
                items.append(FlowUpdated(flow, time_ns))
        size = len(record) - RECORD.size
        if found.data and not damaged:
            half.overhead = size - len(found.data)
            items += self._missing(time_ns)
            items.append(Data(flow, direction, half.offset, found.data, time_ns))
            half.offset += len(found.data)
        elif record[0] == APPLICATION_DATA and (damaged or not self._is_empty(half, size, found)):
            overhead = half.overhead
            if overhead is None:
                overhead = _OVERHEAD_TLS13 if found.is_tls13 else _OVERHEAD
            half.missing += max(0, size - overhead)
        if _CLOSE_NOTIFY in found.alerts:
            items += self._half_closed(direction, time_ns)
        return items

    def follow(self, item: Item) -> list[Item]:
        """Return what an item becomes besides its records: the end of the TCP connection, or of one direction."""
        self._time_ns = item.time_ns
        for half in self._halves:
            half.missing += half.lost
            half.lost = 0
        if isinstance(item, HalfClosed):
            return self._half_closed(item.direction, item.time_ns)
        if isinstance(item, FlowClosed) and self.is_open:
            self.flow.closed_ns = item.time_ns
            return [*self._missing(item.time_ns), FlowClosed(self.flow, item.time_ns)]
        return []

    def finish(self) -> list[Item]:
        """Return what is left when the capture ends before the connection."""
        return self._missing(self._time_ns)

    def _is_empty(self, half: _Records, size: int, found: Decrypted) -> bool:
        """Tell whether a record without application data could be decrypted all the same.

        TLS 1.3 says so.  Before, old implementations put an empty record in front of each that is not.
        """
        if found.is_tls13:
            return bool(found.content_types)
        return self.is_open and not half.has_hole and size <= _MAX_EMPTY

    def _half_closed(self, direction: Direction, time_ns: int) -> list[Item]:
        if self._closed[direction] or not self.is_open:
            return []
        self._closed[direction] = True
        return [*self._missing(time_ns), HalfClosed(self.flow, direction, time_ns)]

    def _missing(self, time_ns: int) -> list[Item]:
        """Return the gaps of both directions that were not told yet."""
        items: list[Item] = []
        for direction, half in zip(Direction, self._halves, strict=True):
            if self.is_open and (length := half.take_missing()):
                reason = GapReason.NOT_CAPTURED if half.has_hole else GapReason.UNKNOWN
                items.append(Gap(self.flow, direction, half.offset, length, reason, time_ns))
                half.offset += length
        return items


class _Records:
    """Cuts one direction into records; holds at most one."""

    __slots__ = ("_buffer", "_damaged", "_in_step", "has_hole", "lost", "missing", "offset", "overhead")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._damaged = False
        self._in_step = True
        """Whether it is known where the next record begins."""
        self.has_hole = False
        self.offset = 0
        """Bytes of plaintext so far."""
        self.overhead: int | None = None
        """What encryption adds to a record, when known."""
        self.lost = 0
        """Bytes behind the latest record that belong to none."""
        self.missing = 0
        """Bytes that could not be decrypted and were not told yet."""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the records that are whole now, and whether bytes are missing in them."""
        if not self._in_step:
            self.lost += len(data)
            return []
        buffer = self._buffer
        buffer += data
        records: list[tuple[bytes, bool]] = []
        start = 0
        while len(buffer) - start >= RECORD.size:
            kind, version, length = RECORD.unpack_from(buffer, start)
            if not CHANGE_CIPHER_SPEC <= kind <= HEARTBEAT or version >> 8 != 3 or length > MAX_RECORD:
                self._in_step = False
                self.lost += len(buffer) - start
                buffer.clear()
                return records
            end = start + RECORD.size + length
            if end > len(buffer):
                break
            records.append((bytes(buffer[start:end]), self._damaged))
            self._damaged = False
            start = end
        del buffer[:start]
        return records

    def hole(self, length: int) -> list[tuple[bytes, bool]]:
        """Take the news that bytes are missing; return the record that ends with them, if one does."""
        self.has_hole = True
        buffer = self._buffer
        if self._in_step and len(buffer) >= RECORD.size:
            _, _, size = RECORD.unpack_from(buffer)
            if len(buffer) + length <= RECORD.size + size:
                self._damaged = True
                return self.feed(bytes(length))
        self._in_step = False
        self.lost += len(buffer) + length
        buffer.clear()
        return []

    def take_missing(self) -> int:
        """Return how many bytes are missing since the last call."""
        missing, self.missing = self.missing, 0
        return missing


def _is_tls_port(flow: Flow) -> bool:
    return any(end is not None and end.port in _TLS_PORTS for end in (flow.local, flow.remote))
