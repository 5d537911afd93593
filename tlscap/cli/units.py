"""Sizes, times and speeds as people write and read them."""

from __future__ import annotations

import re
from typing import Any

import click

from tlscap.replay.timing import speed_of

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LARGEST_SIZE = 1 << 62  # the kernel holds sizes in 64 bits
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class Size(click.ParamType[int]):
    """``4096``, ``64K``, ``1.5MiB``: bytes; K, M, G are decimal, Ki, Mi, Gi binary."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _NUMBER.fullmatch(value)
        factor = _SIZES.get(match[2].lower().removesuffix("b")) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is not a size such as 4096, 64K or 1MiB", param, ctx)
        size = float(match[1]) * factor
        if size > _LARGEST_SIZE:
            self.fail(f"{value!r} is too large", param, ctx)
        return int(size)


class Duration(click.ParamType[float]):
    """``10``, ``500ms``, ``2m``, ``1h``: seconds when no unit is given."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _NUMBER.fullmatch(str(value))
        factor = _TIMES.get(match[2].lower()) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is not a time such as 10s, 2m or 1h", param, ctx)
        return float(match[1]) * factor


class Timing(click.ParamType[float]):
    """``none``, ``recorded``, ``x2``: how many times as fast as recorded; 0 for no delays."""

    name = "timing"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return speed_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def size_text(size: float) -> str:
    """``812 B``, ``1.2 kB``, ``34.5 MB``."""
    if size < 1000:
        return f"{int(size)} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def time_text(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``3:05``, ``1:02:03``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count_text(number: int, noun: str) -> str:
    """``1 flow``, ``2 flows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
