"""Content codings: whole, in pieces, stacked, cut short, corrupt and hostile."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.http.content import PIECE, RATIO_FLOOR, ContentDecoder, ContentError

TEXT = b"".join(b"line %d of a text that compresses well\n" % number for number in range(20_000))


def fast_brotli(data: bytes) -> bytes:
    return brotli.compress(data, quality=3)  # type: ignore[no-any-return]


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd_with_everything(data: bytes) -> bytes:
    """Return a skippable frame, a frame with checksum and without size, an empty one, and another skippable frame."""
    stream = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    frame = stream.compress(data) + stream.flush()
    return b"\x5a\x2a\x4d\x18\x03\0\0\0abc" + frame + zstandard.compress(b"") + b"\x50\x2a\x4d\x18\0\0\0\0"


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + b"\0\0\0"


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "X-GZIP": two_members,
    "deflate": zlib.compress,
    " deflate ": raw_deflate,
    "br": fast_brotli,
    "zstd": zstandard.compress,
    "zstd,": zstd_with_everything,
    "gzip, br": lambda data: fast_brotli(gzip.compress(data)),
    "br, identity, zstd, deflate": lambda data: zlib.compress(zstandard.compress(fast_brotli(data))),
}


def decoded(encodings: str, data: bytes, size: int = 1 << 30) -> tuple[bytes, bool]:
    """Return what ``data`` decodes to, fed in pieces of ``size``, and whether it was whole."""
    decoder = ContentDecoder(encodings)
    output = b"".join(
        piece for start in range(0, len(data), size) for piece in decoder.feed(data[start : start + size])
    )
    assert (decoder.input_length, decoder.output_length) == (len(data), len(output))
    return output, decoder.finish()


@pytest.mark.parametrize("encodings", ENCODERS)
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 30])
def test_round_trip(encodings: str, size: int) -> None:
    """Every coding and every stack is undone, whatever the pieces."""
    assert decoded(encodings, ENCODERS[encodings](TEXT), size) == (TEXT, True)


@pytest.mark.parametrize("encodings", [encodings for encodings in ENCODERS if encodings not in ("", "identity")])
def test_truncated(encodings: str) -> None:
    """A body that was cut gives what it holds, and is not whole."""
    data = ENCODERS[encodings](TEXT).rstrip(b"\0")
    output, complete = decoded(encodings, data[: len(data) * 2 // 3])
    assert not complete
    assert TEXT.startswith(output)


@pytest.mark.parametrize("encodings", ENCODERS)
def test_nothing_at_all(encodings: str) -> None:
    """A body without a byte is whole: 304 and HEAD answers name codings too."""
    assert decoded(encodings, b"") == (b"", True)


@pytest.mark.parametrize("encodings", ["gzip", "br", "zstd", "deflate", "gzip, br"])
def test_corrupt(encodings: str) -> None:
    """Corrupt bytes raise the module's own error, which names the coding."""
    with pytest.raises(ContentError, match=encodings.rpartition(" ")[2]):
        decoded(encodings, b"\x78\x9c\xff this is not compressed" * 100)


def test_corrupt_later() -> None:
    """What came before the corruption is yielded."""
    data = gzip.compress(TEXT)
    decoder = ContentDecoder("gzip")
    output = b"".join(decoder.feed(data[:-8]))
    with pytest.raises(ContentError, match="incorrect data check"):
        list(decoder.feed(bytes(8)))
    assert output == TEXT


def test_unknown_coding() -> None:
    """A coding that is not known is said at once."""
    with pytest.raises(ContentError, match="'compress'"):
        ContentDecoder("gzip, compress")


def test_after_the_end() -> None:
    """What follows the end of a coding is ignored, as browsers do."""
    for encodings in ("gzip", "deflate"):
        assert decoded(encodings, ENCODERS[encodings](TEXT) + b"junk", 100) == (TEXT, True)
    for size in (1, 1 << 30):  # brotli's own decoder refuses it
        with pytest.raises(ContentError, match="br"):
            decoded("br", ENCODERS["br"](TEXT) + b"junk", size)


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(bytes(1 << 28)),
    "br": lambda: fast_brotli(bytes(1 << 28)),
    "zstd": lambda: zstandard.compress(bytes(1 << 28)),
    "gzip, gzip": lambda: gzip.compress(gzip.compress(bytes(1 << 28))),
}


@pytest.mark.parametrize("encodings", BOMBS)
def test_bomb(encodings: str) -> None:
    """A bomb is defused: small pieces, and an error once the expansion is beyond reason."""
    data = BOMBS[encodings]()
    decoder = ContentDecoder(encodings)
    longest = 0
    tracemalloc.start()
    try:
        with pytest.raises(ContentError, match="a bomb"):  # noqa: PT012
            for piece in decoder.feed(data):
                longest = max(longest, len(piece))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert longest <= 2 * PIECE
    assert decoder.output_length > RATIO_FLOOR
    assert peak < 4 << 20


def test_output_limit() -> None:
    """An absolute limit is possible too, and without limits everything is decoded."""
    data = gzip.compress(TEXT)
    with pytest.raises(ContentError, match="more than 1000 bytes"):
        list(ContentDecoder("gzip", output_limit=1000).feed(data))
    zeros = sum(
        len(piece) for piece in ContentDecoder("gzip", ratio_limit=None).feed(gzip.compress(bytes(RATIO_FLOOR * 2)))
    )
    assert zeros == RATIO_FLOOR * 2


@settings(deadline=None)
@given(
    data=st.binary(max_size=200), encodings=st.sampled_from(["gzip", "deflate", "br", "zstd"]), size=st.integers(1, 50)
)
def test_anything(data: bytes, encodings: str, size: int) -> None:
    """Any bytes are decoded or raise `ContentError`; real ones survive any cut."""
    with contextlib.suppress(ContentError):
        decoded(encodings, data, size)
    assert decoded(encodings, ENCODERS[encodings](data), size) == (data, True)
