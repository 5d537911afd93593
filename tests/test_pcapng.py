"""pcapng blocks: what is encoded decodes again, and any bytes give blocks or a FormatError."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap import pcapng
from tlscap.errors import CorruptError, FormatError, TruncatedError, UnsupportedVersionError
from tlscap.model import Direction
from tlscap.pcapng import (
    Block,
    EnhancedPacket,
    InterfaceDescription,
    InterfaceStatistics,
    ProcessInformation,
    SectionHeader,
    UnknownBlock,
    read_blocks,
)

NOW_NS = 1_700_000_000_123_456_789

BLOCKS = [
    pcapng.section_header(application="tlscap 1", os="Linux", hardware="x86_64", comments=["one", "zwei"]),
    pcapng.interface_description(name="curl[42]", description="pid=42"),
    pcapng.process_information(pid=42, name="curl"),
    pcapng.enhanced_packet(
        interface=0,
        time_ns=NOW_NS,
        frame=b"frame",
        options=pcapng.packet_options(direction=Direction.OUTBOUND, process=0, comments=["é", "second"]),
    ),
    pcapng.interface_statistics(interface=0, time_ns=NOW_NS, start_ns=1, end_ns=NOW_NS, received=7, dropped=2),
]
FILE = b"".join(BLOCKS)

DECODED: list[Block] = [
    SectionHeader(application="tlscap 1", os="Linux", hardware="x86_64", comments=("one", "zwei")),
    InterfaceDescription(link_type=1, snaplen=262144, name="curl[42]", description="pid=42"),
    ProcessInformation(pid=42, name="curl"),
    EnhancedPacket(
        interface=0,
        time_ns=NOW_NS,
        data=b"frame",
        original_len=5,
        comments=("é", "second"),
        direction=Direction.OUTBOUND,
        process=0,
    ),
    InterfaceStatistics(interface=0, time_ns=NOW_NS, start_ns=1, end_ns=NOW_NS, received=7, dropped=2),
]


def blocks_of(data: bytes) -> list[Block]:
    return list(read_blocks(io.BytesIO(data)))


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    total = 12 + len(body)
    return struct.pack(order + "II", kind, total) + body + struct.pack(order + "I", total)


def section(order: str = "<", major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1), order)


def interface(order: str = "<", options: bytes = b"") -> bytes:
    return block(1, struct.pack(order + "HHI", 1, 0, 0) + options, order)


def packet(units: int, order: str = "<", data: bytes = b"", options: bytes = b"") -> bytes:
    body = struct.pack(order + "IIIII", 0, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
    return block(6, body + data + bytes(-len(data) % 4) + options, order)


def test_every_kind_of_block_decodes_to_what_was_encoded() -> None:
    """All fields that tlscap writes come back."""
    assert blocks_of(FILE) == DECODED


def test_blocks_are_whole_and_aligned() -> None:
    """Each encoder returns one block, a multiple of 4 bytes long."""
    for encoded in BLOCKS:
        assert len(encoded) % 4 == 0
        assert struct.unpack_from("<I", encoded, 4)[0] == len(encoded) == struct.unpack("<I", encoded[-4:])[0]


def test_scapy_reads_the_same_packet(tmp_path: Path) -> None:
    """An independent reader agrees on time, bytes, direction, comments and process."""
    from scapy.utils import PcapNgReader

    path = tmp_path / "one.pcapng"
    path.write_bytes(FILE)
    with PcapNgReader(str(path)) as reader:
        (packet,) = reader
    assert bytes(packet) == b"frame"
    assert packet.time == NOW_NS / Decimal(10**9)
    assert packet.direction == 2
    assert packet.sniffed_on == "curl[42]"
    assert packet.comments == ["é".encode(), b"second"]
    assert packet.process_information == {"proc": {"id": 42, "name": "curl"}}


@given(frame=st.binary(max_size=70), time_ns=st.integers(0, 2**64 - 1), comment=st.text(max_size=20))
def test_any_packet_comes_back(frame: bytes, time_ns: int, comment: str) -> None:
    """Every length of frame is padded right, every time and text is kept."""
    options = pcapng.packet_options(direction=Direction.INBOUND, process=3, comments=[comment])
    encoded = pcapng.enhanced_packet(interface=0, time_ns=time_ns, frame=frame, options=options)
    *_, last = blocks_of(BLOCKS[0] + BLOCKS[1] + encoded)
    assert last == EnhancedPacket(
        interface=0,
        time_ns=time_ns,
        data=frame,
        original_len=len(frame),
        comments=(comment,),
        direction=Direction.INBOUND,
        process=3,
    )


def test_texts_that_are_no_unicode_are_escaped() -> None:
    """A process name with undecodable bytes (surrogates in Python) does not stop the writer."""
    assert blocks_of(BLOCKS[0] + pcapng.interface_description(name="a\udcff", description=""))[1] == (
        InterfaceDescription(link_type=1, snaplen=262144, name="a\\udcff")
    )


def test_a_text_longer_than_an_option_is_cut() -> None:
    """Option lengths have 16 bits."""
    (header,) = blocks_of(pcapng.section_header(application="tlscap", comments=["x" * 70000]))
    assert isinstance(header, SectionHeader)
    assert header.comments == ("x" * 65535,)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "units", "time_ns"),
    [
        ([], 1_700_000_000_000_001, 1_700_000_000_000_001_000),
        ([(9, b"\x09")], NOW_NS, NOW_NS),
        ([(9, b"\x00")], 1_700_000_000, 1_700_000_000_000_000_000),
        ([(9, b"\x03")], 1_700_000_000_001, 1_700_000_000_001_000_000),
        ([(9, b"\x8a")], 1_024, 1_000_000_000),
        ([(9, b"\xff")], 2**63, 2**63 * 10**9 // 2**127),
        ([(9, b"\x06"), (14, -5)], 7_000_000, 2_000_000_000),
    ],
)
def test_any_byte_order_and_time_resolution(
    order: str, options: list[tuple[int, bytes | int]], units: int, time_ns: int
) -> None:
    """if_tsresol is a power of ten or of two, microseconds when absent; if_tsoffset counts seconds."""
    encoded = b""
    for code, value in options:
        raw = struct.pack(order + "q", value) if isinstance(value, int) else value
        encoded += struct.pack(order + "HH", code, len(raw)) + raw + bytes(-len(raw) % 4)
    decoded = blocks_of(section(order) + interface(order, encoded) + packet(units, order, b"abc"))
    assert decoded[2] == EnhancedPacket(interface=0, time_ns=time_ns, data=b"abc", original_len=3)


def test_sections_may_follow_each_other_in_different_byte_orders() -> None:
    """A new section has its own interfaces and byte order."""
    decoded = blocks_of(section(">") + interface(">") + FILE)
    assert decoded[2:] == DECODED
    with pytest.raises(CorruptError, match="no interface 0"):
        blocks_of(FILE + section() + packet(1))


def test_unknown_blocks_are_passed_on() -> None:
    """A simple packet block or a private one is not an error."""
    assert blocks_of(section() + block(3, b"abcd"))[1] == UnknownBlock(kind=3, body=b"abcd")


def test_a_file_cut_anywhere_gives_its_whole_blocks_first() -> None:
    """Then TruncatedError says where the last whole block ended; a cut between blocks is a whole file."""
    ends = [sum(map(len, BLOCKS[:n])) for n in range(len(BLOCKS) + 1)]
    for cut in range(1, len(FILE)):
        whole = sum(end <= cut for end in ends) - 1
        reader = read_blocks(io.BytesIO(FILE[:cut]))
        assert list(itertools.islice(reader, whole)) == DECODED[:whole]
        if cut in ends:
            assert not list(reader)
        else:
            with pytest.raises(TruncatedError) as caught:
                next(reader)
            assert caught.value.offset == ends[whole]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pcapng file: it is empty"),
        (b"GET / HTTP/1.1\r\n", "not a pcapng file: it starts with 47455420"),
        (b"x", "not a pcapng file: it starts with 78"),
        (bytes.fromhex("d4c3b2a1020004000000"), "not a pcapng file: it is a classic pcap file"),
        (bytes.fromhex("28b52ffd0000000000"), "not a pcapng file: it is compressed with zstd"),
        (bytes.fromhex("1f8b0800000000"), "not a pcapng file: it is compressed with gzip"),
        (b"\x0a\x0d\x0d\x0a" + bytes(20), "not a pcapng file: the byte-order magic is 00000000"),
    ],
)
def test_foreign_files_are_named(data: bytes, message: str) -> None:
    """What is no pcapng file is refused in one line that says what it looks like."""
    with pytest.raises(CorruptError) as caught:
        blocks_of(data)
    assert str(caught.value) == message


@pytest.mark.parametrize("total", [0, 8, 13, 2**24 + 4, 2**32 - 4])
def test_impossible_block_lengths_are_corrupt(total: int) -> None:
    """Too short, not aligned, or larger than the bound."""
    with pytest.raises(CorruptError, match=f"byte 28 says it is {total} bytes long"):
        blocks_of(section() + struct.pack("<II", 6, total) + bytes(64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (section() + block(6, b"")[:-4] + b"\x10\0\0\0", "the two lengths"),
        (section() + interface() + block(6, bytes(16)), "malformed"),
        (section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 5, 5) + b"abcd"), "5 bytes does not fit"),
        (section() + interface(options=struct.pack("<HH", 2, 5) + b"abcd"), "option 2 of 5 bytes"),
        (section() + interface(options=b"\x01"), "says it is"),
        (section() + interface(options=struct.pack("<HHI", 9, 4, 0)), "malformed"),
        (section() + block(5, bytes(12)), "no interface 0"),
        (section() + interface() + block(5, bytes(12) + struct.pack("<HHI", 2, 4, 0)), "malformed"),
        (block(0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "malformed"),
    ],
)
def test_contradictions_inside_a_block_are_corrupt(data: bytes, message: str) -> None:
    """Lengths that disagree, options that do not fit, and numbers of interfaces that do not exist."""
    with pytest.raises(CorruptError, match=message):
        blocks_of(data)


def test_another_major_version_is_refused() -> None:
    """Version 2 may have another layout."""
    with pytest.raises(UnsupportedVersionError, match=r"version 2\.0"):
        blocks_of(section(major=2))


class Drip(io.BytesIO):
    """A pipe that gives at most three bytes at a time and notes how much was asked for."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        self.most = max(self.most, size)
        return super().read(min(size, 3))


def test_a_pipe_may_give_a_few_bytes_at_a_time() -> None:
    """Short reads are not the end of the file."""
    assert list(read_blocks(Drip(FILE))) == DECODED


def test_no_read_is_larger_than_the_bound() -> None:
    """A length of 16 MiB is believed, one more is not, so a hostile file cannot make memory grow."""
    stream = Drip(section() + struct.pack("<II", 6, pcapng.MAX_BLOCK) + bytes(64))
    with pytest.raises(TruncatedError):
        list(read_blocks(stream))
    assert stream.most <= pcapng.MAX_BLOCK


def mutated() -> Iterator[st.SearchStrategy[bytes]]:
    yield st.binary(max_size=200)
    yield st.binary(max_size=200).map(lambda rest: FILE + rest)
    yield st.tuples(st.integers(0, len(FILE)), st.binary(max_size=8), st.integers(0, 8)).map(
        lambda edit: FILE[: edit[0]] + edit[1] + FILE[edit[0] + edit[2] :]
    )
    yield st.tuples(st.sampled_from([1, 3, 5, 6, 0x0A0D0D0A, 0x80000001]), st.binary(max_size=60)).map(
        lambda made: section() + interface() + block(made[0], made[1] + bytes(-len(made[1]) % 4))
    )


@given(data=st.one_of(*mutated()))
def test_any_bytes_are_blocks_or_a_format_error(data: bytes) -> None:
    """Never another exception."""
    with contextlib.suppress(FormatError):
        blocks_of(data)
