"""Reads a pcapng file that `tlscap.synth` wrote, with either framing, back into the items it was made from.

Per flow and direction the bytes and the holes come back as they were; `Data` come in the pieces of the packets.
The true addresses and all else about a flow come from the comment of its SYN, the process from the
interface's description.  A FIN gives `HalfClosed` unless its comment says that nobody said it, the ACK after both
FINs `FlowClosed`.

The file may have been filtered, sorted, merged or saved again by Wireshark's tools as long as whole packets with
their comments remain: packets of connections without a tlscap SYN are passed over.  What the reader holds is
one block, and a small state for each open flow and each interface.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import BinaryIO

from tlscap import tlsnull
from tlscap.errors import CorruptError
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Library,
    Process,
    Role,
    TupleSource,
)
from tlscap.packets import ACK, FIN, SYN, Segment, parse_tcp
from tlscap.pcapng import EnhancedPacket, InterfaceDescription, SectionHeader, read_blocks
from tlscap.synth import DROPPED_COMMENT, PLACEHOLDER_LOCAL, PLACEHOLDER_REMOTE, parse_pairs

_APPLICATION = "tlscap"
_FLOW_COMMENT = "tlscap flow="
_LOST = re.compile(r"tlscap: LOST ([0-9]{1,19}) bytes (before this packet |)\(([a-z-]+)\)")
_MAX_SHOWN = 80

_TUPLE_SOURCES = {source.value: source for source in TupleSource}
_GAP_REASONS = {reason.value: reason for reason in GapReason}
_ROLES = {role.name.lower(): role for role in Role}

_Endpoints = tuple[bytes, int, bytes, int]


def read_items(stream: BinaryIO) -> Iterator[Item]:
    """Yield the items of all flows in the order of the file.

    Raise `CorruptError` when another program wrote the file, or when it does not hold what tlscap writes, and
    `TruncatedError` after the last whole packet when it ends inside one.
    """
    section = _Section(SectionHeader())
    for block in read_blocks(stream):
        match block:
            case EnhancedPacket():
                yield from section.packet(block)
            case InterfaceDescription():
                section.interfaces.append(_process(block))
            case SectionHeader():
                section.end()
                section = _Section(block)
            case _:
                pass
    section.end()


class _Connection:
    """A flow that is open in the file."""

    __slots__ = ("closed", "endpoints", "filler", "flow", "offset", "tls")

    def __init__(self, flow: Flow, endpoints: tuple[_Endpoints, _Endpoints], *, tls: bool) -> None:
        self.flow = flow
        self.endpoints = endpoints
        """As the client's and as the server's packets have them."""
        self.tls = tls
        self.offset = [0, 0]
        """Bytes so far, by direction."""
        self.filler = [0, 0]
        """Zeros still to come in place of lost bytes, by direction."""
        self.closed = [False, False]


class _Section:
    """Reads the packets of one section."""

    def __init__(self, header: SectionHeader) -> None:
        self.interfaces: list[Process] = []
        self._header = header
        self._is_known = header.application.startswith(_APPLICATION)
        """Whether it is certain that tlscap made this."""
        self._connections: dict[_Endpoints, tuple[_Connection, Direction]] = {}
        """Open flows by the endpoints of a packet: both orders lead to the flow, each to its direction."""

    def end(self) -> None:
        """Refuse a section in which nothing was of tlscap."""
        if not self._is_known and self._header != SectionHeader():
            raise self._foreign()

    def packet(self, packet: EnhancedPacket) -> Iterator[Item]:
        """Yield what one packet says."""
        segment = parse_tcp(packet.data)
        if segment is not None and segment.flags & (SYN | ACK) == SYN:
            yield from self._syn(packet, segment)
            return
        if not self._is_known:
            raise self._foreign()
        if packet.original_len > len(packet.data):
            raise CorruptError(f"a packet was cut to {len(packet.data)} bytes by another program: plaintext is missing")
        if segment is None:
            return
        endpoints = segment.source, segment.source_port, segment.destination, segment.destination_port
        connection, direction = self._connections.get(endpoints, (None, Direction.INBOUND))
        if connection is not None:
            yield from self._segment(connection, direction, segment, packet)

    def _syn(self, packet: EnhancedPacket, segment: Segment) -> Iterator[Item]:
        """Start a flow, or forget one whose endpoints another program's connection has now."""
        forward = segment.source, segment.source_port, segment.destination, segment.destination_port
        backward = segment.destination, segment.destination_port, segment.source, segment.source_port
        comment = next((text for text in packet.comments if text.startswith(_FLOW_COMMENT)), "")
        if not comment:
            if not self._is_known:
                raise self._foreign()
            self._connections.pop(forward, None)
            self._connections.pop(backward, None)
            return
        self._is_known = True
        pairs = dict(parse_pairs(comment))
        flow = _flow(pairs, self.interfaces[packet.interface], packet.time_ns)
        connection = _Connection(flow, (forward, backward), tls=pairs.get("framing") != "plain")
        client = Direction.INBOUND if pairs.get("role") == "server" else Direction.OUTBOUND
        self._connections[backward] = connection, client.opposite
        self._connections[forward] = connection, client
        yield FlowOpened(flow, packet.time_ns)

    def _segment(
        self, connection: _Connection, direction: Direction, segment: Segment, packet: EnhancedPacket
    ) -> Iterator[Item]:
        flow, time_ns = connection.flow, packet.time_ns
        for comment in packet.comments:
            if lost := _LOST.match(comment):
                length = int(lost[1])
                yield Gap(
                    flow,
                    direction,
                    connection.offset[direction],
                    length,
                    _GAP_REASONS.get(lost[3], GapReason.UNKNOWN),
                    time_ns,
                )
                connection.offset[direction] += length
                connection.filler[direction] += 0 if lost[2] else length
        data = tlsnull.plaintext(segment.payload) if connection.tls else segment.payload
        if filler := min(connection.filler[direction], len(data)):
            connection.filler[direction] -= filler
            data = data[filler:]
        if data:
            yield Data(flow, direction, connection.offset[direction], data, time_ns)
            connection.offset[direction] += len(data)
        if segment.flags & FIN:
            connection.closed[direction] = True
            if DROPPED_COMMENT not in packet.comments:
                yield HalfClosed(flow, direction, time_ns)
        elif all(connection.closed) and not segment.payload and not packet.comments:
            flow.closed_ns = time_ns
            for endpoints in connection.endpoints:
                self._connections.pop(endpoints, None)
            yield FlowClosed(flow, time_ns)

    def _foreign(self) -> CorruptError:
        application = "".join(char if char.isprintable() else "?" for char in self._header.application[:_MAX_SHOWN])
        return CorruptError(
            f"this is a pcapng file of another program ({application or 'not named'}); tlscap reads only its own",
            hint="take it over first: tlscap import FILE -o NAME.pcapng",
        )


# --- What `tlscap.synth` put into words ---


def _process(block: InterfaceDescription) -> Process:
    """Return the process that an interface's description speaks of."""
    process = Process(pid=-1)
    libraries: list[Library] = []
    for key, value in parse_pairs(block.description):
        match key:
            case "pid":
                process.pid = _number(value, -1)
            case "ppid":
                process.ppid = _number(value, -1)
            case "uid":
                process.uid = _number(value, -1)
            case "start_ns":
                process.start_ns = _number(value, 0)
            case "comm":
                process.comm = value
            case "exe":
                process.exe = value
            case "cmdline":
                process.cmdline = _words(value)
            case "library":
                libraries.append(Library(value))
            case "flavor" if libraries:
                libraries[-1] = dataclasses.replace(libraries[-1], flavor=value)
            case "build_id" if libraries:
                libraries[-1] = dataclasses.replace(libraries[-1], build_id=value)
            case _:
                pass
    process.libraries = tuple(libraries)
    return process


def _flow(pairs: dict[str, str], process: Process, time_ns: int) -> Flow:
    """Return the flow that a SYN's comment speaks of; what was guessed for the packets stays unknown."""
    tuple_source = _TUPLE_SOURCES.get(pairs.get("tuple_source", ""), TupleSource.PLACEHOLDER)
    local, remote = _endpoint(pairs.get("local", "")), _endpoint(pairs.get("remote", ""))
    if tuple_source is TupleSource.PLACEHOLDER:
        local, remote = _unless_in(PLACEHOLDER_LOCAL, local), _unless_in(PLACEHOLDER_REMOTE, remote)
    return Flow(
        id=_number(pairs.get("flow", ""), 0),
        process=process,
        opened_ns=_number(pairs.get("opened_ns", ""), time_ns),
        local=local,
        remote=remote,
        tuple_source=tuple_source,
        transport=pairs.get("transport", "tcp"),
        plaintext="plaintext" in pairs,
        role=Role.UNKNOWN if "role-guessed" in pairs else _ROLES.get(pairs.get("role", ""), Role.UNKNOWN),
        sni=pairs.get("sni", ""),
        alpn="" if "alpn-guessed" in pairs else pairs.get("alpn", ""),
        joined_midstream=pairs.get("joined") == "midstream",
        handshake_start_ns=_number(pairs.get("handshake_start_ns", ""), 0),
        handshake_end_ns=_number(pairs.get("handshake_end_ns", ""), 0),
        srtt_us=_number(pairs.get("srtt_us", ""), -1),
        ssl=_number(pairs.get("ssl", ""), 0),
    )


def _number(text: str, default: int) -> int:
    """Return a decimal or 0x number, `default` when the text is none."""
    try:
        return int(text, 0)
    except ValueError:
        return default


def _words(line: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(line))
    except ValueError:
        return (line,)


def _endpoint(text: str) -> Endpoint | None:
    """Return the endpoint that ``str(endpoint)`` gave, or None."""
    address, colon, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    return Endpoint(address, int(port)) if colon and address and port.isdecimal() and len(port) <= 5 else None


def _unless_in(network: ipaddress.IPv4Network, endpoint: Endpoint | None) -> Endpoint | None:
    """Return the endpoint, or None if it is a placeholder."""
    try:
        is_placeholder = endpoint is not None and ipaddress.ip_address(endpoint.address) in network
    except ValueError:
        is_placeholder = False
    return None if is_placeholder else endpoint
