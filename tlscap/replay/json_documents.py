"""JSON bodies: read, and compared value by value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from tlscap.replay.json_paths import Steps

_EXACT_INTEGER: Final = 1 << 53  # beyond it, not every integer is a float

ABSENT: Final = object()
"""Stands for the value that one of two documents does not have."""


class Change(NamedTuple):
    """One value that is not the same in two documents."""

    steps: Steps
    old: Any
    """`ABSENT` when only the new document has it."""
    new: Any
    """`ABSENT` when only the old one has it."""


def parse_json(body: bytes, *, number: Callable[[str], Any] = float) -> Any:
    """Return a body as JSON; what is no number, such as NaN, as text.  Raises `ValueError` for what is no JSON.

    ``number`` makes numbers of those with a fraction or an exponent.
    """
    try:
        return json.loads(body, parse_constant=str, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain_number(text: str) -> int | float:
    """Make 1.0 the number 1: JSON has but one kind of number.  For ``parse_json(..., number=plain_number)``."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < _EXACT_INTEGER else number


def same(old: Any, new: Any) -> bool:
    """Compare two values of which one at least holds no others: 1 is 1.0, but not true."""
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def changes(old: Any, new: Any) -> Iterator[Change]:
    """Yield what differs, in the order of the old document; what only the new one has comes after the other members."""
    levels = [iter([Change((), old, new)])]
    while levels:
        change = next(levels[-1], None)
        if change is None:
            levels.pop()
        elif isinstance(change.old, dict) and isinstance(change.new, dict):
            levels.append(_members(change.steps, change.old, change.new))
        elif isinstance(change.old, list) and isinstance(change.new, list):
            levels.append(_elements(change.steps, change.old, change.new))
        elif not same(change.old, change.new):
            yield change


def _members(steps: Steps, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys((*old, *new)):
        yield Change((*steps, name), old.get(name, ABSENT), new.get(name, ABSENT))


def _elements(steps: Steps, old: list[Any], new: list[Any]) -> Iterator[Change]:
    for index, (one, other) in enumerate(zip_longest(old, new, fillvalue=ABSENT)):
        yield Change((*steps, index), one, other)
