r"""A text with its escapes undone, and where each byte of it stood: percent-encoding, JSON's ``\u0041``, HTML's ``&#65;``.

Secrets are looked for in every view of a text, so that it does not matter which characters an encoder chose to escape, or how many
encoders there were, one around the other.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

_DEPTH: Final = 3
_VIEWS_MAX: Final = 8
_SIMPLE: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}

_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_FORM = re.compile(rb"%[0-9A-Fa-f]{2}|\+")
_JSON = re.compile(rb'\\(?:u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|["\\/bfnrt])')
_HTML = re.compile(rb"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|amp|lt|gt|quot|apos);")


@dataclass(slots=True)
class View:
    """A text as it is, or with escapes undone."""

    data: bytes
    percent: bool = False
    """Percent-encoding was undone on the way: what is put in its place needs it again."""
    _parent: View | None = None
    _at: list[int] = field(default_factory=list)  # where each unescaped character begins here
    _spans: list[tuple[int, int, int]] = field(default_factory=list)  # its length here, and its place in the parent

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the text itself of what stands here from ``start`` to ``end``."""
        if self._parent is None:
            return start, end
        return self._parent.origin(self._start(start), self._end(end))

    def _start(self, position: int) -> int:
        index = bisect.bisect_right(self._at, position) - 1
        if index < 0:
            return position
        length, begin, stop = self._spans[index]
        beyond = position - self._at[index] - length
        return begin if beyond < 0 else stop + beyond

    def _end(self, position: int) -> int:
        index = bisect.bisect_left(self._at, position) - 1
        if index < 0:
            return position
        length, _, stop = self._spans[index]
        return stop + max(0, position - self._at[index] - length)


def views(text: bytes) -> Iterator[View]:
    """Yield the text itself and every other reading of it that undoing escapes gives."""
    seen = {text}
    level = [View(text)]
    for _ in range(_DEPTH):
        yield from level
        following = []
        for view in level:
            for pattern, needed, undo in _DECODERS:
                if needed in view.data and (other := _undone(view, pattern, undo)) and other.data not in seen:
                    seen.add(other.data)
                    following.append(other)
        level = following[:_VIEWS_MAX]
    yield from level


def _undone(parent: View, pattern: re.Pattern[bytes], undo: Callable[[bytes], bytes]) -> View | None:
    at: list[int] = []
    spans: list[tuple[int, int, int]] = []
    parts: list[bytes] = []
    reached = position = 0
    for match in pattern.finditer(parent.data):
        plain = undo(match[0])
        literal = parent.data[reached : match.start()]
        position += len(literal)
        at.append(position)
        spans.append((len(plain), match.start(), match.end()))
        parts += (literal, plain)
        position += len(plain)
        reached = match.end()
    if not at:
        return None
    parts.append(parent.data[reached:])
    return View(b"".join(parts), parent.percent or pattern in (_PERCENT, _FORM), parent, at, spans)


def _undo_percent(text: bytes) -> bytes:
    return b" " if text == b"+" else bytes([int(text[1:], 16)])


def _undo_json(text: bytes) -> bytes:
    if text[1:2] == b"u":
        units = bytes.fromhex(text.replace(b"\\u", b"").decode())
        return units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")
    return _SIMPLE.get(text[1:2], text[1:2])


def _undo_html(text: bytes) -> bytes:
    name = text[1:-1]
    if name[:1] != b"#":
        return _NAMED[name]
    number = int(name[2:], 16) if name[1:2] in b"xX" else int(name[1:])  # noqa: FURB166 - not Python's prefix
    return chr(number).encode("utf-8", "surrogatepass") if number < 0x110000 else text


_DECODERS: Final = (
    (_PERCENT, b"%", _undo_percent),
    (_FORM, b"+", _undo_percent),
    (_JSON, b"\\", _undo_json),
    (_HTML, b"&", _undo_html),
)


def unescaped_json(text: bytes) -> bytes:
    """Return what stands between the quotes of a JSON string."""
    return _JSON.sub(lambda match: _undo_json(match[0]), text) if b"\\" in text else text


def unescaped_form(text: bytes) -> bytes:
    """Return a name or a value of a query or a form."""
    return _FORM.sub(lambda match: _undo_percent(match[0]), text) if b"%" in text or b"+" in text else text


def unescaped_html(text: bytes) -> bytes:
    """Return the text that XML or HTML stands for."""
    return _HTML.sub(lambda match: _undo_html(match[0]), text) if b"&" in text else text
