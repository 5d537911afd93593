"""pcapng blocks: encoders for the kinds tlscap writes, and a bounded decoder for any program's files.

The layout is that of draft-ietf-opsawg-pcapng; fields have the draft's names where they appear.  Encoders
write little-endian and whole blocks, so that what a live pipe carries can be cut only by the reader's end.
`read_blocks` takes both byte orders and any time resolution.  It never holds more than one block,
at most `MAX_BLOCK` bytes, and raises nothing but `FormatError` for malformed input.

Two private parts are Apple's: block 0x80000001 names a process, and packet option 0x8001 refers to it.
Wireshark 4.6+ and scapy show them, everything else skips them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeVar

from tlscap.errors import CorruptError, TruncatedError, UnsupportedVersionError
from tlscap.model import Direction

SNAPLEN: Final = 262144
"""One for all interfaces, and not 0: tcpdump refuses files whose interfaces differ, and shows 0 as 0 bytes."""

LINKTYPE_ETHERNET: Final = 1

MAX_BLOCK: Final = 16 * 1024 * 1024
"""Largest block the decoder accepts; Wireshark's limit is the same."""

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_INTERFACE_STATISTICS = 5
_ENHANCED_PACKET = 6
_PROCESS_INFORMATION = 0x80000001

_OPT_END = 0
_OPT_COMMENT = 1
_SHB_HARDWARE, _SHB_OS, _SHB_USERAPPL = 2, 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_TSOFFSET = 2, 3, 9, 14
_EPB_FLAGS = 2
_EPB_PROCESS = 0x8001
_ISB_STARTTIME, _ISB_ENDTIME, _ISB_IFRECV, _ISB_IFDROP = 2, 3, 4, 5
_PROCESS_NAME = 2

_NANOSECONDS = 9  # if_tsresol: a power of ten
_MICROSECONDS = 6  # what a missing if_tsresol means
_FLAGS_DIRECTION = {Direction.INBOUND: 1, Direction.OUTBOUND: 2}
_DIRECTION_OF_FLAGS = {flags: direction for direction, flags in _FLAGS_DIRECTION.items()}

_SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_MIN_BLOCK = 12
_MAX_OPTION = 0xFFFF

_FOREIGN = (
    (b"\xa1\xb2\xc3\xd4", "a classic pcap file"),
    (b"\xd4\xc3\xb2\xa1", "a classic pcap file"),
    (b"\xa1\xb2\x3c\x4d", "a classic pcap file"),
    (b"\x4d\x3c\xb2\xa1", "a classic pcap file"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x1f\x8b", "compressed with gzip"),
)


_Default = TypeVar("_Default", int, None)


class _Layout:
    """The fixed parts of all blocks in one byte order."""

    def __init__(self, order: str) -> None:
        self.u8 = struct.Struct("B")
        self.u32 = struct.Struct(order + "I")
        self.u64 = struct.Struct(order + "Q")
        self.i64 = struct.Struct(order + "q")
        self.block = struct.Struct(order + "II")  # type, total length
        self.option = struct.Struct(order + "HH")  # code, length
        self.section = struct.Struct(order + "IHHq")  # byte-order magic, major, minor, section length
        self.interface = struct.Struct(order + "HHI")  # link type, reserved, snaplen
        self.statistics = struct.Struct(order + "III")  # interface, timestamp high and low
        self.packet = struct.Struct(order + "IIIII")  # interface, timestamp high and low, captured, original length
        self.timestamp = struct.Struct(order + "II")  # high, low


_LITTLE = _Layout("<")
_BIG = _Layout(">")
_LAYOUTS = {layout.u32.pack(_BYTE_ORDER_MAGIC): layout for layout in (_LITTLE, _BIG)}

_PACKET_HEADER = struct.Struct("<IIIIIII")  # type, total length, then the fields of _Layout.packet
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


# --- Encoding ---


def section_header(*, application: str, os: str = "", hardware: str = "", comments: Iterable[str] = ()) -> bytes:
    """Return the block that starts a file; empty texts are left out."""
    options = _texts(_OPT_COMMENT, comments)
    for code, text in ((_SHB_HARDWARE, hardware), (_SHB_OS, os), (_SHB_USERAPPL, application)):
        options += _texts(code, [text] if text else [])
    return _block(_SECTION_HEADER, _LITTLE.section.pack(_BYTE_ORDER_MAGIC, 1, 0, -1), options)


def interface_description(*, name: str, description: str) -> bytes:
    """Return an Ethernet interface with nanosecond timestamps."""
    options = _texts(_IF_NAME, [name]) + _texts(_IF_DESCRIPTION, [description])
    options += _option(_IF_TSRESOL, bytes([_NANOSECONDS]))
    return _block(_INTERFACE_DESCRIPTION, _LITTLE.interface.pack(LINKTYPE_ETHERNET, 0, SNAPLEN), options)


def process_information(*, pid: int, name: str) -> bytes:
    """Return Apple's block about a process; packets refer to it by its index in the section."""
    return _block(_PROCESS_INFORMATION, _LITTLE.u32.pack(pid & 0xFFFFFFFF), _texts(_PROCESS_NAME, [name]))


def packet_options(*, direction: Direction, process: int, comments: Iterable[str] = ()) -> bytes:
    """Return the options of a packet, encoded: the same for most packets of a flow, so made once."""
    options = _texts(_OPT_COMMENT, comments) + _option(_EPB_FLAGS, _LITTLE.u32.pack(_FLAGS_DIRECTION[direction]))
    return options + _option(_EPB_PROCESS, _LITTLE.u32.pack(process)) + _LITTLE.option.pack(_OPT_END, 0)


def enhanced_packet(*, interface: int, time_ns: int, frame: bytes, options: bytes = b"") -> bytes:
    """Return a packet; `options` come from `packet_options`."""
    captured_len = len(frame)
    padding = _PADDING[captured_len & 3]
    total = 32 + captured_len + len(padding) + len(options)
    header = _PACKET_HEADER.pack(
        _ENHANCED_PACKET, total, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, captured_len, captured_len
    )
    return b"".join((header, frame, padding, options, _LITTLE.u32.pack(total)))


def interface_statistics(
    *, interface: int, time_ns: int, start_ns: int, end_ns: int, received: int, dropped: int
) -> bytes:
    """Return an interface's counts of packets, for the end of a file."""
    options = b"".join(
        (
            _option(_ISB_STARTTIME, _LITTLE.timestamp.pack(start_ns >> 32, start_ns & 0xFFFFFFFF)),
            _option(_ISB_ENDTIME, _LITTLE.timestamp.pack(end_ns >> 32, end_ns & 0xFFFFFFFF)),
            _option(_ISB_IFRECV, _LITTLE.u64.pack(received)),
            _option(_ISB_IFDROP, _LITTLE.u64.pack(dropped)),
        )
    )
    body = _LITTLE.statistics.pack(interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
    return _block(_INTERFACE_STATISTICS, body, options)


def _block(kind: int, body: bytes, options: bytes = b"") -> bytes:
    """Return a block; `body` is a multiple of 4 bytes long, `options` come without their end mark."""
    if options:
        body += options + _LITTLE.option.pack(_OPT_END, 0)
    total = _MIN_BLOCK + len(body)
    return _LITTLE.block.pack(kind, total) + body + _LITTLE.u32.pack(total)


def _option(code: int, value: bytes) -> bytes:
    return _LITTLE.option.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def _texts(code: int, texts: Iterable[str]) -> bytes:
    r"""Return text options.  Undecodable bytes, which Python holds as surrogates, become ``\udcXX``."""
    return b"".join(_option(code, text.encode("utf-8", "backslashreplace")[:_MAX_OPTION]) for text in texts)


# --- Decoding ---


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionHeader:
    """Starts a section: interfaces are counted anew."""

    application: str = ""
    os: str = ""
    hardware: str = ""
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceDescription:
    """Describes the next interface of the section; the first is number 0."""

    link_type: int
    snaplen: int
    name: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInformation:
    """Apple's block about a process; the first of the section is number 0."""

    pid: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhancedPacket:
    """A packet.  ``original_len`` is larger than ``data`` where the packet was cut."""

    interface: int
    time_ns: int
    data: bytes
    original_len: int
    comments: tuple[str, ...] = ()
    direction: Direction | None = None
    process: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatistics:
    """Counts of an interface; None where the writer did not say."""

    interface: int
    time_ns: int
    start_ns: int | None = None
    end_ns: int | None = None
    received: int | None = None
    dropped: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownBlock:
    """A block of a kind that tlscap has no use for."""

    kind: int
    body: bytes


Block = SectionHeader | InterfaceDescription | ProcessInformation | EnhancedPacket | InterfaceStatistics | UnknownBlock


def read_blocks(stream: BinaryIO) -> Iterator[Block]:
    """Yield the blocks of a file, in order.

    Raise `TruncatedError` after the last complete block when the file ends inside one, and `CorruptError`
    when it is no pcapng file or a length in it cannot be right.  No read asks for more than `MAX_BLOCK` bytes.
    """
    section = _Section(_LITTLE)
    offset = 0
    while head := _read(stream, 8):
        if offset == 0 and not _SECTION_MAGIC.startswith(head[:4]):
            raise CorruptError(f"not a pcapng file: {_looks_like(head)}", offset=0)
        if head.startswith(_SECTION_MAGIC) and len(head) == 8:
            magic = _read(stream, 4)
            if len(magic) < 4:
                raise _ends_inside(offset)
            if magic not in _LAYOUTS:
                raise CorruptError(f"not a pcapng file: the byte-order magic is {magic.hex()}", offset=offset)
            section = _Section(_LAYOUTS[magic])
            head += magic
        if len(head) < 8:
            raise _ends_inside(offset)
        kind, total = section.layout.block.unpack_from(head)
        if total % 4 or not max(_MIN_BLOCK, len(head) + 4) <= total <= MAX_BLOCK:
            raise CorruptError(f"the block at byte {offset} says it is {total} bytes long", offset=offset)
        rest = _read(stream, total - len(head))
        if len(rest) < total - len(head):
            raise _ends_inside(offset)
        if section.layout.u32.unpack_from(rest, len(rest) - 4)[0] != total:
            raise CorruptError(f"the two lengths of the block at byte {offset} differ", offset=offset)
        try:
            block = section.decode(kind, head[8:] + rest[:-4])
        except (struct.error, _Malformed) as error:
            raise CorruptError(f"the block at byte {offset} is malformed: {error}", offset=offset) from None
        yield block
        offset += total
    if offset == 0:
        raise CorruptError("not a pcapng file: it is empty", offset=0)


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    """What is wrong inside a block."""


class _Section:
    """Decodes the blocks of one section."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self._clocks: list[tuple[int, int]] = []
        """Of each interface: units per second, and seconds to add."""

    def decode(self, kind: int, body: bytes) -> Block:
        decoder = _DECODERS.get(kind)
        return UnknownBlock(kind=kind, body=body) if decoder is None else decoder(self, body)

    def _header(self, body: bytes) -> SectionHeader:
        _, major, minor, _ = self.layout.section.unpack_from(body)
        if major != 1:
            raise UnsupportedVersionError(f"pcapng version {major}.{minor} is not known", offset=0)
        options = _Options(self.layout, body, self.layout.section.size)
        return SectionHeader(
            application=options.text(_SHB_USERAPPL),
            os=options.text(_SHB_OS),
            hardware=options.text(_SHB_HARDWARE),
            comments=options.texts(_OPT_COMMENT),
        )

    def _interface(self, body: bytes) -> InterfaceDescription:
        link_type, _, snaplen = self.layout.interface.unpack_from(body)
        options = _Options(self.layout, body, self.layout.interface.size)
        resolution = options.number(_IF_TSRESOL, self.layout.u8, _MICROSECONDS)
        units = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        self._clocks.append((units, options.number(_IF_TSOFFSET, self.layout.i64, 0)))
        return InterfaceDescription(
            link_type=link_type,
            snaplen=snaplen,
            name=options.text(_IF_NAME),
            description=options.text(_IF_DESCRIPTION),
        )

    def _process(self, body: bytes) -> ProcessInformation:
        (pid,) = self.layout.u32.unpack_from(body)
        return ProcessInformation(pid=pid, name=_Options(self.layout, body, 4).text(_PROCESS_NAME))

    def _packet(self, body: bytes) -> EnhancedPacket:
        interface, high, low, captured_len, original_len = self.layout.packet.unpack_from(body)
        start = self.layout.packet.size
        if captured_len > len(body) - start:
            raise _Malformed(f"a packet of {captured_len} bytes does not fit")
        data = body[start : start + captured_len]
        options = _Options(self.layout, body, start + captured_len + len(_PADDING[captured_len & 3]))
        flags = options.number(_EPB_FLAGS, self.layout.u32, 0)
        return EnhancedPacket(
            interface=interface,
            time_ns=self._time_ns(interface, high, low),
            data=data,
            original_len=original_len,
            comments=options.texts(_OPT_COMMENT),
            direction=_DIRECTION_OF_FLAGS.get(flags & 3),
            process=options.number(_EPB_PROCESS, self.layout.u32, None),
        )

    def _statistics(self, body: bytes) -> InterfaceStatistics:
        interface, high, low = self.layout.statistics.unpack_from(body)
        options = _Options(self.layout, body, self.layout.statistics.size)

        def time_ns(code: int) -> int | None:
            value = options.get(code)
            return None if value is None else self._time_ns(interface, *self.layout.timestamp.unpack(value))

        return InterfaceStatistics(
            interface=interface,
            time_ns=self._time_ns(interface, high, low),
            start_ns=time_ns(_ISB_STARTTIME),
            end_ns=time_ns(_ISB_ENDTIME),
            received=options.number(_ISB_IFRECV, self.layout.u64, None),
            dropped=options.number(_ISB_IFDROP, self.layout.u64, None),
        )

    def _time_ns(self, interface: int, high: int, low: int) -> int:
        if interface >= len(self._clocks):
            raise _Malformed(f"there is no interface {interface}")
        units, offset_s = self._clocks[interface]
        return (high << 32 | low) * 1_000_000_000 // units + offset_s * 1_000_000_000


_DECODERS: Final[dict[int, Callable[[_Section, bytes], Block]]] = {
    _ENHANCED_PACKET: _Section._packet,
    _INTERFACE_DESCRIPTION: _Section._interface,
    _INTERFACE_STATISTICS: _Section._statistics,
    _PROCESS_INFORMATION: _Section._process,
    _SECTION_HEADER: _Section._header,
}


class _Options:
    """The options of a block, by code."""

    __slots__ = ("_values",)

    def __init__(self, layout: _Layout, body: bytes, start: int) -> None:
        self._values: dict[int, list[bytes]] = {}
        while start < len(body):  # the end mark may be missing where the block ends anyway
            code, length = layout.option.unpack_from(body, start)
            if code == _OPT_END:
                break
            start += 4
            if length > len(body) - start:
                raise _Malformed(f"option {code} of {length} bytes does not fit")
            self._values.setdefault(code, []).append(body[start : start + length])
            start += length + len(_PADDING[length & 3])

    def get(self, code: int) -> bytes | None:
        values = self._values.get(code)
        return values[0] if values else None

    def texts(self, code: int) -> tuple[str, ...]:
        values = self._values.get(code)
        return tuple(value.decode("utf-8", "replace") for value in values) if values else ()

    def text(self, code: int) -> str:
        value = self.get(code)
        return "" if value is None else value.decode("utf-8", "replace")

    def number(self, code: int, layout: struct.Struct, default: _Default) -> int | _Default:
        value = self.get(code)
        if value is None:
            return default
        number: int = layout.unpack(value)[0]
        return number


def _read(stream: BinaryIO, size: int) -> bytes:
    """Return `size` bytes, fewer only at the end: a pipe may give less at a time."""
    data = stream.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    size -= len(data)
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _ends_inside(offset: int) -> TruncatedError:
    return TruncatedError(f"the file ends inside the block at byte {offset}", offset=offset)


def _looks_like(head: bytes) -> str:
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return f"it is {what}"
    return f"it starts with {head[:4].hex()}"
