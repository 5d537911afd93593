"""Changes of a text, and where what comes after them stands then."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Edit(NamedTuple):
    """Bytes ``start`` to ``end`` become ``text``."""

    start: int
    end: int
    text: bytes
    rule: str


def without_overlaps(edits: Iterable[Edit]) -> list[Edit]:
    """Return edits in order; one that overlaps another is joined with it, under the longer one's text."""
    kept: list[Edit] = []
    for one in sorted(edits, key=lambda one: (one.start, -one.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
        elif one.end > kept[-1].end:
            last = kept[-1]
            longer = one if one.end - one.start > last.end - last.start else last
            kept[-1] = longer._replace(start=last.start, end=one.end)
    return kept


def apply(text: bytes, edits: Sequence[Edit]) -> bytes:
    """Return the text with edits that are in order and don't overlap."""
    if not edits:
        return text
    kept = memoryview(text)  # the text may be long: no copies but the result
    parts: list[bytes | memoryview] = []
    reached = 0
    for one in edits:
        parts += (kept[reached : one.start], one.text)
        reached = one.end
    parts.append(kept[reached:])
    return b"".join(parts)


@dataclass(slots=True)
class Moves:
    """Where the bytes of a text stand after it was changed: places that are known, and what is between them in proportion."""

    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, length: int, edits: Sequence[Edit]) -> Moves:
        """Return what edits do to a text of this length."""
        moves = cls([0], [0])
        shift = 0
        for one in edits:
            moves.add(one.start, one.start + shift)
            shift += len(one.text) - (one.end - one.start)
            moves.add(one.end, one.end + shift)
        moves.add(length, length + shift)
        return moves

    def add(self, before: int, after: int) -> None:
        """Add a place that is known."""
        self.before.append(before)
        self.after.append(after)

    def __call__(self, position: int) -> int:
        """Return where the byte at a position stands now."""
        index = min(bisect.bisect_right(self.before, position), len(self.before) - 1)
        begin, end = self.before[index - 1], self.before[index]
        start, stop = self.after[index - 1], self.after[index]
        if end == begin:
            return stop
        return start + min(position - begin, end - begin) * (stop - start) // (end - begin)
