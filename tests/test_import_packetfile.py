"""Capture files of other programs: every variant of both formats, cut anywhere, damaged anywhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import subprocess
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap import pcapng
from tlscap.errors import CorruptError, FormatError, TruncatedError, UnsupportedVersionError
from tlscap.importing import packetfile
from tlscap.importing.packetfile import Packet, PacketFile

SECOND_NS = 1_000_000_000
START_NS = 1_795_197_600_123_456_789
PACKETS = [
    Packet(1, START_NS, b"a" * 60, 60),
    Packet(1, START_NS + 1000, b"", 1500),
    Packet(1, START_NS + SECOND_NS, b"bcd", 3),
]


class Drip(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self._size = size

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read(self._size)


def read(data: bytes, size: int = 0) -> list[Packet]:
    return list(PacketFile(Drip(data, size) if size else io.BytesIO(data)).packets())


def in_units(packets: Iterable[Packet], unit_ns: int) -> list[Packet]:
    """Return the packets with times in whole units."""
    return [packet._replace(time_ns=packet.time_ns // unit_ns * unit_ns) for packet in packets]


# --- Classic pcap ---


def classic(packets: Iterable[Packet], order: str = "<", unit_ns: int = 1000, link: int = 1) -> bytes:
    magic = 0xA1B2C3D4 if unit_ns == 1000 else 0xA1B23C4D
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
    for packet in packets:
        seconds, rest = divmod(packet.time_ns, SECOND_NS)
        parts.append(struct.pack(order + "IIII", seconds, rest // unit_ns, len(packet.data), packet.original_len))
        parts.append(packet.data)
    return b"".join(parts)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("unit_ns", [1, 1000])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_classic(order: str, unit_ns: int, size: int) -> None:
    """Both byte orders and both resolutions, however the bytes come."""
    assert read(classic(PACKETS, order, unit_ns), size) == in_units(PACKETS, unit_ns)


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_scapy_writes(tmp_path: Path, order: str, nano: bool) -> None:
    """What scapy writes is read."""
    from scapy.utils import RawPcapWriter

    path = tmp_path / "x.pcap"
    with RawPcapWriter(str(path), linktype=113, endianness=order, nano=nano) as writer:
        writer.write_header(None)
        for packet in PACKETS:
            seconds, rest = divmod(packet.time_ns, SECOND_NS)
            writer.write_packet(
                packet.data, sec=seconds, usec=rest if nano else rest // 1000, wirelen=packet.original_len
            )
    assert read(path.read_bytes()) == [
        packet._replace(link_type=113) for packet in in_units(PACKETS, 1 if nano else 1000)
    ]


def test_link_type_with_extras() -> None:
    """The upper half of the link type's field says something else: the length of a frame check sequence."""
    assert read(classic(PACKETS[:1], link=0x54000001))[0].link_type == 1


def test_wrong_original_length() -> None:
    """Some programs write a length on the wire that is shorter than what they captured."""
    assert read(classic([Packet(1, 0, b"abc", 1)])) == [Packet(1, 0, b"abc", 3)]


# --- pcapng ---


class Writer:
    """Makes blocks."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.data = b""

    def pack(self, layout: str, *values: int) -> bytes:
        return struct.pack(self.order + layout, *values)

    def options(self, *options: tuple[int, bytes]) -> bytes:
        parts = [self.pack("HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options]
        return b"".join(parts) + (self.pack("HH", 0, 0) if options else b"")

    def block(self, kind: int, body: bytes) -> Writer:
        body += bytes(-len(body) % 4)
        total = len(body) + 12
        self.data += self.pack("II", kind, total) + body + self.pack("I", total)
        return self

    def section(self, *options: tuple[int, bytes]) -> Writer:
        return self.block(0x0A0D0D0A, self.pack("IHHq", 0x1A2B3C4D, 1, 0, -1) + self.options(*options))

    def interface(self, link: int = 1, snaplen: int = 0, *options: tuple[int, bytes]) -> Writer:
        return self.block(1, self.pack("HHI", link, 0, snaplen) + self.options(*options))

    def enhanced(self, packet: Packet, time: int, interface: int = 0) -> Writer:
        head = self.pack("IIIII", interface, time >> 32, time & 0xFFFFFFFF, len(packet.data), packet.original_len)
        padding = bytes(-len(packet.data) % 4)
        return self.block(6, head + packet.data + padding + self.options((2, self.pack("I", 1)), (1, b"comment")))

    def obsolete(self, packet: Packet, time: int, interface: int = 0) -> Writer:
        head = self.pack(
            "HHIIII", interface, 0xFFFF, time >> 32, time & 0xFFFFFFFF, len(packet.data), packet.original_len
        )
        return self.block(2, head + packet.data)

    def simple(self, packet: Packet) -> Writer:
        return self.block(3, self.pack("I", packet.original_len) + packet.data)

    def secrets(self, text: bytes, kind: int = 0x544C534B) -> Writer:
        return self.block(10, self.pack("II", kind, len(text)) + text)


RESOLUTIONS = {
    "default": (None, 1000),
    "ms": (3, 1_000_000),
    "ns": (9, 1),
    "0.1 ns": (10, 0),
    "s": (0, SECOND_NS),
    "2^-20": (0x80 | 20, 0),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("size", [0, 1, 7])
def test_time_resolutions(order: str, resolution: str, size: int) -> None:
    """Both byte orders and any resolution, decimal and binary; times are exact or rounded down."""
    code, unit_ns = RESOLUTIONS[resolution]
    writer = Writer(order).section().interface(1, 0, *([(9, bytes([code]))] if code is not None else []))
    units = SECOND_NS // unit_ns if unit_ns else 10**10 if resolution == "0.1 ns" else 2**20
    for packet in PACKETS:
        writer.enhanced(packet, packet.time_ns * units // SECOND_NS)
    found = read(writer.data, size)
    assert [packet._replace(time_ns=0) for packet in found] == [packet._replace(time_ns=0) for packet in PACKETS]
    step = max(1, SECOND_NS // units)
    assert all(0 <= one.time_ns - two.time_ns <= step for one, two in zip(PACKETS, found, strict=True))
    if unit_ns:
        assert found == in_units(PACKETS, unit_ns)


def test_all_kinds_of_packets() -> None:
    """Enhanced, simple and obsolete packets of several interfaces, between blocks that say nothing here."""
    writer = Writer().section((4, b"dumpcap")).block(0x0BAD, b"skipped!").interface(1, 5)
    writer.interface(113, 0, (9, b"\x09"), (14, struct.pack("<q", -100)))
    writer.enhanced(PACKETS[0], 2_000_000).simple(Packet(0, 0, b"12345", 9)).block(5, bytes(12))
    writer.obsolete(PACKETS[2], 200 * SECOND_NS, interface=1).simple(Packet(0, 0, b"1234", 4))
    assert read(writer.data) == [
        PACKETS[0]._replace(time_ns=2 * SECOND_NS),
        Packet(1, 2 * SECOND_NS, b"12345", 9),
        PACKETS[2]._replace(link_type=113, time_ns=100 * SECOND_NS),
        Packet(1, 100 * SECOND_NS, b"1234", 4),
    ]


def test_several_sections() -> None:
    """Each section has its own byte order and interfaces."""
    first = Writer("<").section().interface(1).enhanced(PACKETS[0], 1)
    second = Writer(">").section().interface(101).interface(113).enhanced(PACKETS[0], 2, 1)
    assert [packet[:2] for packet in read(first.data + second.data)] == [(1, 1000), (113, 2000)]
    with pytest.raises(CorruptError, match="no interface 1"):
        read(second.data + Writer().section().interface().enhanced(PACKETS[0], 3, 1).data)


def test_secrets_and_application() -> None:
    """Key logs are kept, wherever they stand, secrets of other kinds are not; the program is named."""
    writer = Writer(">").section((4, b"Dumpcap 4.0")).secrets(b"CLIENT_RANDOM 1\n").interface()
    writer.enhanced(PACKETS[0], 1).secrets(b"wireguard", 0x57474B4C).secrets(b"later")
    file = PacketFile(io.BytesIO(writer.data))
    assert next(file.packets()).data == PACKETS[0].data
    assert (file.secrets, file.application, file.is_pcapng) == ([b"CLIENT_RANDOM 1\n"], "Dumpcap 4.0", True)
    file = PacketFile(io.BytesIO(writer.data))
    file.collect_secrets()
    assert file.secrets == [b"CLIENT_RANDOM 1\n", b"later"]
    assert file.position == len(writer.data)


def test_too_many_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can't fill the memory with keys."""
    monkeypatch.setattr(packetfile, "MAX_SECRETS", 1000)
    with pytest.raises(CorruptError, match="more than 1000 bytes of keys"):
        read(Writer().section().secrets(b"x" * 600).secrets(b"x" * 600).data)


def test_same_as_the_other_decoder() -> None:
    """What `tlscap.pcapng` decodes with all its options is the same."""
    writer = Writer(">").section().interface(1, 0, (9, b"\x09"))
    for packet in PACKETS * 3:
        writer.enhanced(packet, packet.time_ns)
    blocks = [
        block for block in pcapng.read_blocks(io.BytesIO(writer.data)) if isinstance(block, pcapng.EnhancedPacket)
    ]
    assert [(block.time_ns, block.data, block.original_len) for block in blocks] == [
        packet[1:] for packet in read(writer.data)
    ]


def test_tshark_reads_the_same(tmp_path: Path) -> None:
    """tshark sees the same packets in these files."""
    writer = Writer(">").section().interface(1, 0, (9, b"\x09")).interface(113)
    for number, packet in enumerate(PACKETS * 2):
        writer.enhanced(packet, packet.time_ns if number % 2 == 0 else packet.time_ns // 1000, number % 2)
    for name, data in (("x.pcapng", writer.data), ("x.pcap", classic(PACKETS * 2, ">", 1))):
        path = tmp_path / name
        path.write_bytes(data)
        done = subprocess.run(
            [
                "tshark",
                "-n",
                "-T",
                "fields",
                "-e",
                "frame.time_epoch",
                "-e",
                "frame.len",
                "-e",
                "frame.cap_len",
                "-r",
                path,
            ],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = [
            f"{packet.time_ns // SECOND_NS}.{packet.time_ns % SECOND_NS:09d}\t{packet.original_len}\t{len(packet.data)}"
            for packet in read(data)
        ]
        assert done.stdout.splitlines() == expected


# --- Damage ---

FILES = {
    "classic": classic(PACKETS),
    "classic, big": classic(PACKETS, ">", 1),
    "pcapng": Writer().section().interface().enhanced(PACKETS[0], 1).simple(PACKETS[2]).secrets(b"abc").data,
    "pcapng, big": Writer(">").section().interface().obsolete(PACKETS[0], 1).enhanced(PACKETS[2], 2).data,
}


@pytest.mark.parametrize("name", FILES)
def test_truncated(name: str) -> None:
    """Cut anywhere, a file gives the packets before the cut, and says where it ends."""
    data = FILES[name]
    for size in range(4, len(data)):
        found: list[Packet] = []
        with contextlib.nullcontext() if size in ends(data) else pytest.raises(TruncatedError) as caught:
            found.extend(PacketFile(io.BytesIO(data[:size])).packets())
        assert caught is None or 0 <= caught.value.offset < size
        complete = max((end for end in ends(data) if end <= size), default=0)
        assert found == (read(data[:complete]) if complete else [])
    assert len(read(data)) >= 2


def ends(data: bytes) -> set[int]:
    """Return where packets or blocks end."""
    if data[:4] != b"\n\r\r\n":
        order = "<" if data[0] == 0xD4 else ">"
        sizes = [24]
        position = 24
        while position < len(data):
            sizes.append(16 + struct.unpack_from(order + "I", data, position + 8)[0])
            position += sizes[-1]
        return set(itertools.accumulate(sizes))
    order = "<" if data[8] == 0x4D else ">"
    found = set()
    position = 0
    while position < len(data):
        position += struct.unpack_from(order + "I", data, position + 4)[0]
        found.add(position)
    return found


CORRUPT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"\xd4\xc3", "too short"),
    "other": (b"PK\x03\x04" * 10, "starts with 504b0304"),
    "packet too long": (classic([])[:24] + struct.pack("<IIII", 0, 0, 1 << 30, 5), "1073741824 bytes long"),
    "block too long": (Writer().section().data + struct.pack("<II", 6, 1 << 30), "1073741824 bytes long"),
    "block too short": (Writer().section().data + struct.pack("<II", 6, 8), "8 bytes long"),
    "odd block": (Writer().section().data + struct.pack("<II", 6, 33), "33 bytes long"),
    "byte order": (b"\n\r\r\n\x1c\0\0\0abcd" + bytes(16), "byte-order magic"),
    "lengths differ": (Writer().section().interface().data[:-4] + b"\0\0\0\1", "two lengths"),
    "no interface": (Writer().section().enhanced(PACKETS[0], 1).data, "no interface 0"),
    "no interface for a simple packet": (Writer().section().simple(PACKETS[0]).data, "no interface 0"),
    "packet does not fit": (
        Writer().section().interface().block(6, struct.pack("<IIIII", 0, 0, 0, 99, 99)).data,
        "fit",
    ),
    "simple packet does not fit": (Writer().section().interface().simple(Packet(1, 0, b"x", 99)).data, "fit"),
    "secrets do not fit": (Writer().section().block(10, struct.pack("<II", 0x544C534B, 99)).data, "do not fit"),
    "option does not fit": (Writer().section().block(1, struct.pack("<HHIHH", 1, 0, 0, 9, 99)).data, "option 9"),
    "short block": (Writer().section().interface().block(6, b"1234").data, "malformed"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt(name: str) -> None:
    """What can't be right is refused in one line that says what and where."""
    data, text = CORRUPT[name]
    with pytest.raises(CorruptError, match=text) as caught:
        read(data)
    assert caught.value.offset >= 0
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IHHiIII", 0xA1B2C3D4, 3, 0, 0, 0, 0, 1),
        Writer().block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)).data,
    ],
)
def test_other_versions(data: bytes) -> None:
    """A version that is not known is refused by name."""
    with pytest.raises(UnsupportedVersionError, match=r"version [23]\.0"):
        read(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_damage(name: str, data: st.DataObject) -> None:
    """Changed bytes raise nothing but `FormatError`."""
    changed = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        read(bytes(changed), data.draw(st.sampled_from([0, 3])))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\n\r\r\n", b"\xd4\xc3\xb2\xa1", FILES["pcapng"]]))
def test_any_bytes(data: bytes, head: bytes) -> None:
    """Any bytes are a file or a `FormatError`."""
    with contextlib.suppress(FormatError):
        read(head + data)


def test_memory() -> None:
    """A file that promises much makes nobody reserve memory for it."""
    promises: list[bytes] = [
        Writer().section().data + struct.pack("<II", 6, 16 * 1024 * 1024),
        classic([])[:24] + struct.pack("<IIII", 0, 0, 16 * 1024 * 1024, 5),
    ]
    tracemalloc.start()
    try:
        for data in promises:
            with pytest.raises(TruncatedError):
                read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_position() -> None:
    """How far the reading is, is known on the way."""
    file: Any = PacketFile(io.BytesIO(FILES["classic"]))
    positions = [file.position for _ in file.packets()]
    assert positions == sorted(ends(FILES["classic"]))[1:]
