"""What a loader does, whichever it is: put the BPF programs into the kernel and attach them.

Two loaders exist.  `libbpf` loads the object built with the package (CO-RE); `bcc` compiles the same
source at start.  Neither looks up names: `sites` has turned functions into file offsets before.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tlscap.errors import LoadError, UnsupportedError, UsageError


class CallKind(enum.Enum):
    """``enum call_kind`` of bpf/tlscap.bpf.c: what a call does with its arguments."""

    READ = 1
    WRITE = 2
    READ_EX = 3
    WRITE_EX = 4
    SENDFILE = 5
    HANDSHAKE = 6
    PEEK = 7
    PEEK_EX = 8
    READ_EARLY = 9
    WRITE_EARLY = 10
    SHUTDOWN = 11
    SERVERNAME = 12
    ALPN = 13
    READ_INNER = 14
    WRITE_INNER = 15
    HANDSHAKE_ZERO = 16
    RECV_FLAGS = 17
    RECV_PACKET = 18
    FLUSH = 19
    INIT = 20
    ALPN_DATUM = 21
    ALPN_TEXT = 22
    BIO_READ = 23
    BIO_WRITE = 24
    GO_READ = 25
    GO_WRITE = 26
    GO_CLIENT = 27
    GO_SERVER = 28
    BIO_WRITEV = 29
    RUSTLS_WRITE = 30
    RUSTLS_READ = 31
    RUSTLS_SEND = 32
    RUSTLS_START = 33
    RUSTLS_END = 34


class LifeKind(enum.Enum):
    """``enum life_kind``: functions of which only the entry matters."""

    CONNECT_STATE = 1
    ACCEPT_STATE = 2
    CTRL = 3
    SET_TRANSPORT = 4
    FREE = 5
    CLEAR = 6
    LIBRARIES = 7
    NAME = 8
    ROLE = 9
    GO_FREE = 10
    CALLBACKS = 11
    CALLBACK_VECTOR = 12


class Filter(enum.IntFlag):
    """``enum filter_flags``: which conditions a process must meet.  All that are set must hold."""

    PID = 1
    UID = 2
    COMM = 4
    CGROUP = 8
    FOLLOW_FORKS = 16


class Counter(enum.IntEnum):
    """``enum counter``: the index in the per-CPU array ``counters``."""

    CALLS = 0
    BYTES_IN = 1
    BYTES_OUT = 2
    SAMPLES = 3
    DROPPED_SAMPLES = 4
    DROPPED_BYTES = 5
    CONNECTIONS = 6
    TABLE_FULL = 7
    UNREADABLE = 8
    UNPROVEN = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPoint:
    """One function of one file, resolved.

    ``file_offset`` is where the instruction lies in the file (libbpf wants that), ``vaddr`` where the file
    is linked to (BCC wants that).  ``kind`` says what the function does; ``count_arg`` is the position,
    from 1, of the argument that points to the byte count or (`LifeKind.NAME`) to a name, or 0; ``length_arg`` that of
    the name's length, 0 when a zero ends it.  ``returns`` are the places in the file of the function's return instructions: where it
    must not have a return probe.  ``stack`` says that arguments and results are on the stack (Go before 1.17),
    ``indirect`` that the first one points to a pointer to the connection.
    """

    path: str
    function: str
    kind: CallKind | LifeKind
    vaddr: int
    file_offset: int
    count_arg: int = 0
    length_arg: int = 0
    returns: tuple[int, ...] = ()
    stack: bool = False
    indirect: bool = False
    identity: int = 0
    """Where in the connection, in bytes, a pointer is that stays the same when it moves in memory (rustls); 0: none is known."""
    unproven: bool = False
    """Found by a signature: its calls are believed once they handled a TLS record."""
    site: str = ""
    """Which instruction was taken and what it costs, for people."""


@dataclass(frozen=True, slots=True)
class ResolvedLibrary:
    """A file with TLS functions, and the attach points found in it."""

    path: str
    build_id: str
    flavor: str
    points: tuple[AttachPoint, ...]
    notes: tuple[str, ...]


def is_data(point: AttachPoint) -> bool:
    """Whether the function moves plaintext: a library without such a point is of no use."""
    return point.kind in {
        CallKind.READ,
        CallKind.WRITE,
        CallKind.READ_EX,
        CallKind.WRITE_EX,
        CallKind.READ_INNER,
        CallKind.WRITE_INNER,
        CallKind.RECV_FLAGS,
        CallKind.GO_READ,
        CallKind.GO_WRITE,
        CallKind.RUSTLS_WRITE,
        CallKind.RUSTLS_READ,
    }


def describe_returns(point: AttachPoint) -> str:
    """How many return instructions have a probe, for people; nothing where a return probe does."""
    count = len(point.returns)
    return f", {count} return{'' if count == 1 else 's'}" if count else ""


def cookie(point: AttachPoint) -> int:
    """What the probe of a function is told with each hit: ``COOKIE_KIND`` and its neighbours in bpf/tlscap.bpf.c."""
    return (
        int(point.kind.value)
        | point.count_arg << 8
        | point.length_arg << 12
        | point.stack << 16
        | point.indirect << 17
        | bool(point.returns) << 18
        | point.unproven << 19
        | point.identity << 32
    )


@dataclass(slots=True, kw_only=True)
class Settings:
    """What the probes are told before they run: ``struct config`` and the sizes of maps."""

    ring_size: int = 64 << 20
    filter: Filter = field(default=Filter(0))
    snaplen: int = (1 << 64) - 1
    wake_always: bool = False
    targets: set[int] = field(default_factory=set)
    uids: set[int] = field(default_factory=set)
    comms: set[str] = field(default_factory=set)
    cgroups: set[int] = field(default_factory=set)

    def pack(self) -> bytes:
        """``struct config`` in native byte order."""
        # The small samples (addresses, names, closes) may use the last sixteenth: they carry the accounting.
        data_limit = self.ring_size - min(max(self.ring_size // 16, 16384), self.ring_size // 2)
        return struct.pack("=IIQQQ", self.filter, self.wake_always, self.snaplen, data_limit, self.ring_size // 8)


class Loader(Protocol):
    """Programs in the kernel.  A context manager: leaving it detaches and frees everything."""

    name: str

    @property
    def follows_one(self) -> bool:
        """Whether `attach_process` works here."""

    @property
    def ring_fd(self) -> int:
        """Descriptor of the ring buffer map."""

    def attach(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        """Put the probes of functions of one file in place, for one process or (``pid`` -1) for all.

        Returns those that could not be attached, and why; they are not half attached.
        """

    def attach_process(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        """The same for functions of any files and one process, until `detach_process`.  Only where `follows_one`."""

    def detach_process(self, pid: int) -> None:
        """Remove what `attach_process` put in place."""

    def detach(self) -> None:
        """Remove every probe; the maps stay readable."""

    def update(self, map_name: str, key: bytes, value: bytes) -> None:
        """Set one element."""

    def delete(self, map_name: str, key: bytes) -> None:
        """Remove one element, if it is there."""

    def items(self, map_name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value of a hash map, as far as it does not change meanwhile."""

    def counters(self) -> Mapping[Counter, int]:
        """The counters, summed over all CPUs."""

    def close(self) -> None:
        """Detach and free."""


_OTHER_NAMES = {
    (CallKind.WRITE_EX, 5): "enter_write_ex2",
    (CallKind.WRITE_INNER, 5): "enter_write_inner5",
    (CallKind.READ_EARLY, 4): "enter_read_early_data",
    (CallKind.WRITE_EARLY, 4): "enter_write_early_data",
}
"""Programs that are not called as what they are for."""


class Probe(NamedTuple):
    """A program on instructions of a file; ``on_return`` where the function's return address is diverted instead."""

    program: str
    offsets: tuple[int, ...]
    on_return: bool = False


def modern_probes(point: AttachPoint) -> list[Probe]:
    """The probes of a function with the programs for Linux 5.17 and newer.

    What runs when it returns comes first: a call entered in between is then simply not known, never left pending.
    """
    here = (point.file_offset,)
    match point.kind:
        case LifeKind.GO_FREE:
            return [Probe("on_go_free", here)]
        case LifeKind():
            return [Probe("on_any", here)]
        case CallKind.BIO_WRITE | CallKind.BIO_WRITEV:
            return [Probe("enter_bio", here)]
        case CallKind.BIO_READ:
            leave = Probe("leave_bio", point.returns) if point.returns else Probe("leave_bio", here, on_return=True)
            return [leave, Probe("enter_bio", here)]
        case CallKind.GO_READ | CallKind.GO_WRITE:
            return [Probe("leave_go_data", point.returns), Probe("enter_go", here)]
        case CallKind.GO_CLIENT | CallKind.GO_SERVER:
            return [Probe("leave_go_handshake", point.returns), Probe("enter_go", here)]
        case CallKind.RUSTLS_WRITE | CallKind.RUSTLS_SEND:
            return [Probe("leave_rustls", point.returns), Probe("enter_rustls", here)]
        case CallKind.RUSTLS_READ | CallKind.RUSTLS_START | CallKind.RUSTLS_END:
            return [Probe("on_rustls", here)]
    if point.returns:
        return [Probe("leave_loop", point.returns), Probe("enter_any", here)]
    return [Probe("leave_loop", here, on_return=True), Probe("enter_any", here)]


NEED_COOKIES = frozenset(
    {
        CallKind.BIO_READ, CallKind.BIO_WRITE, CallKind.BIO_WRITEV,
        CallKind.GO_READ, CallKind.GO_WRITE, CallKind.GO_CLIENT, CallKind.GO_SERVER,
        CallKind.RUSTLS_WRITE, CallKind.RUSTLS_READ, CallKind.RUSTLS_SEND, CallKind.RUSTLS_START, CallKind.RUSTLS_END,
        LifeKind.GO_FREE, LifeKind.CALLBACKS, LifeKind.CALLBACK_VECTOR,
    }
)  # fmt: skip
"""What only the programs for Linux 5.17 and newer can follow."""


def works_bounded(point: AttachPoint) -> bool:
    """Whether the programs for older kernels know what to do with a function; they can't prove what was found by signature."""
    return point.kind not in NEED_COOKIES and not point.returns and not point.unproven


def for_older_kernels(points: Sequence[AttachPoint]) -> list[AttachPoint]:
    """Without what only helps: functions that move data stay, so that it is said when they can't be followed."""
    return [point for point in points if works_bounded(point) or is_data(point)]


def entry_program(kind: CallKind | LifeKind, count_arg: int) -> str:
    """The program for a function's entry: without attach cookies there is one for each kind."""
    if isinstance(kind, LifeKind):
        return f"on_name{count_arg}" if kind is LifeKind.NAME else f"on_{kind.name.lower()}"
    return _OTHER_NAMES.get((kind, count_arg)) or f"enter_{kind.name.lower()}"


def configure(loader: Loader, settings: Settings) -> None:
    """Write the settings into the loaded maps.  Nothing is recorded before: no target matches."""
    one = struct.pack("=I", 1)
    for pid in settings.targets:
        loader.update("targets", struct.pack("=I", pid), one)
    for uid in settings.uids:
        loader.update("match_uid", struct.pack("=I", uid), one)
    for comm in settings.comms:
        loader.update("match_comm", comm.encode()[:15].ljust(16, b"\0"), one)
    for cgroup in settings.cgroups:
        loader.update("match_cgroup", struct.pack("=Q", cgroup), one)
    loader.update("config", struct.pack("=I", 0), settings.pack())


def open_loader(name: str, settings: Settings) -> Loader:
    """Load the programs with the loader of that name.

    ``auto`` takes libbpf and falls back to BCC where libbpf can't load; the error of the first is kept
    when both fail.  Raises `LoadError` or `PrivilegeError`.
    """
    # Imported here: each needs a library that may not be installed.
    if name in ("auto", "libbpf"):
        from tlscap.live.libbpf import LibbpfLoader  # noqa: PLC0415

        try:
            return LibbpfLoader(settings)
        except LoadError as first:
            if name == "libbpf":
                raise
            try:
                return open_loader("bcc", settings)
            except UnsupportedError:
                raise first from None
            except LoadError as second:
                raise LoadError(
                    f"{first}; and the bcc loader: {second}", log=first.log + second.log, hint=first.hint
                ) from first
    if name == "bcc":
        from tlscap.live.bcc import BccLoader  # noqa: PLC0415

        return BccLoader(settings)
    raise UsageError(f"no loader named {name!r}: auto, libbpf or bcc")
