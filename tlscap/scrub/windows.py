"""Long texts, looked at in pieces: what looking takes in memory depends on the piece then, not on the text.

Pieces overlap, so that what stands at the border of one is seen whole in the other.  What reaches the very edge of a piece may go on
beyond it: that piece is made larger until it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, Self, TypeVar

WINDOW: Final = 1 << 20
MARGIN: Final = 96 << 10
"""More than anything takes that is found by its beginning and its end."""


class Span(Protocol):
    """Something that was found."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    def _replace(self, *, start: int, end: int) -> Self: ...


_SpanT = TypeVar("_SpanT", bound=Span)


def in_windows(text: bytes, look: Callable[[bytes], Iterable[_SpanT]], margin: int = MARGIN) -> list[_SpanT]:
    """Return what ``look`` finds in a text; it may be given in pieces.

    What stands in two pieces may be returned twice.  ``margin``: bytes that anything takes that is not found by parts of it.
    """
    window = max(WINDOW, 4 * margin)
    if len(text) <= window + 2 * margin:
        return list(look(text))
    found: list[_SpanT] = []
    at = 0
    while at < len(text):
        until = min(at + window, len(text))
        begin, stop = max(0, at - margin), min(len(text), until + margin)
        while True:
            here = [
                one._replace(start=one.start + begin, end=one.end + begin)
                for one in look(text[begin:stop])
                if one.end + begin > at and one.start + begin < until
            ]
            size = stop - begin
            grown = begin, stop
            if begin and any(one.start == begin for one in here):
                begin = max(0, begin - size)
            if stop < len(text) and any(one.end == stop for one in here):
                stop = min(len(text), stop + size)
            if (begin, stop) == grown:
                break
        found += here
        at = max(until, max((one.end for one in here), default=0))
    return found
