"""Undo content codings, piece by piece: gzip, deflate, br, zstd, and stacks of them.

`ContentDecoder` turns the bytes of a body, fed in any pieces, into what they stand for.  Output comes from a
generator in pieces of at most ``PIECE`` bytes (zstd: twice that), so no input, however hostile, makes a large object;
and a limit on the expansion as a whole stops a bomb.

A truncated body is no error: what could be decoded was yielded, and `ContentDecoder.complete` is false.
A corrupt one, an unknown coding and a bomb raise `ContentError`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import brotli
import zstandard

PIECE: Final = 1 << 16
"""Most bytes that one step of a decoder yields."""

RATIO_LIMIT: Final = 250
"""Output per input beyond which a body is a bomb.  Text seldom exceeds 20; deflate can't exceed 1032."""

RATIO_FLOOR: Final = 64 << 20
"""Output that is always allowed, whatever the ratio: a hundred kilobytes of zeros are no attack."""

LAYER_LIMIT: Final = 16
"""Codings that are undone one after the other.  Two occur; each costs a generator for every piece."""

_INPUT_SLICE: Final = 1 << 16  # zlib copies its unconsumed input with every piece of output
_WINDOW_LIMIT: Final = 1 << 27  # what zstd itself accepts without --long; RFC 9659 allows senders 8 MiB
_GZIP_MAGIC: Final = 0x1F
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER_MAX: Final = 18
_ZSTD_RLE: Final = 1  # RFC 8878, 3.1.1.2.2: one byte that stands for a whole block


class ContentError(ValueError):
    """A body that can't be decoded.  ``str(error)`` says which coding failed and how."""


class _Coding(Protocol):
    """One layer.  ``complete`` is whether the input so far could be all of it."""

    complete: bool

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class ContentDecoder:
    """Decodes one body.

    ``encodings`` is the field's value (``"gzip, br"``: applied in that order, undone in reverse).  It raises
    `ContentError` at once for a coding that isn't known.

    ``ratio_limit`` bounds output by input (beyond `RATIO_FLOOR` bytes), ``output_limit`` absolutely; ``None``: unbounded.
    """

    def __init__(
        self, encodings: str, *, ratio_limit: int | None = RATIO_LIMIT, output_limit: int | None = None
    ) -> None:
        self.encodings = tuple(name for part in encodings.split(",") if (name := part.strip().lower()))
        if len(self.encodings) > LAYER_LIMIT:
            raise ContentError(f"{len(self.encodings)} content codings, one upon the other")
        self._layers = [_coding(name) for name in reversed(self.encodings) if name not in _IDENTITY]
        self._ratio_limit = ratio_limit
        self._output_limit = output_limit
        self.input_length = 0
        self.output_length = 0

    @property
    def complete(self) -> bool:
        """Whether every layer reached its end.  A body of no bytes at all is complete."""
        return not self.input_length or all(layer.complete for layer in self._layers)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` decodes to.  The next call is allowed when this iterator is exhausted."""
        if not self._layers:
            self.input_length += len(data)
            yield from self._counted((data,) if data else ())
            return
        for start in range(0, len(data), _INPUT_SLICE):
            piece = data[start : start + _INPUT_SLICE]
            self.input_length += len(piece)
            pieces: Iterable[bytes] = (piece,)
            for layer in self._layers:
                pieces = _through(layer, pieces)
            yield from self._counted(pieces)

    def finish(self) -> bool:
        """Return whether the body was whole."""
        return self.complete

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.output_length += len(piece)
            if self._output_limit is not None and self.output_length > self._output_limit:
                raise ContentError(f"decodes to more than {self._output_limit} bytes")
            if (
                self._ratio_limit is not None
                and self.output_length > RATIO_FLOOR
                and self.output_length > self._ratio_limit * self.input_length
            ):
                raise ContentError(
                    f"{self.input_length} bytes decode to more than {self._ratio_limit} times as much: a bomb"
                )
            yield piece


def _through(layer: _Coding, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from layer.feed(piece)


class _Gzip:
    """RFC 1952: one or more members.  What follows the last and is no member is ignored, as gzip does."""

    complete = False

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._padding:
            if self._member.eof:
                if data[0] != _GZIP_MAGIC:
                    self._padding = True
                    return
                self._member = zlib.decompressobj(wbits=31)
            try:
                yield from _inflate(self._member, data)
            except zlib.error as error:
                raise ContentError(f"gzip: {error}") from None
            self.complete = self._member.eof
            data = self._member.unused_data


class _Deflate:
    """RFC 9110, 8.4.1.2 says zlib (RFC 1950); many senders meant raw deflate (RFC 1951).  The header tells."""

    complete = False

    def __init__(self) -> None:
        self._begin = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._begin + data
            if len(data) < 2:
                self._begin = data
                return
            # RFC 1950, 2.2: method 8, and a check that makes the two bytes a multiple of 31.
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._stream = zlib.decompressobj(wbits=15 if is_zlib else -15)
        if self.complete:
            return
        try:
            yield from _inflate(self._stream, data)
        except zlib.error as error:
            raise ContentError(f"deflate: {error}") from None
        self.complete = self._stream.eof


def _inflate(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    while True:
        piece = stream.decompress(data, PIECE)
        if piece:
            yield piece
        data = stream.unconsumed_tail
        if stream.eof or (not data and len(piece) < PIECE):
            return


class _Brotli:
    complete = False

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self.complete:
            raise ContentError("br: bytes after the end")
        try:
            piece = self._stream.process(data, output_buffer_limit=PIECE)
            while piece or not self._stream.can_accept_more_data():
                if piece:
                    yield piece
                if self._stream.is_finished():
                    break
                piece = self._stream.process(b"", output_buffer_limit=PIECE)
        except brotli.error:
            raise ContentError("br: corrupt data") from None
        self.complete = self._stream.is_finished()


class _Zstd:
    """RFC 8878.  The binding can't bound its output, but a block can: at most 128 KiB.  So it gets one block at a time."""

    complete = False

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._held = bytearray()
        self._skip = 0  # of a skippable frame
        self._last_block = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        held = self._held
        held += data
        pos = 0
        try:
            while unit := self._next_unit(held, pos):
                piece = self._take(bytes(held[pos : pos + unit]))
                pos += unit
                if piece:
                    yield piece
        except zstandard.ZstdError as error:
            raise ContentError(f"zstd: {str(error).removeprefix('zstd decompressor error: ')}") from None
        finally:
            del held[:pos]
        self.complete = self._frame is None and not self._skip and not held

    def _next_unit(self, held: bytearray, pos: int) -> int:
        """Return the length of the unit at ``pos``: what skippable frames hold, a header, a block, or a checksum; 0: more is needed."""
        have = len(held) - pos
        if self._skip:
            return min(self._skip, have)
        if self._frame is None:
            if have >= 8 and held[pos + 1 : pos + 4] == b"\x2a\x4d\x18" and held[pos] & 0xF0 == 0x50:
                return 8
            if have < 5:
                return 0
            if held[pos : pos + 4] != _ZSTD_MAGIC:
                if held[pos + 1 : pos + 4] == b"\x2a\x4d\x18":
                    return 0
                raise ContentError("zstd: no frame")
            length = zstandard.frame_header_size(
                bytes(held[pos : pos + _ZSTD_HEADER_MAX]).ljust(_ZSTD_HEADER_MAX, b"\0")
            )
            return length if have >= length else 0
        if self._last_block:
            return 4 if have >= 4 else 0
        if have < 3:
            return 0
        header = int.from_bytes(held[pos : pos + 3], "little")
        length = 3 + (1 if header >> 1 & 3 == _ZSTD_RLE else header >> 3)
        if length > 3 + (1 << 17):
            raise ContentError("zstd: block too large")
        if have < length:
            return 0
        self._last_block = bool(header & 1)
        return length

    def _take(self, unit: bytes) -> bytes:
        if self._skip:
            self._skip -= len(unit)
            return b""
        if self._frame is None:
            if not unit.startswith(_ZSTD_MAGIC):
                self._skip = int.from_bytes(unit[4:8], "little")
                return b""
            self._frame = self._decompressor.decompressobj()
            self._last_block = False
        piece = self._frame.decompress(unit)
        if self._frame.eof:
            self._frame = None
        return piece


_IDENTITY: Final = frozenset({"identity"})
_CODINGS: Final[dict[str, Callable[[], _Coding]]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,  # RFC 9110, 8.4.1.3: the same
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


def _coding(name: str) -> _Coding:
    coding = _CODINGS.get(name)
    if coding is None:
        raise ContentError(f"unknown content coding {name!r}")
    return coding()
