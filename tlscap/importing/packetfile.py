"""Reads the packets of any program's capture file: classic pcap and pcapng.

Both byte orders, micro- and nanoseconds.  Of pcapng: any number of sections and interfaces, any time resolution and
offset, enhanced, simple and obsolete packet blocks, and TLS key logs in Decryption Secrets Blocks; other blocks are
skipped.  The layouts are those of draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng, whose names the fields have.

`tlscap.pcapng` decodes blocks into objects with all their options.  Here a packet is a tuple and its options are not
looked at: captures have millions of them.  What is held is one block (at most `pcapng.MAX_BLOCK`) or one read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

from tlscap.errors import CorruptError, TruncatedError, UnsupportedVersionError
from tlscap.pcapng import MAX_BLOCK

READ: Final = 1 << 20
"""How many bytes are asked for at a time."""

MAX_SECRETS: Final = 64 * 1024 * 1024
"""Most bytes of keys that are taken from a file."""

# Magic number of a classic file, as it stands in the file: byte order, and nanoseconds in a unit of its fractions.
_CLASSIC: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_CLASSIC_HEADER_LEN = 24
_RECORD_HEADER_LEN = 16

_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_OBSOLETE_PACKET = 2
_SIMPLE_PACKET = 3
_ENHANCED_PACKET = 6
_DECRYPTION_SECRETS = 10
_TLS_KEY_LOG = 0x544C534B  # "TLSK": the secrets are lines of an SSLKEYLOGFILE
_OPT_END = 0
_SHB_USERAPPL = 4
_IF_TSRESOL, _IF_TSOFFSET = 9, 14
_MICROSECONDS = 6  # what a missing if_tsresol means
_SECOND_NS = 1_000_000_000


class Packet(NamedTuple):
    """A packet as it was captured."""

    link_type: int
    """What it begins with: a LINKTYPE of tcpdump.org."""
    time_ns: int
    data: bytes
    original_len: int
    """Its length on the wire; more than ``len(data)`` where it was cut."""


def is_packet_file(head: bytes) -> bool:
    """Tell from a file's first four bytes whether a `PacketFile` can read it."""
    return head[:4] in _CLASSIC or head[:4] == _PCAPNG_MAGIC


class PacketFile:
    """A capture file that is being read.  ``head`` is what was already taken from the stream."""

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        """Raise `CorruptError` when the file is no capture, `TruncatedError` when it ends inside its header."""
        self._source = _Source(stream, head)
        self.secrets: list[bytes] = []
        """The TLS key logs that have come so far."""
        self.application = ""
        """The program that wrote the file, by its own account; known with the first packet."""
        if not self._source.has(4):
            raise CorruptError("the file is empty" if not self._source.buffer else "the file is too short", offset=0)
        magic = self._source.buffer[:4]
        self.is_pcapng = magic == _PCAPNG_MAGIC
        if not is_packet_file(magic):
            raise CorruptError(f"neither a pcap nor a pcapng file: it starts with {magic.hex()}", offset=0)

    @property
    def position(self) -> int:
        """How many bytes of the file lie behind."""
        return self._source.offset + self._source.position

    def packets(self) -> Iterator[Packet]:
        """Yield the packets in the order of the file.

        Raise `TruncatedError` after the last whole packet when the file ends inside one, and `CorruptError` where a
        length in it can't be right.
        """
        return self._pcapng(wanted=True) if self.is_pcapng else self._classic()

    def collect_secrets(self) -> None:
        """Read to the end of the file, for ``secrets`` only.  The errors are those of `packets`."""
        if self.is_pcapng:
            for _ in self._pcapng(wanted=False):
                pass

    # --- Classic pcap ---

    def _classic(self) -> Iterator[Packet]:
        source = self._source
        order, unit_ns = _CLASSIC[source.buffer[:4]]
        if not source.has(_CLASSIC_HEADER_LEN):
            raise TruncatedError("the file ends inside its header", offset=0)
        major, minor = struct.unpack_from(order + "HH", source.buffer, 4)
        if major != 2:
            raise UnsupportedVersionError(f"pcap version {major}.{minor} is not known", offset=4)
        # The upper bits say whether a frame check sequence follows each packet; IP's own length leaves it out.
        link_type = struct.unpack_from(order + "I", source.buffer, 20)[0] & 0xFFFF
        source.position = _CLASSIC_HEADER_LEN
        record = struct.Struct(order + "IIII")  # seconds, fraction, captured length, original length
        while source.has(_RECORD_HEADER_LEN):
            start = source.position + _RECORD_HEADER_LEN
            seconds, fraction, captured, original = record.unpack_from(source.buffer, source.position)
            if captured > MAX_BLOCK:
                raise CorruptError(
                    f"the packet at byte {self.position} says it is {captured} bytes long", offset=self.position
                )
            if not source.has(_RECORD_HEADER_LEN + captured):
                break
            start = source.position + _RECORD_HEADER_LEN  # has() may have moved the buffer
            source.position = start + captured
            yield Packet(
                link_type,
                seconds * _SECOND_NS + fraction * unit_ns,
                source.buffer[start : start + captured],
                max(original, captured),
            )
        if source.has(1):
            raise TruncatedError(f"the file ends inside the packet at byte {self.position}", offset=self.position)

    # --- pcapng ---

    def _pcapng(self, *, wanted: bool) -> Iterator[Packet]:
        """Yield the packets, if they are wanted, and take in everything else on the way."""
        source = self._source
        section = _Section("<")
        while source.has(8):
            if source.buffer.startswith(_PCAPNG_MAGIC, source.position):
                if not source.has(12):
                    break
                magic = source.buffer[source.position + 8 : source.position + 12]
                if magic not in _BYTE_ORDERS:
                    raise CorruptError(
                        f"the byte-order magic at byte {self.position + 8} is {magic.hex()}", offset=self.position
                    )
                section = _Section(_BYTE_ORDERS[magic])
            kind, total = section.block.unpack_from(source.buffer, source.position)
            if total % 4 or not 12 <= total <= MAX_BLOCK:
                raise CorruptError(
                    f"the block at byte {self.position} says it is {total} bytes long", offset=self.position
                )
            if not source.has(total):
                break
            start, end = source.position + 8, source.position + total - 4
            if section.u32.unpack_from(source.buffer, end)[0] != total:
                raise CorruptError(f"the two lengths of the block at byte {self.position} differ", offset=self.position)
            try:
                decode = section.packets.get(kind)
                if decode is None:
                    self._other(section, kind, source.buffer[start:end])
                elif wanted:
                    packet = decode(source.buffer, start, end)
                    source.position += total
                    yield packet
                    continue
            except (struct.error, _Malformed) as error:
                raise CorruptError(
                    f"the block at byte {self.position} is malformed: {error}", offset=self.position
                ) from None
            source.position += total
        if source.has(1):
            raise TruncatedError(f"the file ends inside the block at byte {self.position}", offset=self.position)

    def _other(self, section: _Section, kind: int, body: bytes) -> None:
        """Take in a block that is no packet."""
        if kind == _SECTION_HEADER:
            major, minor = section.version.unpack_from(body, 4)
            if major != 1:
                raise UnsupportedVersionError(f"pcapng version {major}.{minor} is not known", offset=self.position)
            application = section.options(body, 16).get(_SHB_USERAPPL, b"")
            self.application = self.application or application.decode("utf-8", "replace")
        elif kind == _INTERFACE_DESCRIPTION:
            section.add_interface(body)
        elif kind == _DECRYPTION_SECRETS:
            secrets_type, length = section.secrets.unpack_from(body)
            if length > len(body) - section.secrets.size:
                raise _Malformed(f"{length} bytes of keys do not fit")
            if secrets_type == _TLS_KEY_LOG:
                self.secrets.append(body[section.secrets.size : section.secrets.size + length])
                if sum(map(len, self.secrets)) > MAX_SECRETS:
                    raise CorruptError(f"the file holds more than {MAX_SECRETS} bytes of keys", offset=self.position)


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    """What is wrong inside a block."""


class _Section:
    """The byte order and the interfaces of a section."""

    def __init__(self, order: str) -> None:
        self.u32 = struct.Struct(order + "I")
        self.block = struct.Struct(order + "II")  # type, total length
        self.version = struct.Struct(order + "HH")  # major, minor
        self.secrets = struct.Struct(order + "II")  # type, length
        self._i64 = struct.Struct(order + "q")
        self._option = struct.Struct(order + "HH")  # code, length
        self._interface = struct.Struct(order + "HHI")  # link type, reserved, snaplen
        self._enhanced = struct.Struct(order + "IIIII")  # interface, timestamp high and low, captured, original length
        self._obsolete = struct.Struct(order + "HHIIII")  # interface, drops, and the same
        self._interfaces: list[tuple[int, int, int, int]] = []
        """Of each: link type, units of time per second, nanoseconds to add, snaplen."""
        self._latest_ns = 0
        self.packets: dict[int, Callable[[bytes, int, int], Packet]] = {
            _ENHANCED_PACKET: self._enhanced_packet,
            _SIMPLE_PACKET: self._simple_packet,
            _OBSOLETE_PACKET: self._obsolete_packet,
        }
        """How to decode each kind of packet: a buffer, where the block's body starts in it and where it ends."""

    def add_interface(self, body: bytes) -> None:
        link_type, _, snaplen = self._interface.unpack_from(body)
        options = self.options(body, self._interface.size)
        resolution = options.get(_IF_TSRESOL, bytes([_MICROSECONDS]))[0]
        offset = options.get(_IF_TSOFFSET)
        self._interfaces.append(
            (
                link_type,
                2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution,
                self._i64.unpack(offset)[0] * _SECOND_NS if offset else 0,
                snaplen,
            )
        )

    def options(self, body: bytes, start: int) -> dict[int, bytes]:
        """Return the first option of each code; empty ones are left out."""
        found: dict[int, bytes] = {}
        while start + 4 <= len(body):
            code, length = self._option.unpack_from(body, start)
            start += 4
            if code == _OPT_END:
                break
            if length > len(body) - start:
                raise _Malformed(f"option {code} of {length} bytes does not fit")
            if length:
                found.setdefault(code, body[start : start + length])
            start += length + -length % 4
        return found

    def _enhanced_packet(self, buffer: bytes, start: int, end: int) -> Packet:
        interface, high, low, captured, original = self._enhanced.unpack_from(buffer, start)
        return self._packet(interface, high << 32 | low, captured, original, buffer, start + 20, end)

    def _obsolete_packet(self, buffer: bytes, start: int, end: int) -> Packet:
        interface, _, high, low, captured, original = self._obsolete.unpack_from(buffer, start)
        return self._packet(interface, high << 32 | low, captured, original, buffer, start + 20, end)

    def _packet(
        self, interface: int, time: int, captured: int, original: int, buffer: bytes, start: int, end: int
    ) -> Packet:
        if interface >= len(self._interfaces):
            raise _Malformed(f"there is no interface {interface}")
        if captured > end - start:
            raise _Malformed(f"a packet of {captured} bytes does not fit")
        link_type, units, offset_ns, _ = self._interfaces[interface]
        time_ns = self._latest_ns = max(0, time * _SECOND_NS // units + offset_ns)
        return Packet(link_type, time_ns, buffer[start : start + captured], max(original, captured))

    def _simple_packet(self, buffer: bytes, start: int, end: int) -> Packet:
        """Return a packet of the first interface.  It has no time: it gets that of the packet before."""
        if not self._interfaces:
            raise _Malformed("there is no interface 0")
        (original,) = self.u32.unpack_from(buffer, start)
        link_type, _, _, snaplen = self._interfaces[0]
        captured = min(original, snaplen or original)
        if captured > end - start - 4:
            raise _Malformed(f"a packet of {captured} bytes does not fit")
        return Packet(link_type, self._latest_ns, buffer[start + 4 : start + 4 + captured], original)


class _Source:
    """A stream as a buffer with a position in it."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self.buffer = head
        self.position = 0
        """Where in the buffer the next item begins."""
        self.offset = 0
        """Where in the file the buffer begins."""
        # read1 returns what is there: a live capture in a pipe is not held back until a read is full.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)

    def has(self, count: int) -> bool:
        """Tell whether `count` more bytes can be had, and have them in the buffer."""
        if len(self.buffer) - self.position >= count:
            return True
        parts = [self.buffer[self.position :]]
        self.offset += self.position
        self.position = 0
        size = len(parts[0])
        while size < count and (data := self._read(max(READ, count - size))):
            parts.append(data)
            size += len(data)
        self.buffer = b"".join(parts)
        return size >= count
