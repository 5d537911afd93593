"""Bytes as lines for people, in the form of ``hexdump -C``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_WIDTH: Final = 16
_UNPRINTABLE = re.compile(rb"[^ -~]")


def hexdump(data: bytes, offset: int = 0) -> Iterator[str]:
    """Yield a line for each sixteen bytes: where they are, counted from ``offset``, what they are, and as ASCII."""
    for start in range(0, len(data), _WIDTH):
        row = data[start : start + _WIDTH]
        text = _UNPRINTABLE.sub(b".", row).decode("ascii")
        yield f"{offset + start:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|"
