"""How differences between recorded and live values are shown to people: what `tlscap.replay.nearest` and `tlscap.replay.compare` share."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, Final

from tlscap.export.table import shortened

_STEP: Final = 1 << 16


def value_text(value: Any, width: int) -> str:
    """Return a JSON value, without its middle if it is longer than ``width``; of an object or an array, how large it is."""
    if value and isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value):,}"
    return shortened(json.dumps(value, ensure_ascii=False), width)


def line_changes(old: list[str], new: list[str]) -> list[str]:
    """Return a unified diff of lines, with one around each change.  The time grows with their square: limit how many."""
    return list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the index of the first item in which two sequences differ; of long ones in steps, for speed."""
    shorter = min(len(one), len(other))
    for start in range(0, shorter, _STEP):
        first, second = one[start : start + _STEP], other[start : start + _STEP]
        if first != second:
            pairs = enumerate(zip(first, second, strict=False))
            return start + next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
    return shorter
