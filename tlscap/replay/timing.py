"""``none``, ``recorded``, ``x2``: how fast a recording is gone through again."""

from __future__ import annotations

import re
from typing import Final

_FACTOR = re.compile(r"x?(\d+(?:\.\d+)?|\.\d+)x?", re.ASCII)
_SLOWEST: Final = 1e-3
_FASTEST: Final = 1e6


def speed_of(text: str) -> float:
    """Return how many times as fast as recorded; 0 for ``none``: without any delay.  Raises `ValueError`."""
    if text in ("none", "recorded"):
        return 1.0 if text == "recorded" else 0.0
    match = _FACTOR.fullmatch(text)
    if match is None or not _SLOWEST <= float(match[1]) <= _FASTEST:
        raise ValueError(f"{text!r} is not none, recorded, or a factor such as x2 or x0.5")
    return float(match[1])
