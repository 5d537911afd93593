"""The sidecar's frames: written and read back, cut, damaged, foreign and hostile; the zstd tool is the oracle."""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tlscap.errors import CorruptError, FormatError, TruncatedError, UnsupportedVersionError
from tlscap.sidecar import MAX_FRAME, SidecarReader, SidecarWriter, identity, is_sidecar, seek_index, stored_frame

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
FRAMES = (b"first record" * 40, b"x", bytes(range(256)) * 3)
RAW, RLE, LAST = 0, 1, 1


def sidecar(frames: Iterable[bytes] = FRAMES, *, finished: bool = True) -> bytes:
    """Return a file of these frames, with its index when it is finished."""
    stream = io.BytesIO()
    writer = SidecarWriter(stream)
    for frame in frames:
        writer.write(frame)
    assert writer.size == stream.tell()
    if finished:
        writer.close()
    return stream.getvalue()


def ends(frames: Iterable[bytes] = FRAMES) -> list[int]:
    """Return where the identity and each frame end in the file."""
    stream = io.BytesIO()
    writer = SidecarWriter(stream)
    found = [writer.size]
    for frame in frames:
        writer.write(frame)
        found.append(writer.size)
    return found


def read(raw: bytes) -> tuple[list[bytes], FormatError | None]:
    """Return the frames of a file, and the error that comes behind them, if one does."""
    frames: list[bytes] = []
    error: FormatError | None = None
    try:
        frames.extend(SidecarReader(io.BytesIO(raw)).frames())
    except FormatError as caught:
        error = caught
    assert error is None or 0 <= error.offset <= len(raw)
    return frames, error


def skippable(body: bytes, number: int = 0, size: int | None = None) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(body) if size is None else size) + body


def handmade(claimed: int, blocks: Iterable[bytes], *, window: int = 7) -> bytes:
    """Return a frame without checksum whose header claims an unpacked size; the window is 1 KiB << ``window``."""
    return ZSTD_MAGIC + bytes([2 << 6, window << 3]) + struct.pack("<I", claimed) + b"".join(blocks)


def block(kind: int, size: int, body: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + body


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
def test_round_trip(frames: list[bytes]) -> None:
    """What is written frame by frame is read frame by frame."""
    raw = sidecar(frames)
    assert read(raw) == (frames, None)
    assert is_sidecar(bytes(raw[:24]))
    assert raw.startswith(identity())


def test_identity() -> None:
    """The first 24 bytes are as docs/format.md has them."""
    assert identity() == struct.pack("<II", 0x184D2A50, 16) + b"tlscap\0\x01" + bytes(8)


def test_large_frame() -> None:
    """A frame of several megabytes, of many blocks, comes back whole."""
    frame = bytes(range(251)) * 40_000
    assert read(sidecar([frame, b"behind"])) == ([frame, b"behind"], None)


def test_short_writes() -> None:
    """A sink may take fewer bytes than it is given."""

    class Reluctant:
        def __init__(self) -> None:
            self.taken = bytearray()

        def write(self, data: memoryview, /) -> int | None:
            if len(self.taken) % 3 == 0:
                self.taken += data[:1]
                return 1
            part = data[:7]
            self.taken += part
            return len(part)

    sink = Reluctant()
    writer = SidecarWriter(sink)
    for frame in FRAMES:
        writer.write(frame)
    writer.close()
    assert bytes(sink.taken) == sidecar()


def test_failing_write() -> None:
    """When the disk is full the error reaches the caller, and size stays at the last whole frame."""

    class Full:
        room = 100

        def write(self, data: memoryview, /) -> int | None:
            if not self.room:
                raise OSError(28, "No space left on device")
            taken = min(self.room, len(data))
            self.room -= taken
            return taken

    writer = SidecarWriter(Full())
    writer.write(b"small")
    size = writer.size
    with pytest.raises(OSError, match="No space"):
        writer.write(bytes(range(256)))
    assert writer.size == size < 100


def test_short_reads() -> None:
    """A stream may give fewer bytes than are asked for."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 1, 5) if self.tell() >= len(identity()) else size)

    assert list(SidecarReader(Slow(sidecar())).frames()) == list(FRAMES)


# --- Cut, damaged, foreign ---


def test_cut_at_every_byte() -> None:
    """Wherever a file is cut, every frame before is read, and then `TruncatedError` says where the last one ended."""
    whole, borders = sidecar(), ends()
    for size in range(len(whole)):
        frames, error = [], None
        try:
            reader = SidecarReader(io.BytesIO(whole[:size]))
            for frame in reader.frames():
                frames.append(frame)
                assert reader.position == borders[len(frames)]
        except TruncatedError as caught:
            error = caught
        complete = [end for end in borders if end <= size]
        assert error is not None, size
        assert error.offset == (complete[-1] if complete else 0)
        assert frames == list(FRAMES[: max(len(complete) - 1, 0)])


@pytest.mark.parametrize("raw", [b"", identity()[:1], identity()[:-1]])
def test_empty_or_too_short(raw: bytes) -> None:
    """A file that ends inside the identity is cut, not foreign."""
    with pytest.raises(TruncatedError) as caught:
        SidecarReader(io.BytesIO(raw))
    assert caught.value.offset == 0


def test_unfinished() -> None:
    """A file without index has all its frames, and says at its end that it was not finished."""
    frames, error = read(sidecar(finished=False))
    assert frames == list(FRAMES)
    assert isinstance(error, TruncatedError)
    assert error.offset == ends()[-1]


@pytest.mark.parametrize("bit", [1 << number for number in range(8)])
def test_flip_every_byte(bit: int) -> None:
    """A changed bit anywhere is an error or changes nothing: what comes before it is read, and never a wrong frame."""
    whole, borders = sidecar(), ends()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= bit
        frames, error = read(bytes(damaged))
        assert error is None or isinstance(error, CorruptError | TruncatedError | UnsupportedVersionError), at
        before = sum(1 for end in borders[1:] if end <= at)
        assert at < len(identity()) or frames[:before] == list(FRAMES[:before])
        assert frames == list(FRAMES[: len(frames)])
        assert error is not None or frames == list(FRAMES), f"the damage at {at} was not noticed"


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    """Any bytes behind an identity, and any bytes at all, are frames or a `FormatError`."""
    read(identity() + raw)
    read(raw)
    read(identity() + ZSTD_MAGIC + raw)


@given(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=4), st.integers(0, 400))
def test_damage_behind_a_frame(seed: int, noise: bytes, at: int) -> None:
    """Bytes overwritten anywhere behind the first frame leave that frame readable."""
    damaged = bytearray(sidecar())
    at = min(ends()[1] + at, len(damaged) - 1)
    damaged[at : at + len(noise)] = noise[: len(damaged) - at]
    frames, _ = read(bytes(damaged))
    assert frames[0] == FRAMES[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"plain text, longer than an identity",
        zstandard.compress(b"not ours" * 20),
        b"\x0a\x0d\x0d\x0a" + bytes(28),
        skippable(b"another" + bytes(9)) + bytes(8),
        skippable(b"tlscap\0\1", size=8) + bytes(8),
        skippable(b"tlscap\0\1" + bytes(8), number=1),
    ],
    ids=["one byte", "text", "zstd", "pcapng", "other name", "other size", "other magic"],
)
def test_foreign(raw: bytes) -> None:
    """Another kind of file is refused at its first byte."""
    with pytest.raises(CorruptError, match="not a tlscap sidecar") as caught:
        SidecarReader(io.BytesIO(raw))
    assert caught.value.offset == 0


def test_newer_version() -> None:
    """A newer version is refused by its number."""
    raw = bytearray(sidecar())
    raw[15] = 9
    with pytest.raises(UnsupportedVersionError, match="version 9"):
        SidecarReader(io.BytesIO(bytes(raw)))
    assert is_sidecar(bytes(raw[:24]))


# --- Frames of other writers ---


def test_frames_without_size() -> None:
    """A frame that doesn't say what it unpacks to is refused before it is unpacked."""
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * 1000)
    frames, error = read(sidecar(finished=False) + packed)
    assert frames == list(FRAMES)
    assert isinstance(error, CorruptError)
    assert error.offset == ends()[-1]


@pytest.mark.parametrize("claimed", [MAX_FRAME + 1, 0xFFFFFFFF])
def test_frames_too_large(claimed: int) -> None:
    """A frame that unpacks to more than the limit is refused by its header."""
    _, error = read(identity() + handmade(claimed, [block(RAW, 1, b"x", last=True)]))
    assert isinstance(error, CorruptError)
    assert error.offset == 24


def test_largest_frame() -> None:
    """A frame of exactly the largest size is read."""
    frames, error = read(sidecar([bytes(MAX_FRAME)]))
    assert error is None
    assert [len(frame) for frame in frames] == [MAX_FRAME]


@pytest.mark.parametrize(
    "frame",
    [
        handmade(10 << 20, [block(RLE, 128 << 10, b"A")] * 20_000 + [block(RLE, 1, b"A", last=True)]),
        handmade(1000, [block(RLE, 128 << 10, b"A")] * 20_000 + [block(RLE, 1, b"A", last=True)]),
        handmade(1 << 20, [block(RLE, 1 << 10, b"A", last=True)]),
        handmade(0, [block(RLE, 128 << 10, b"A")] * 20_000),
        handmade(0, [block(RAW, 4, b"abcd", last=True)]),
        handmade(16, [block(3, 16, bytes(16), last=True)]),
        handmade(1 << 20, [block(RLE, 1 << 20, b"A", last=True)]),
    ],
    ids=[
        "more than it says",
        "far more",
        "less than it says",
        "endless",
        "not empty",
        "unknown block",
        "too large a block",
    ],
)
def test_frames_that_lie(frame: bytes) -> None:
    """A frame that would unpack to gigabytes, or to another size than it says, is an error that costs little memory."""
    tracemalloc.start()
    try:
        _, error = read(identity() + frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, CorruptError | TruncatedError)
    assert peak < 40 << 20


def test_frames_with_too_large_a_window() -> None:
    """A window of gigabytes, which the header can ask for, is not allocated."""
    frames, error = read(identity() + handmade(4, [block(RAW, 4, b"abcd", last=True)], window=21))
    assert frames == [b"abcd"] or isinstance(error, CorruptError)


def test_without_checksum() -> None:
    """A frame without checksum is valid zstd, and is read."""
    assert read(identity() + handmade(4, [block(RAW, 4, b"abcd", last=True)]) + seek_index([]))[0] == [b"abcd"]


@pytest.mark.parametrize("number", [0, 1, 13, 15])
def test_unknown_skippable_frames(number: int) -> None:
    """Skippable frames of others are stepped over, wherever they stand."""
    extra = skippable(b"anything" * 100, number)
    borders = ends()
    raw, whole = bytearray(), sidecar()
    for start, end in zip([0, *borders], [*borders, len(whole)], strict=True):
        raw += whole[start:end]
        if end != len(whole):
            raw += extra + skippable(b"", number)
    assert read(bytes(raw)) == (list(FRAMES), None)


def test_skippable_frames_too_large() -> None:
    """A skippable frame of gigabytes is refused: it would be held in memory while it is skipped."""
    _, error = read(identity() + skippable(b"", 3, size=0xFFFFFFFF))
    assert isinstance(error, CorruptError)


def test_behind_the_index() -> None:
    """The index ends the file: what stands behind it is not looked at."""
    assert read(sidecar() + b"trailing bytes") == (list(FRAMES), None)


# --- Following ---


def test_follow() -> None:
    """A growing file is read up to a limit, again and again, without complaint at its end."""
    whole, borders = sidecar(), ends()
    stream = io.BytesIO()
    stream.write(whole[: borders[0]])
    stream.seek(0)
    reader = SidecarReader(stream)
    for index, end in enumerate(borders):
        position = stream.tell()
        stream.seek(0, io.SEEK_END)
        stream.write(whole[stream.tell() : end])
        stream.seek(position)
        assert list(reader.frames(end)) == list(FRAMES[index - 1 : index] if index else ())
        assert list(reader.frames(end)) == []
        assert reader.position == end


@given(st.lists(st.integers(0, 500), max_size=8), st.booleans())
def test_limit(limits: list[int], finished: bool) -> None:
    """With a limit anywhere, the frames that end at or before it are read; the rest comes with a later limit."""
    raw = sidecar(finished=finished)
    reader = SidecarReader(io.BytesIO(raw))
    borders, seen, highest = ends(), list[bytes](), 0
    for limit in (min(limit, len(raw)) for limit in limits):
        seen += reader.frames(limit)
        highest = max(highest, limit)
        assert seen == [frame for frame, end in zip(FRAMES, borders[1:], strict=True) if end <= highest]
    seen += reader.frames(borders[-1])
    assert seen == list(FRAMES)


def test_limit_behind_the_end() -> None:
    """A limit that the file doesn't reach, is a truncated file: something was announced that is not there."""
    reader = SidecarReader(io.BytesIO(sidecar(finished=False)))
    with pytest.raises(TruncatedError):
        list(reader.frames(10_000))


# --- Oracles ---


def parse_index(raw: bytes) -> list[tuple[int, int]]:
    """Return the (packed, unpacked) sizes of a file, as the zstd seekable format 0.1.0 says to find them: from its end."""
    number, descriptor, magic = struct.unpack("<IBI", raw[-9:])
    assert magic == 0x8F92EAB1
    assert descriptor == 0
    size = 9 + 8 * number
    assert struct.unpack("<II", raw[-size - 8 : -size]) == (0x184D2A5E, size)
    return list(struct.iter_unpack("<II", raw[-size:-9]))


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
def test_index(frames: list[bytes]) -> None:
    """The index is that of the seekable format: any frame can be found and unpacked alone."""
    raw = sidecar(frames)
    sizes = parse_index(raw)
    assert sizes[0] == (len(identity()), 0)
    assert sum(packed for packed, _ in sizes) == len(raw) - 8 - 9 - 8 * len(sizes)
    at = 0
    for (packed, unpacked), frame in zip(sizes, [b"", *frames], strict=True):
        if frame:
            assert zstandard.decompress(raw[at : at + packed]) == frame
        assert unpacked == len(frame)
        at += packed


@pytest.fixture
def zstd() -> str:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("zstd is not installed")
    return tool


@pytest.mark.parametrize("finished", [True, False])
def test_zstd_tool(zstd: str, tmp_path: Path, finished: bool) -> None:
    """The ordinary zstd tool unpacks a file, finished or not, and finds its checksums right."""
    path = tmp_path / "x.tlscap.zst"
    path.write_bytes(sidecar(finished=finished))
    done = subprocess.run([zstd, "-dc", path], capture_output=True, check=True)
    assert done.stdout == b"".join(FRAMES)
    subprocess.run([zstd, "-qt", path], check=True)


# --- Frames that are stored as they are ---


@pytest.mark.parametrize("size", [0, 1, 131071, 131072, 131073, 300_000])
def test_stored_frames(size: int) -> None:
    """libzstd takes them, checks them, and finds a flipped bit."""
    data = random.Random(size).randbytes(size)
    frame = b"".join(stored_frame(data))
    assert zstandard.ZstdDecompressor().decompress(frame) == data
    assert zstandard.get_frame_parameters(frame).content_size == size
    if size:
        damaged = bytearray(frame)
        damaged[len(frame) // 2] ^= 1
        with pytest.raises(zstandard.ZstdError):
            zstandard.ZstdDecompressor().decompress(bytes(damaged))


def test_what_gets_smaller_is_compressed() -> None:
    """Noise is stored, text is packed, and a hurry stores both."""
    noise, text = random.Random(1).randbytes(1 << 20), b"GET /index.html HTTP/1.1\r\n" * 40_000
    sizes = {}
    for name, records, hurry in (("noise", noise, False), ("text", text, False), ("hurried", text, True)):
        stream = io.BytesIO()
        writer = SidecarWriter(stream)
        before = writer.size
        writer.write(records, hurry=hurry)
        sizes[name] = writer.size - before
        writer.close()
        stream.seek(0)
        assert list(SidecarReader(stream).frames()) == [records]
    assert len(noise) < sizes["noise"] < len(noise) + 100
    assert sizes["text"] < len(text) / 100
    assert len(text) < sizes["hurried"] < len(text) + 100
