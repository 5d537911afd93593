"""Many texts looked for at once: the time it takes does not depend on how many they are.

Four (or eight) bytes of every text are looked up that stand at a multiple of four (eight) in the data: any seven (fifteen) bytes in a row
contain such a group as a whole, wherever they begin.  All of that runs in C; only what fits is compared here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

SHORTEST: Final = 5
"""Bytes that a text must have."""

_LONG: Final = 4096
"""Bytes of a text from which it is looked for by itself: comparing it at many places takes long, and there are few such texts."""


class Hit(NamedTuple):
    """A text that was found."""

    at: int
    text: bytes
    kind: int
    """As it was added."""


class _Grid:
    """Texts that are found by groups of some bytes: those at multiples of this size, from each of some offsets."""

    def __init__(self, letter: Literal["I", "Q"], size: int, offsets: tuple[int, ...]) -> None:
        self._letter: Literal["I", "Q"] = letter  # of the format, as `memoryview.cast` and `struct` have it
        self._size = size
        self._offsets = offsets
        self._step = size // len(offsets)
        self._texts: dict[int, list[tuple[int, bytes, int]]] = {}

    @property
    def shortest(self) -> int:
        """Bytes from which a text has a group of its own wherever it stands."""
        return self._size + self._step - 1

    def add(self, text: bytes, kind: int) -> None:
        for offset in range(self._step):
            group = memoryview(text[offset : offset + self._size]).cast(self._letter)[0]
            self._texts.setdefault(group, []).append((offset, text, kind))

    def within(self, data: bytes) -> Iterator[Hit]:
        texts = self._texts
        if not texts:
            return
        whole = memoryview(data)
        for first in self._offsets:
            groups = whole[first : first + (len(data) - first) // self._size * self._size].cast(self._letter)
            if texts.keys().isdisjoint(groups):
                continue
            for number, group in enumerate(groups):
                if group in texts:
                    for offset, text, kind in texts[group]:
                        at = first + number * self._size - offset
                        if at >= 0 and data.startswith(text, at):
                            yield Hit(at, text, kind)


class Index:
    """Texts of `SHORTEST` bytes and more, each with a number that says what kind it is."""

    def __init__(self) -> None:
        self._grids = (_Grid("Q", 8, (0,)), _Grid("I", 4, (0,)), _Grid("I", 4, (0, 2)))
        self._long: list[tuple[bytes, int]] = []
        self._known: set[tuple[bytes, int]] = set()

    def add(self, text: bytes, kind: int) -> None:
        """Take a text.  Raises `ValueError` for one that is too short."""
        if len(text) < SHORTEST:
            raise ValueError(f"a text of {len(text)} bytes")
        if (text, kind) not in self._known:
            self._known.add((text, kind))
            if len(text) > _LONG:
                self._long.append((text, kind))
                return
            next(grid for grid in self._grids if len(text) >= grid.shortest).add(text, kind)

    def within(self, data: bytes) -> list[Hit]:
        """Return where the texts stand, in order."""
        hits = {hit for grid in self._grids for hit in grid.within(data)}
        for text, kind in self._long:
            at = data.find(text)
            while at >= 0:
                hits.add(Hit(at, text, kind))
                at = data.find(text, at + len(text))
        return sorted(hits)
