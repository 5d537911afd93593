"""Turns the items of flows into a pcapng file: TCP connections that never were, around bytes that were.

What is true in the result: payload, addresses, ports, times, directions, process, and what is said about loss.
What is made up: Ethernet, sequence numbers, the TCP handshake and closing, and (``tls-null``) the TLS framing.
`tlscap.pcapng_reader` reads it back.

Layout, in the order of the file:

- A section header that names tlscap and says that the framing is synthetic.
- For each process, right before its first packet: an interface named ``comm[pid]`` whose description holds
  `describe_process`, and Apple's process block of the same index.
- For each flow: SYN, SYN-ACK, ACK (and the hellos), then one packet per piece of data, then FINs and an ACK.
  No other pure ACKs: Wireshark needs none.  The SYN carries the flow's only comment, `describe_flow`.
- At the end: per interface the number of packets and of holes.

A flow's handshake is written when its first byte, hole or end comes, with the times at which it happened.
Written earlier, on the first news of the flow, it could not name the SNI and ALPN that the hellos need and the
comment is for.  So a file is ordered within a flow, but handshakes stand later than their time says.

Two live flows may have the same two endpoints: both ends of a connection inside one host, or TLS in TLS on one
socket.  Wireshark would take them for one connection, so all but the first are written with other forms of
their addresses (`_alias`); the comment always holds the true ones.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import re
import shlex
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Final, TypeAlias, assert_never

from tlscap import pcapng, tlsnull
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Process,
    Role,
    TupleSource,
)
from tlscap.packets import ACK, FIN, MSS, PSH, SYN, SYN_OPTIONS, TcpPath

FRAMINGS: Final = ("auto", "tls-null", "plain")

SYNTHETIC_COMMENT: Final = (
    "Ethernet, IP, TCP and TLS framing is synthetic; the application data was captured by tlscap in the process"
)

REWRITTEN_COMMENT: Final = (
    "Ethernet, IP, TCP and TLS framing is synthetic; the application data was written by tlscap: {origin}"
)

DROPPED_COMMENT: Final = "tlscap: dropped without close_notify"
"""On the FIN of a side that never said that it was done."""

PLACEHOLDER_LOCAL: Final = ipaddress.IPv4Network("192.0.2.0/24")
"""Where the process's own address is not known, it is one of these (RFC 5737)."""

PLACEHOLDER_REMOTE: Final = ipaddress.IPv4Network("198.51.100.0/24")
"""Where the peer's address is not known, it is one of these."""

_PLACEHOLDER_SERVER_PORT = 443
_PLACEHOLDER_CLIENT_PORT = 49152  # the first of IANA's 16384 dynamic ports

_MAX_HOLE = 1 << 30
"""Longest jump of a sequence number: half the number space and more would look like a step back."""

_MAX_TIME_NS = (1 << 64) - 1
_SEQ_MASK = 0xFFFFFFFF

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_DOCUMENTATION = b"\x20\x01\x0d\xb8"  # 2001:db8::/32, RFC 3849

_MAX_VIEWS = 1 << 16
"""So many open flows with the same endpoints can be kept apart."""

_MAX_CMDLINE = 1000
_MAX_PAIRS = 60_000  # bytes; an option holds 65535

_BARE_VALUE = re.compile(r"[A-Za-z0-9_./:@%+,\[\]-]+")
_PAIR = re.compile(r'([a-z0-9_-]+)=("(?:[^"\\]|\\.)*"|\S*)')

_Pair: TypeAlias = frozenset[tuple[bytes, int]]


class Synthesizer:
    """Writes one pcapng section: `start`, then `feed` each item, then `finish`.

    Holds a small state for each open flow and a few numbers for each process, never payload.
    """

    def __init__(
        self,
        framing: str = "auto",
        *,
        tool: str,
        os: str = "",
        hardware: str = "",
        comment: str = "",
        origin: str = "",
    ) -> None:
        """Choose the framing: ``tls-null``, ``plain``, or ``auto`` by the server's port (`tlsnull.PLAIN_PORTS`).

        ``tool`` names the writer and must start with "tlscap", which is what the reader goes by.  ``origin`` says what was
        done to the data, when it is not what a process said, byte for byte.
        """
        if framing not in FRAMINGS:
            raise ValueError(f"framing is one of {', '.join(FRAMINGS)}, not {framing!r}")
        if not tool.startswith("tlscap"):
            raise ValueError("the tool's name must start with 'tlscap'")
        self._framing = framing
        first = REWRITTEN_COMMENT.format(origin=origin) if origin else SYNTHETIC_COMMENT
        self._header = pcapng.section_header(
            application=tool, os=os, hardware=hardware, comments=[first, *([comment] if comment else [])]
        )
        self._interfaces: dict[tuple[int, int], _Interface] = {}
        self._connections: dict[int, _Connection] = {}
        self._live: set[_Pair] = set()
        """The endpoints, as written, of all open flows."""

    def start(self) -> bytes:
        """Return the section header: the first bytes of the file."""
        return self._header

    def feed(self, item: Item) -> Iterator[bytes]:
        """Yield the blocks that `item` adds to the file, each one whole.

        The iterator must be exhausted before the next call.  It is lazy because a hole of many gigabytes,
        zero filled, is many blocks.
        """
        if isinstance(item, (FlowOpened, FlowUpdated)):
            return
        connection = self._connections.get(item.flow.id)
        if connection is None:
            connection = yield from self._open(item)
        match item:
            case Data():
                yield from connection.data(item.direction, item.data, item.time_ns)
            case Gap():
                yield from connection.gap(item.direction, item.length, item.reason, item.time_ns)
            case HalfClosed():
                yield from connection.fin(item.direction, item.time_ns)
            case FlowClosed():
                del self._connections[item.flow.id]
                self._live.discard(connection.endpoints)
                yield from connection.close(item.time_ns)
            case _:
                assert_never(item)

    def finish(self, time_ns: int, dropped: Mapping[tuple[int, int], int] | None = None) -> bytes:
        """Return the interface statistics: the last bytes of the file.

        ``isb_ifrecv`` is the number of packets; ``isb_ifdrop`` the number of holes, those by ``--snaplen`` left
        out, plus what `dropped` says for the process's ``(pid, start_ns)``.
        """
        return b"".join(
            pcapng.interface_statistics(
                interface=interface.index,
                time_ns=_clamp(time_ns),
                start_ns=interface.first_ns,
                end_ns=_clamp(max(time_ns, interface.first_ns)),
                received=interface.packets,
                dropped=interface.holes + (dropped or {}).get(key, 0),
            )
            for key, interface in self._interfaces.items()
        )

    def _open(self, item: Data | Gap | HalfClosed | FlowClosed) -> Generator[bytes, None, _Connection]:
        """Yield the blocks that come before a flow's first item, and return its new connection."""
        flow = item.flow
        start_ns = min(flow.handshake_start_ns or flow.opened_ns, item.time_ns)
        end_ns = min(max(flow.handshake_end_ns, start_ns), item.time_ns)
        key = flow.process.pid, flow.process.start_ns
        interface = self._interfaces.get(key)
        if interface is None:
            interface = self._interfaces[key] = _Interface(len(self._interfaces), _clamp(start_ns))
            yield pcapng.interface_description(name=flow.process.label, description=describe_process(flow.process))
            yield pcapng.process_information(pid=flow.process.pid, name=flow.process.comm)
        role = _guess_role(item) if flow.role is Role.UNKNOWN else flow.role
        local, remote = _endpoints(flow, role)
        alpn = flow.alpn or (tlsnull.sniff_alpn(item.data) if isinstance(item, Data) else "")
        framing = self._framing
        if framing == "auto":
            server_port = (remote if role is Role.CLIENT else local).port
            framing = "plain" if server_port in tlsnull.PLAIN_PORTS else "tls-null"
        view, source, destination = self._choose_view(local, remote)
        paths = (
            TcpPath(destination, remote.port, source, local.port),
            TcpPath(source, local.port, destination, remote.port),
        )
        connection = _Connection(
            flow, interface, role, paths, _pair(source, local, destination, remote), tls=framing == "tls-null"
        )
        self._live.add(connection.endpoints)
        self._connections[flow.id] = connection
        comment = describe_flow(flow, local=local, remote=remote, role=role, alpn=alpn, framing=framing, view=view)
        yield from connection.open(comment, start_ns, end_ns, flow.sni, alpn)
        return connection

    def _choose_view(self, local: Endpoint, remote: Endpoint) -> tuple[int, bytes, bytes]:
        """Return the first forms of two endpoints that no open flow has, with their number."""
        source, destination = _pack(local.address), _pack(remote.address)
        if len(source) != len(destination):
            source, destination = _widen(source), _widen(destination)
        for view in range(_MAX_VIEWS):
            forms = _alias(source, view), _alias(destination, view)
            if _pair(forms[0], local, forms[1], remote) not in self._live:
                break
        return view, *forms


class _Interface:
    """What is counted for one process."""

    __slots__ = ("first_ns", "holes", "index", "packets")

    def __init__(self, index: int, first_ns: int) -> None:
        self.index = index
        self.first_ns = first_ns
        self.packets = 0
        self.holes = 0


class _Half:
    """One direction of a connection."""

    __slots__ = ("closed", "options", "path", "seq")

    def __init__(self, path: TcpPath, seq: int, options: bytes) -> None:
        self.path = path
        self.seq = seq
        self.options = options
        """The encoded packet options of a packet without comment."""
        self.closed = False


class _Connection:
    """The synthetic connection of one flow."""

    __slots__ = ("_client", "_halves", "_interface", "_last_fin", "_seed", "_time_ns", "_tls", "endpoints")

    def __init__(
        self,
        flow: Flow,
        interface: _Interface,
        role: Role,
        paths: tuple[TcpPath, TcpPath],
        endpoints: _Pair,
        *,
        tls: bool,
    ) -> None:
        """Prepare the packets of `flow`; ``paths`` are by `Direction`."""
        identity = f"{flow.id} {flow.opened_ns} {flow.process.pid} {flow.process.start_ns}"
        self._seed = hashlib.sha256(identity.encode()).digest()
        self._interface = interface
        self._client = Direction.INBOUND if role is Role.SERVER else Direction.OUTBOUND
        self._tls = tls
        self._time_ns = 0
        self._last_fin = Direction.OUTBOUND
        self.endpoints = endpoints
        # The first sequence numbers are the flow's own, so that reused endpoints become a new stream in Wireshark.
        self._halves = tuple(
            _Half(
                paths[direction],
                int.from_bytes(self._seed[4 * direction : 4 * direction + 4], "big"),
                pcapng.packet_options(direction=direction, process=interface.index),
            )
            for direction in Direction
        )

    def open(self, comment: str, start_ns: int, end_ns: int, sni: str, alpn: str) -> Iterator[bytes]:
        """Yield the TCP handshake and the client's hello at `start_ns`, the rest of the hellos at `end_ns`."""
        client, server = self._client, self._client.opposite
        yield self._packet(client, SYN, start_ns, options=SYN_OPTIONS, comment=comment)
        yield self._packet(server, SYN | ACK, start_ns, options=SYN_OPTIONS)
        yield self._packet(client, ACK, start_ns)
        if self._tls:
            yield self._packet(client, PSH | ACK, start_ns, tlsnull.client_hello(self._seed, sni=sni, alpn=alpn))
            yield self._packet(server, PSH | ACK, end_ns, tlsnull.server_flight(self._seed, alpn=alpn))
            yield self._packet(client, PSH | ACK, end_ns, tlsnull.CHANGE_CIPHER_SPEC)

    def data(self, direction: Direction, data: bytes, time_ns: int) -> Iterator[bytes]:
        """Yield the packets of a piece of data: in each one record, or with plain framing as much as fits."""
        most = tlsnull.MAX_RECORD if self._tls else MSS
        for start in range(0, len(data), most):
            chunk = data[start : start + most]
            payload = tlsnull.application_record(chunk) if self._tls else chunk
            yield self._packet(direction, PSH | ACK, time_ns, payload)

    def gap(self, direction: Direction, length: int, reason: GapReason, time_ns: int) -> Iterator[bytes]:
        """Yield what marks a hole.

        Plain: the sequence numbers jump, and an empty packet behind the hole says so.  TLS has no
        holes, or Wireshark would look for the next record inside the next one: zeros of the same size take the
        place, behind a jump by one that makes Wireshark report the loss.
        """
        if length <= 0:
            return
        self._interface.holes += reason is not GapReason.SNAPLEN
        half = self._halves[direction]
        if not self._tls:
            half.seq = (half.seq + min(length, _MAX_HOLE)) & _SEQ_MASK
            yield self._packet(direction, ACK, time_ns, comment=describe_gap(length, reason, filled=False))
            return
        half.seq = (half.seq + 1) & _SEQ_MASK
        comment = describe_gap(length, reason, filled=True)
        zeros = tlsnull.application_record(bytes(tlsnull.MAX_RECORD))
        while length > 0:
            payload = zeros if length >= tlsnull.MAX_RECORD else tlsnull.application_record(bytes(length))
            yield self._packet(direction, PSH | ACK, time_ns, payload, comment=comment)
            length -= tlsnull.MAX_RECORD
            comment = ""

    def fin(self, direction: Direction, time_ns: int, comment: str = "") -> Iterator[bytes]:
        """Yield this side's FIN, unless it was sent."""
        half = self._halves[direction]
        if not half.closed:
            half.closed = True
            self._last_fin = direction
            yield self._packet(direction, FIN | ACK, time_ns, comment=comment)

    def close(self, time_ns: int) -> Iterator[bytes]:
        """Yield the FINs that are missing, the process's own first, and the acknowledgement of the last."""
        yield from self.fin(Direction.OUTBOUND, time_ns, DROPPED_COMMENT)
        yield from self.fin(Direction.INBOUND, time_ns, DROPPED_COMMENT)
        yield self._packet(self._last_fin.opposite, ACK, time_ns)

    def _packet(
        self,
        direction: Direction,
        flags: int,
        time_ns: int,
        payload: bytes = b"",
        *,
        options: bytes = b"",
        comment: str = "",
    ) -> bytes:
        """Return the next packet of one side and advance its sequence number.  Time never goes back in a flow."""
        half = self._halves[direction]
        frame = half.path.packet(
            half.seq, self._halves[1 - direction].seq if flags & ACK else 0, flags, payload, options
        )
        half.seq = (half.seq + len(payload) + (flags & (SYN | FIN) != 0)) & _SEQ_MASK
        self._time_ns = max(self._time_ns, _clamp(time_ns))
        interface = self._interface
        interface.packets += 1
        return pcapng.enhanced_packet(
            interface=interface.index,
            time_ns=self._time_ns,
            frame=frame,
            options=pcapng.packet_options(direction=direction, process=interface.index, comments=[comment])
            if comment
            else half.options,
        )


# --- Comments: for people, and for `tlscap.pcapng_reader` ---


def describe_process(process: Process) -> str:
    """Return the interface description: key=value pairs, one ``library`` with its details for each library."""
    pairs: list[tuple[str, object]] = [
        ("pid", process.pid),
        ("ppid", process.ppid if process.ppid >= 0 else ""),
        ("uid", process.uid if process.uid >= 0 else ""),
        ("comm", process.comm),
        ("cmdline", _shell_line(process.cmdline)),
        ("exe", process.exe),
        ("start_ns", process.start_ns or ""),
    ]
    for library in process.libraries:
        if library.path:
            pairs += ("library", library.path), ("flavor", library.flavor), ("build_id", library.build_id)
    return format_pairs(pairs)


def describe_flow(
    flow: Flow, *, local: Endpoint, remote: Endpoint, role: Role, alpn: str, framing: str, view: int = 0
) -> str:
    """Return the comment of a flow's SYN: "tlscap" and key=value pairs.

    What was guessed for the packets, because the flow does not know, is marked with a ``...-guessed`` pair.
    """
    pairs: list[tuple[str, object]] = [
        ("flow", flow.id),
        ("pid", flow.process.pid),
        ("comm", flow.process.comm),
        ("local", local),
        ("remote", remote),
        ("tuple_source", (flow.tuple_source if _is_known(flow) else TupleSource.PLACEHOLDER).value),
        ("role", role.name.lower()),
        ("role-guessed", "" if flow.role is role else 1),
        ("sni", flow.sni),
        ("alpn", alpn),
        ("alpn-guessed", "" if flow.alpn == alpn else 1),
        ("joined", "midstream" if flow.joined_midstream else ""),
        ("transport", flow.transport if flow.transport != "tcp" else ""),
        ("plaintext", 1 if flow.plaintext else ""),
        ("srtt_us", flow.srtt_us if flow.srtt_us >= 0 else ""),
        ("framing", framing),
        ("view", ("", "second-end")[view] if view < 2 else f"end-{view + 1}"),
        ("opened_ns", flow.opened_ns),
        ("handshake_start_ns", flow.handshake_start_ns or ""),
        ("handshake_end_ns", flow.handshake_end_ns or ""),
        ("ssl", hex(flow.ssl) if flow.ssl else ""),
    ]
    return "tlscap " + format_pairs(pairs)


def describe_gap(length: int, reason: GapReason, *, filled: bool) -> str:
    """Return the comment of the packet that marks a hole."""
    if filled:
        return f"tlscap: LOST {length} bytes ({reason.value}), zero filled"
    return f"tlscap: LOST {length} bytes before this packet ({reason.value})"


def format_pairs(pairs: Iterable[tuple[str, object]]) -> str:
    """Return ``key=value key="other value"``; values are JSON strings where they need quotes, empty ones left out.

    Pairs that would make the text longer than an option are left out.
    """
    words = []
    size = 0
    for key, value in pairs:
        text = str(value)
        if not text:
            continue
        word = f"{key}={text if _BARE_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)}"
        size += len(word.encode("utf-8", "backslashreplace")) + 1
        if size > _MAX_PAIRS:
            break
        words.append(word)
    return " ".join(words)


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """Return the pairs in a text that `format_pairs` made; words that are no pairs are passed over."""
    return [(key, _unquote(value)) for key, value in _PAIR.findall(text)]


def _unquote(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value
    return value


def _shell_line(words: tuple[str, ...]) -> str:
    """Return a command line as a shell would take it, cut after a whole word with "..." in place of the rest."""
    line: list[str] = []
    room = _MAX_CMDLINE
    for word in words:
        quoted = shlex.quote(word)
        room -= len(quoted) + 1
        if room < 0:
            line.append("...")
            break
        line.append(quoted)
    return " ".join(line)


# --- Addresses and roles ---


def _guess_role(item: Data | Gap | HalfClosed | FlowClosed) -> Role:
    """Return CLIENT or SERVER: who sends requests is the client, else who has the lower port is the server."""
    flow = item.flow
    sender = tlsnull.sniff_sender(item.data) if isinstance(item, Data) else Role.UNKNOWN
    if isinstance(item, Data) and sender is not Role.UNKNOWN:
        return Role.CLIENT if (sender is Role.CLIENT) == (item.direction is Direction.OUTBOUND) else Role.SERVER
    if flow.local is not None and flow.remote is not None and flow.local.port < flow.remote.port:
        return Role.SERVER
    return Role.CLIENT


def _pair(source: bytes, local: Endpoint, destination: bytes, remote: Endpoint) -> _Pair:
    """Return what Wireshark knows a connection by: its two endpoints, in no order."""
    return frozenset(((source, local.port), (destination, remote.port)))


def _is_known(flow: Flow) -> bool:
    return _is_usable(flow.local) and _is_usable(flow.remote)


def _is_usable(endpoint: Endpoint | None) -> bool:
    return endpoint is not None and _pack(endpoint.address) != b"" and 0 <= endpoint.port <= 0xFFFF


def _endpoints(flow: Flow, role: Role) -> tuple[Endpoint, Endpoint]:
    """Return the local and remote endpoint, with placeholders for what is not known."""
    number = int.from_bytes(hashlib.sha256(b"%d" % flow.id).digest()[:8], "big")
    client_port = _PLACEHOLDER_CLIENT_PORT + number % 16384
    host = 1 + number // 16384 % 254
    is_client = role is Role.CLIENT
    local = Endpoint(str(PLACEHOLDER_LOCAL[host]), client_port if is_client else _PLACEHOLDER_SERVER_PORT)
    remote = Endpoint(str(PLACEHOLDER_REMOTE[host]), _PLACEHOLDER_SERVER_PORT if is_client else client_port)
    return (
        _normal(flow.local) if flow.local is not None and _is_usable(flow.local) else local,
        _normal(flow.remote) if flow.remote is not None and _is_usable(flow.remote) else remote,
    )


def _normal(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with an IPv4-mapped IPv6 address (a dual-stack socket's) as IPv4."""
    address = _pack(endpoint.address)
    if len(address) == 4 and ":" in endpoint.address:
        return Endpoint(str(ipaddress.IPv4Address(address)), endpoint.port)
    return endpoint


@functools.lru_cache(maxsize=1024)
def _pack(address: str) -> bytes:
    """Return an address in network form, IPv4-mapped ones as IPv4, or b"" when it is none."""
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        return b""
    return packed.removeprefix(_MAPPED) if len(packed) == 16 else packed


def _widen(address: bytes) -> bytes:
    return address if len(address) == 16 else _MAPPED + address


def _alias(address: bytes, view: int) -> bytes:
    """Return the form in which the n-th live flow with the same endpoints is written.

    The second one of an IPv4 connection is written as IPv4-mapped IPv6, ::ffff:a.b.c.d: to Wireshark another
    address, to people the same.  There is nothing like it for IPv6, or for a third: those get the documentation
    prefix 2001:db8:N::/48 around the last 80 bits.
    """
    if view == 0:
        return address
    if view == 1 and len(address) == 4:
        return _widen(address)
    return _DOCUMENTATION + (view & 0xFFFF).to_bytes(2, "big") + _widen(address)[6:]


def _clamp(time_ns: int) -> int:
    """Return a time that fits a packet's 64 bits."""
    return min(max(time_ns, 0), _MAX_TIME_NS)
