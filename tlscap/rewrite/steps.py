"""What is written, in what order: bytes of one side of one connection, and what must have been written before them.

Observers pair answers with questions, and exchanges get their numbers, by the order in which bytes come in the file, which is
not always that of their times: of two threads of a process, one may report later what it wrote earlier.  So the order that
matters is kept by dependencies, and the times decide the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tlscap.http.events import Header, Side
from tlscap.model import GapReason
from tlscap.replay.recording import Hole, Piece, RecordedMessage

Part = bytes | Hole
"""Bytes, or that so many are missing."""


@dataclass(slots=True, eq=False)
class Step:
    """What one call wrote or read."""

    time_ns: int
    side: Side
    parts: tuple[Part, ...]
    after: list[Step] = field(default_factory=list)
    """What comes before it in the file."""
    ends_side: bool = False
    """It was the last of its side, which was closed in an orderly way."""


class Lane:
    """Steps of which each comes after the one before: a direction, or a message of HTTP/2."""

    def __init__(self, side: Side, steps: list[Step]) -> None:
        """Every step that is added goes to ``steps``, too."""
        self.side = side
        self.last: Step | None = None
        self._steps = steps

    def add(self, time_ns: int, *parts: Part, after: Iterable[Step | None] = ()) -> Step:
        """Add what passed at a time."""
        step = Step(time_ns, self.side, parts, [one for one in (self.last, *after) if one])
        self.last = step
        self._steps.append(step)
        return step


@dataclass(slots=True)
class Passing:
    """A piece of a body, or a hole in it, that was made a step."""

    what: Piece | Hole
    step: Step


def content(message: RecordedMessage) -> Iterator[Piece | Hole]:
    """Yield what a body consists of, in order; holes that nobody placed come last."""
    holes = sorted(message.holes, key=lambda hole: hole.offset)
    placed = 0
    passed = 0
    for piece in message.pieces:
        while placed < len(holes) and holes[placed].offset <= passed:
            yield holes[placed]
            placed += 1
        if piece.data:
            yield piece
            passed += len(piece.data)
    yield from holes[placed:]
    if unplaced := message.missing - sum(hole.length for hole in holes):
        yield Hole(passed, unplaced, GapReason.UNKNOWN, message.ended_ns)


def interleave(one: Sequence[Passing], other: Sequence[Passing]) -> None:
    """Keep the order of the two bodies of an exchange, as far as the pieces tell (`Piece.other_bytes`)."""
    sides = (one, other)
    at = [0, 0]
    passed = [0, 0]
    last: Step | None = None
    while at[0] < len(one) and at[1] < len(other):
        ready = [_is_ready(sides[side][at[side]].what, passed[1 - side]) for side in (0, 1)]
        if ready[0] != ready[1]:
            side = 0 if ready[0] else 1
        else:
            side = int(other[at[1]].what.time_ns < one[at[0]].what.time_ns)
        passing = sides[side][at[side]]
        if last and last is not passing.step:
            passing.step.after.append(last)
        last = passing.step
        at[side] += 1
        passed[side] += len(passing.what.data) if isinstance(passing.what, Piece) else 0
    rest = next((sides[side][at[side]] for side in (0, 1) if at[side] < len(sides[side])), None)
    if rest and last:
        rest.step.after.append(last)


def _is_ready(what: Piece | Hole, other_passed: int) -> bool:
    return isinstance(what, Hole) or what.other_bytes <= other_passed


# --- Lengths ---


def stored_length(message: RecordedMessage) -> int:
    """Return how many bytes of a body are there."""
    return sum(len(piece.data) for piece in message.pieces)


def declared_length(headers: Iterable[Header]) -> int | None:
    """Return what the first Content-Length says, as observers read it; ``None``: there is none that is a number."""
    for name, value in headers:
        if name.lower().rstrip() == b"content-length":
            first = value.split(b",")[0].strip()
            return int(first) if first.isdigit() and len(first) <= 18 else None
    return None


def fitting_length(message: RecordedMessage) -> int:
    """Return what Content-Length has to say of a body, so that it is as whole or as incomplete as it was."""
    length = stored_length(message) + message.missing
    if message.complete:
        return length
    # What is missing is all that is known to be missing; the end may be, too.
    return max(declared_length(message.headers) or 0, length if message.missing else length + 1)


def with_length(headers: Sequence[Header], length: int) -> tuple[Header, ...]:
    """Return fields whose Content-Length, if there is one, is ``length``."""
    if declared_length(headers) in (None, length):
        return tuple(headers)
    text = b"%d" % length
    return tuple((name, text if name.lower().rstrip() == b"content-length" else value) for name, value in headers)
