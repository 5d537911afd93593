r"""The sidecar file: the kernel's samples and a few records of our own, in independent zstd frames.

Layout (docs/format.md has it to the byte)::

    skippable frame   magic "tlscap\\0", format version           recognised by readers, ignored by zstd
    zstd frame        whole records, content size and checksum    as many as it takes
    ...
    skippable frame   the seekable-format index of the frames     only when the file was closed cleanly

A killed recorder loses at most the frame it had not written; everything before opens.  The ordinary
``zstd`` tool decompresses the file.  Writers and readers take binary streams and open nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, Protocol, runtime_checkable

import xxhash
import zstandard

from tlscap.errors import CorruptError, FormatError, TruncatedError, UnsupportedVersionError

FORMAT_VERSION = 1
MAGIC = b"tlscap\0"
SKIPPABLE_MAGIC = 0x184D2A50
INDEX_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
"""Footer of Zstandard Seekable Format 0.1.0 (facebook/zstd, contrib/seekable_format)."""
ZSTD_MAGIC = 0xFD2FB528

FRAME_SIZE = 4 << 20
"""Bytes of records after which a writer closes a frame."""
MAX_FRAME = 64 << 20
"""No frame a reader accepts is larger, packed or unpacked: memory stays bounded whatever a file claims."""

READ_SIZE = 256 << 10

_MAX_HEADER = 18
_BLOCK_HEADER, _CHECKSUM = 3, 4
_BLOCK_RLE = 1  # one byte, repeated: the size in its header is that of what it unpacks to
_OVERHEAD = 4096

_SKIPPABLE = struct.Struct("<II")
_IDENTITY = struct.Struct("<7sB8x")
_INDEX_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")


def identity() -> bytes:
    """The skippable frame that begins a sidecar: 24 bytes."""
    body = _IDENTITY.pack(MAGIC, FORMAT_VERSION)
    return _SKIPPABLE.pack(SKIPPABLE_MAGIC, len(body)) + body


_STORED_FROM = 256 << 10
"""Frames smaller than this are always compressed: it costs nothing."""
_STORED_RATIO = 0.95
_TRIALS, _TRIAL_SIZE = 4, 8 << 10
_RAW_BLOCK: Final = 128 << 10  # the largest that RFC 8878 allows
_STORED_HEADER = struct.Struct("<IBI")
_STORED_DESCRIPTOR = 0b10_1_0_0_1_00  # content size in 4 bytes, a single segment, a checksum

Bytes = bytes | bytearray | memoryview


@runtime_checkable
class Sink(Protocol):
    """Anything that takes bytes in order; may take fewer than it is given."""

    def write(self, data: memoryview, /) -> int | None: ...


class FrameSink(Protocol):
    """A sink for which the place of a frame in the file matters."""

    def padding(self, size: int, /) -> tuple[int, int]:
        """Bytes it wants before and after a frame of this size: 0, or 8 at least."""
        ...

    def write_frame(self, parts: Sequence[Bytes], /) -> None:
        """Take all of it."""
        ...


class _PlainSink:
    """Frames for a sink that only knows bytes."""

    def __init__(self, stream: Sink) -> None:
        self._stream = stream

    def padding(self, size: int) -> tuple[int, int]:
        return 0, 0

    def write_frame(self, parts: Sequence[Bytes]) -> None:
        view = memoryview(b"".join(parts))
        while view:
            written = self._stream.write(view)
            view = view[written or 0 :]


class SidecarWriter:
    """Appends frames to a stream.  Each `write` puts one whole frame into the file.

    What doesn't get smaller (images, archives, what is compressed already) is stored in a frame of raw blocks:
    trying to compress a gigabyte of it takes as long as the network takes to bring it.
    """

    def __init__(self, stream: Sink | FrameSink, *, level: int = 1) -> None:
        self._stream = _PlainSink(stream) if isinstance(stream, Sink) else stream
        # Checksums let a reader tell a damaged frame; the content size lets it bound its memory before unpacking.
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        head = identity()
        self._stream.write_frame([head])
        self._index: list[tuple[int, int]] = [(len(head), 0)]
        self.size = len(head)
        """Bytes of whole frames written: a reader may follow up to here."""

    def write(self, records: Bytes, *, hurry: bool = False) -> None:
        """One frame of whole records; in a ``hurry`` not compressed.  Raises `OSError`; the file then ends at the last whole frame."""
        if hurry or not self._gets_smaller(records):
            parts = stored_frame(records)
        else:
            parts = [self._compressor.compress(records)]
        size = sum(map(len, parts))
        before, after = self._stream.padding(size)
        self._stream.write_frame([*_skippable(before), *parts, *_skippable(after)])
        sizes = (before, 0), (size, len(records)), (after, 0)
        self._index += [entry for entry in sizes if entry[0]]
        self.size += before + size + after

    def close(self) -> None:
        """Write the index.  The stream stays open."""
        self._stream.write_frame([seek_index(self._index)])

    def _gets_smaller(self, records: Bytes) -> bool:
        """Whether compressing seems worth it: a few places tell for all."""
        if len(records) < _STORED_FROM:
            return True
        step = len(records) // _TRIALS
        trials = b"".join(records[at : at + _TRIAL_SIZE] for at in range(0, step * _TRIALS, step))
        return len(self._compressor.compress(trials)) < _STORED_RATIO * len(trials)


def stored_frame(records: Bytes) -> list[Bytes]:
    """A zstd frame (RFC 8878, 3.1.1) of raw blocks, in parts: its data are views of ``records``."""
    view = memoryview(records)
    head = _STORED_HEADER.pack(ZSTD_MAGIC, _STORED_DESCRIPTOR, len(view))
    parts: list[Bytes] = [head]
    for at in range(0, len(view) or 1, _RAW_BLOCK):
        block = view[at : at + _RAW_BLOCK]
        last = at + _RAW_BLOCK >= len(view)
        parts += [(len(block) << 3 | last).to_bytes(_BLOCK_HEADER, "little"), block]
    parts.append((xxhash.xxh64_intdigest(view) & 0xFFFFFFFF).to_bytes(_CHECKSUM, "little"))
    return parts


def _skippable(size: int) -> list[Bytes]:
    """A frame of ``size`` bytes, its header of 8 included, that every reader ignores."""
    return [_SKIPPABLE.pack(SKIPPABLE_MAGIC, size - _SKIPPABLE.size), bytes(size - _SKIPPABLE.size)] if size else []


def seek_index(frames: list[tuple[int, int]]) -> bytes:
    """The index frame for frames of these (packed, unpacked) sizes."""
    entries = b"".join(_INDEX_ENTRY.pack(*frame) for frame in frames)
    footer = _FOOTER.pack(len(frames), 0, SEEKABLE_MAGIC)  # descriptor 0: no checksums, the frames have their own
    return _SKIPPABLE.pack(INDEX_MAGIC, len(entries) + len(footer)) + entries + footer


class SidecarReader:
    """Yields the unpacked frames of a sidecar, from its beginning.

    `frames` raises `TruncatedError` where the file ends inside a frame or without its whole index, and
    `CorruptError` where a checksum is wrong, always after it yielded everything before.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Check the identity.  Raises `CorruptError` for another kind of file, `UnsupportedVersionError`."""
        self._stream = stream
        self.position = 0
        """Bytes consumed: the end of the last whole frame."""
        head = stream.read(len(identity()))
        if not head:
            raise TruncatedError("the file is empty", offset=0)
        if len(head) < len(identity()):
            if identity().startswith(head):
                raise TruncatedError("the file ends inside its first bytes", offset=0)
            raise CorruptError("not a tlscap sidecar", offset=0)
        magic, size = _SKIPPABLE.unpack_from(head)
        name, self.version = _IDENTITY.unpack_from(head, 8)
        if magic != SKIPPABLE_MAGIC or size != _IDENTITY.size or name != MAGIC:
            raise CorruptError("not a tlscap sidecar", offset=0)
        if self.version > FORMAT_VERSION:
            raise UnsupportedVersionError(
                f"the file has format version {self.version}; this tlscap reads up to {FORMAT_VERSION}",
                offset=0,
                hint="update tlscap",
            )
        self.position = len(head)
        self._pending = bytearray()
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_FRAME)

    def frames(self, limit: int | None = None) -> Iterator[bytes]:
        """Unpacked frames.  With ``limit``, only those that end at or before that byte of the file,
        without complaint: a file that is still being written is followed this way.
        """
        while limit is None or self.position < limit:
            magic = self._peek(4)
            if not magic and limit is None:
                raise TruncatedError(
                    "the file has no index: its recorder was stopped before its end", offset=self.position
                )
            if len(magic) < 4:
                raise self._cut()
            number = int.from_bytes(magic, "little")
            if number & 0xFFFFFFF0 == SKIPPABLE_MAGIC:
                size = self._skippable_size()
                unpacked = None
            elif number == ZSTD_MAGIC:
                size, unpacked = self._frame_sizes()
            else:
                raise CorruptError(f"no frame begins at byte {self.position}", offset=self.position)
            if limit is not None and self.position + size > limit:
                return
            if len(self._peek(size)) < size:
                raise self._cut()
            if unpacked is not None:
                yield self._unpack(size, unpacked)
            else:
                self._drop(size)
            if number == INDEX_MAGIC:
                return

    def _cut(self) -> TruncatedError:
        return TruncatedError(f"the file ends inside a frame that begins at byte {self.position}", offset=self.position)

    def _peek(self, size: int, start: int = 0) -> bytearray:
        """Bytes from the position plus ``start``; fewer at the end of the file."""
        while (missing := start + size - len(self._pending)) > 0:
            part = self._stream.read(max(missing, READ_SIZE))
            if not part:
                break
            self._pending += part
        return self._pending[start : start + size]

    def _drop(self, size: int) -> None:
        del self._pending[:size]
        self.position += size

    def _skippable_size(self) -> int:
        head = self._peek(_SKIPPABLE.size)
        if len(head) < _SKIPPABLE.size:
            raise self._cut()
        _, size = _SKIPPABLE.unpack(head)
        if size > MAX_FRAME:
            raise CorruptError(f"a frame at byte {self.position} claims {size} bytes", offset=self.position)
        return int(_SKIPPABLE.size + size)

    def _frame_sizes(self) -> tuple[int, int]:
        """Packed and unpacked size of the frame here, from its header and the headers of its blocks.

        Known before anything is unpacked: a frame can hold far more than it claims, and unpacked in a stream it would
        take that much memory before the contradiction shows.
        """
        start = self.position
        head = self._peek(_MAX_HEADER)
        try:
            parameters = zstandard.get_frame_parameters(head)
            size = zstandard.frame_header_size(head)
        except zstandard.ZstdError as error:
            if len(head) < _MAX_HEADER:
                raise self._cut() from error
            raise CorruptError(f"the frame at byte {start} is damaged: {error}", offset=start) from error
        unpacked = parameters.content_size
        if unpacked in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or unpacked > MAX_FRAME:
            raise CorruptError(f"the frame at byte {start} does not say a size up to {MAX_FRAME}", offset=start)
        empty = size + _BLOCK_HEADER
        last = False
        while not last:
            block = int.from_bytes(raw := self._peek(_BLOCK_HEADER, size), "little")
            if len(raw) < _BLOCK_HEADER:
                raise self._cut()
            last = bool(block & 1)
            size += _BLOCK_HEADER + (1 if block >> 1 & 3 == _BLOCK_RLE else block >> 3)
            if size > MAX_FRAME + _OVERHEAD:
                raise CorruptError(f"the frame at byte {start} is too large", offset=start)
        if not unpacked and size != empty:  # zstandard believes a size of 0 without looking
            raise CorruptError(f"the frame at byte {start} has not the size it says", offset=start)
        return size + (_CHECKSUM if parameters.has_checksum else 0), unpacked

    def _unpack(self, size: int, unpacked: int) -> bytes:
        try:
            data = self._decompressor.decompress(self._peek(size))
        except zstandard.ZstdError as error:
            raise CorruptError(
                f"the frame at byte {self.position} is damaged: {error}", offset=self.position
            ) from error
        if len(data) != unpacked:
            raise CorruptError(f"the frame at byte {self.position} has not the size it says", offset=self.position)
        self._drop(size)
        return data


def is_sidecar(head: bytes) -> bool:
    """Whether a file that begins with these bytes (24 suffice) is a sidecar."""
    return head[8:15] == MAGIC and head[:4] == SKIPPABLE_MAGIC.to_bytes(4, "little")


__all__ = [
    "FORMAT_VERSION",
    "FRAME_SIZE",
    "FormatError",
    "SidecarReader",
    "SidecarWriter",
    "identity",
    "is_sidecar",
    "seek_index",
]
