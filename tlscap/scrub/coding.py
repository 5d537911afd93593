"""Content codings applied (RFC 9110, 8.4): the way back from what `tlscap.http.content` undoes.  The same bytes every time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Final

import brotli
import zstandard


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _deflate(data: bytes) -> bytes:
    return zlib.compress(data, 9)


def _brotli(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=9))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=9, write_checksum=False).compress(data)


_CODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
    "identity": bytes,
}


def encoded(data: bytes, encodings: str) -> bytes | None:
    """Apply codings in their order (``gzip, br``); ``None``: one of them can't be applied."""
    for name in (part.strip().lower() for part in encodings.split(",")):
        if name:
            apply = _CODINGS.get(name)
            if apply is None:
                return None
            data = apply(data)
    return data
