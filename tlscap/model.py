"""The words of tlscap: processes, flows and the items that a flow's two streams consist of.

Everything between the kernel's events and the outputs speaks in these types: `FlowTable` makes
them from events, the pcapng synthesizer and the HTTP observers consume them, and the pcapng
reader makes them again from a file.  Nothing here does I/O.

A *flow* is one TLS connection as one process saw it.  A *direction* is observed (did the process
write or read these bytes?), a *role* is inferred (client or server) and may stay unknown.  Loss is
data: a `Gap` stands in the stream exactly where bytes are missing and says how many and why.

All times are nanoseconds of wall-clock time since 1970-01-01 UTC, taken by the probe.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Direction(enum.IntEnum):
    """Which way bytes went, as seen by the traced process."""

    INBOUND = 0
    OUTBOUND = 1

    @property
    def opposite(self) -> Direction:
        return Direction(1 - self)


class Role(enum.IntEnum):
    """Which end of the connection the traced process is.  Inferred, hence possibly unknown."""

    UNKNOWN = 0
    CLIENT = 1
    SERVER = 2


class TupleSource(enum.Enum):
    """How a flow's addresses were found; the best method first."""

    SYSCALL = "syscall"
    """The socket of a system call made inside a TLS call of this connection, on the same thread."""
    CIPHERTEXT = "ciphertext"
    """The library worked in memory: the socket that carried a TLS record of this connection."""
    IMPORTED = "imported"
    """Taken over from a file that another program wrote."""
    PLACEHOLDER = "placeholder"
    """Not known: an address of a documentation range stands in its place (RFC 5737)."""


class GapReason(enum.Enum):
    """Why bytes that went through the TLS library are not stored."""

    RING_FULL = "ring-full"
    """The ring buffer had no room: the reader was slower than the target."""
    SNAPLEN = "snaplen"
    """Cut by ``--snaplen``, on request."""
    UNREADABLE = "unreadable"
    """The target's memory could not be read at that moment (the page was not resident)."""
    NOT_IN_MEMORY = "sendfile"
    """The bytes never were in the process's memory (``SSL_sendfile``)."""
    CALL_TOO_LARGE = "call-too-large"
    """One call larger than this kernel's bounded copy loop."""
    NOT_CAPTURED = "not-captured"
    """Imported: it is certain that the bytes passed, but the file that was imported does not hold them."""
    WITHHELD = "withheld"
    """Left out on purpose: scrubbing could not look into them."""
    UNKNOWN = "unknown"
    """The byte ledger jumped and nothing else is known."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection: an address in its textual form, and a TCP or UDP port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Library:
    """A file with TLS functions that were probed."""

    path: str
    build_id: str = ""
    """The GNU build id in hexadecimal, or empty."""
    flavor: str = "openssl"


@dataclass(slots=True, eq=False)
class Process:
    """A process that made TLS calls.  Fields that could not be learned are empty or -1."""

    pid: int
    start_ns: int = 0
    """Start time in nanoseconds after boot; with ``pid`` it names a process for good."""
    comm: str = ""
    ppid: int = -1
    uid: int = -1
    cmdline: tuple[str, ...] = ()
    exe: str = ""
    libraries: tuple[Library, ...] = ()

    @property
    def label(self) -> str:
        """``comm[pid]``: the name of the process's interface in the pcapng file; ``unknown`` when there is nothing to name."""
        return f"{self.comm or '?'}[{self.pid}]" if self.comm or self.pid >= 0 else "unknown"


@dataclass(slots=True, eq=False)
class Flow:
    """One TLS connection as one process saw it.  Grows as more becomes known.

    ``id`` is unique in a capture, and stable: the same sidecar always gives the same ids.
    """

    id: int
    process: Process
    opened_ns: int
    """When tlscap first saw the connection."""
    local: Endpoint | None = None
    remote: Endpoint | None = None
    tuple_source: TupleSource = TupleSource.PLACEHOLDER
    transport: str = "tcp"
    plaintext: bool = False
    """It was not encrypted: taken over from a capture of plaintext."""
    role: Role = Role.UNKNOWN
    sni: str = ""
    alpn: str = ""
    """The protocol that ALPN negotiated (``http/1.1``, ``h2``), or empty when not known."""
    joined_midstream: bool = False
    """No handshake was seen: bytes may have passed before tlscap looked."""
    handshake_start_ns: int = 0
    handshake_end_ns: int = 0
    srtt_us: int = -1
    """The kernel's smoothed TCP round-trip time in microseconds, or -1."""
    closed_ns: int = 0
    ssl: int = 0
    """Address of the library's connection object in the process: evidence, not identity."""


# --- What a flow table says, in order. Every item names its flow and its time. ---


@dataclass(slots=True)
class FlowOpened:
    """A connection was seen for the first time.  Addresses and names may follow."""

    flow: Flow
    time_ns: int


@dataclass(slots=True)
class FlowUpdated:
    """Something about the connection became known: addresses, SNI, ALPN, handshake times."""

    flow: Flow
    time_ns: int


@dataclass(slots=True)
class Data:
    """Bytes of one direction, in order.  ``offset`` counts from the first byte tlscap knows of."""

    flow: Flow
    direction: Direction
    offset: int
    data: bytes
    time_ns: int


@dataclass(slots=True)
class Gap:
    """``length`` bytes of one direction that passed but are not stored."""

    flow: Flow
    direction: Direction
    offset: int
    length: int
    reason: GapReason
    time_ns: int


@dataclass(slots=True)
class HalfClosed:
    """No more bytes will come in this direction (close_notify sent, or end of file read)."""

    flow: Flow
    direction: Direction
    time_ns: int


@dataclass(slots=True)
class FlowClosed:
    """The library freed the connection: nothing follows."""

    flow: Flow
    time_ns: int


Item = FlowOpened | FlowUpdated | Data | Gap | HalfClosed | FlowClosed


@dataclass(slots=True)
class Totals:
    """What the kernel counted and what was stored, over a whole capture."""

    counted: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes the TLS library moved, by `Direction`."""
    stored: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes stored, by `Direction`."""
    gaps: int = 0
    """Number of holes."""
    samples_dropped: int = 0
    """Samples the kernel could not submit because the ring was full."""

    @property
    def lost(self) -> int:
        """Bytes counted but not stored, both directions."""
        return sum(self.counted) - sum(self.stored)

    @property
    def complete(self) -> bool:
        return self.lost == 0 and self.samples_dropped == 0
