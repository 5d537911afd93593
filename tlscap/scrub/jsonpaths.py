"""Where the values of a JSON text stand, and paths that choose among them (a small part of RFC 9535).

``$.user.email``, ``items[*].id``, ``items[0].id``, ``..password``; the leading ``$.`` may be left out, ``*`` is any name or index, and
what lies below a chosen value is chosen, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from tlscap.errors import UsageError
from tlscap.scrub.views import unescaped_json

_DEPTH_MAX: Final = 200
_TOKEN = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"|([{}\[\],:"])|([^\s{}\[\],:"]+)', re.DOTALL)
_SEGMENT = re.compile(r"(\.\.)|\.?(\*)|\.?\[(?:(\*)|([0-9]+)|'([^']*)'|\"([^\"]*)\")\]|\.?([^.\[\]*]+)")
_LITERALS: Final = frozenset({b"true", b"false", b"null"})

_Key = bytes | int
Path = tuple[str | int | None, ...]
"""Names, indices, ``"*"`` for any, ``None`` for any number of any."""


class Leaf(NamedTuple):
    """A value that holds no others."""

    path: tuple[_Key, ...]
    start: int
    end: int
    """Of the value; of a string without its quotes."""
    is_string: bool


def compile_path(text: str) -> Path:
    """Read a path.  Raises `UsageError`."""
    rest = text.removeprefix("$")
    path: list[str | int | None] = []
    at = 0
    while at < len(rest):
        match = _SEGMENT.match(rest, at)
        if not match or match.end() == at:
            raise UsageError(f"no JSON path: {text!r}", hint="paths look like $.user.email or items[*].id")
        deep, star, any_index, index, quoted, double, name = match.groups()
        if deep:
            path.append(None)
        elif star or any_index:
            path.append("*")
        elif index is not None:
            path.append(int(index))
        else:
            path.append(next(part for part in (quoted, double, name) if part is not None))
        at = match.end()
    if not path:
        raise UsageError(f"the JSON path {text!r} chooses everything", hint="name what is to be scrubbed")
    return tuple(path)


def chosen(path: tuple[_Key, ...], wanted: Path) -> bool:
    """Tell whether a value is what a path names, or lies below it."""
    if not wanted:
        return True
    head, rest = wanted[0], wanted[1:]
    if head is None:
        return any(chosen(path[begin:], rest) for begin in range(len(path) + 1))
    if not path:
        return False
    fits = head == "*" or path[0] == (head.encode() if isinstance(head, str) else head)
    return fits and chosen(path[1:], rest)


def leaves(text: bytes) -> Iterator[Leaf]:
    """Yield the values of a JSON text, or of several one after the other.  What is no JSON ends it."""
    stack: list[list[_Key | None]] = []  # of each open container the index, or the name that waits for its value
    for token in _TOKEN.finditer(text):
        string, mark, word = token.groups()
        if mark in (b"{", b"["):
            stack.append([None if mark == b"{" else 0])
            if len(stack) > _DEPTH_MAX:
                return
        elif mark in (b"}", b"]"):
            if not stack:
                return
            stack.pop()
        elif mark == b",":
            if stack:
                here = stack[-1]
                here[0] = here[0] + 1 if isinstance(here[0], int) else None
        elif mark == b":":
            continue
        elif mark:  # a string without its end
            return
        elif string is not None and stack and stack[-1][0] is None:
            stack[-1][0] = unescaped_json(string)
        elif stack and word not in _LITERALS:
            path = tuple(here[0] for here in stack if here[0] is not None)
            group = 1 if string is not None else 3
            yield Leaf(path, token.start(group), token.end(group), string is not None)
