r"""A text with its escapes undone, and where each byte of it stood: percent-encoding, JSON's ``\u0041``, HTML's ``&#65;``.

Secrets are looked for in every view of a text, so that it does not matter which characters an encoder chose to escape, or how many
encoders there were, one around the other.

Of what is no text (images, archives), the first view has only the texts that stand in it, as ``strings`` shows them: noise is full of
characters that look like escapes, and has no names and values.
"""

from __future__ import annotations

import bisect
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

_DEPTH: Final = 3
_VIEWS_MAX: Final = 8
_SIMPLE: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}

_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_FORM = re.compile(rb"%[0-9A-Fa-f]{2}|\+")
_JSON = re.compile(rb'\\(?:u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|["\\/bfnrt])')
_HTML = re.compile(rb"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|amp|lt|gt|quot|apos);")


_BINARY_MIN: Final = 4096  # bytes below which there is too little to tell noise from text, and little to gain
_CONTROLS: Final = bytes(byte for byte in range(32) if byte not in b"\t\n\r\x1b") + b"\x7f"
_CONTROLS_SHARE: Final = 64  # more control characters than every 64th byte: no text, in whatever character set
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{8}[\t\n\r\x20-\x7e\x80-\xff]*+")


def is_binary(text: bytes) -> bool:
    """Tell whether this is no text: noise of which every ninth byte is a control character, more or less."""
    if len(text) < _BINARY_MIN:
        return False
    return (len(text) - len(text.translate(None, _CONTROLS))) * _CONTROLS_SHARE > len(text)


def _numbers() -> array[int]:
    return array("q")  # a list would take ten times the memory of the text


@dataclass(slots=True)
class View:
    """A text as it is, or with escapes undone, or what is text of it."""

    data: bytes
    percent: bool = False
    """Percent-encoding was undone on the way: what is put in its place needs it again."""
    _parent: View | None = None
    # Of each change: where it begins here, its length here, and its place in the parent.
    _at: array[int] = field(default_factory=_numbers)
    _length: array[int] = field(default_factory=_numbers)
    _begin: array[int] = field(default_factory=_numbers)
    _stop: array[int] = field(default_factory=_numbers)

    @property
    def is_derived(self) -> bool:
        """Whether it is not the text itself."""
        return self._parent is not None

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the text itself of what stands here from ``start`` to ``end``."""
        if self._parent is None:
            return start, end
        return self._parent.origin(self._start(start), self._end(end))

    def _start(self, position: int) -> int:
        index = bisect.bisect_right(self._at, position) - 1
        if index < 0:
            return position
        beyond = position - self._at[index] - self._length[index]
        return self._begin[index] if beyond < 0 else self._stop[index] + beyond

    def _end(self, position: int) -> int:
        index = bisect.bisect_left(self._at, position) - 1
        if index < 0:
            return position
        return self._stop[index] + max(0, position - self._at[index] - self._length[index])

    def _changed(self, position: int, length: int, begin: int, stop: int) -> None:
        """Note that ``length`` bytes here are those from ``begin`` to ``stop`` of the parent."""
        self._at.append(position)
        self._length.append(length)
        self._begin.append(begin)
        self._stop.append(stop)


def views(text: bytes) -> list[View]:
    """Return the text itself (if it is none: the texts in it) and every other reading of it that undoing escapes gives."""
    whole = View(text)
    found = level = [_texts(whole) if is_binary(text) else whole]
    seen = {level[0].data}
    for _ in range(_DEPTH):
        following = []
        for view in level:
            for pattern, needed, undo in _DECODERS:
                if needed in view.data and (other := _undone(view, pattern, undo)) and other.data not in seen:
                    seen.add(other.data)
                    following.append(other)
        level = following[:_VIEWS_MAX]
        found = found + level
    return found


def _texts(parent: View) -> View:
    """Return the texts that stand among other bytes, with a zero byte between them."""
    view = View(b"", parent.percent, parent)
    parts: list[bytes] = []
    reached = position = 0
    for match in _TEXT.finditer(parent.data):
        start, end = match.span()
        if start > reached:
            view._changed(position, 1, reached, start)
            parts.append(b"\0")
            position += 1
        parts.append(match[0])
        position += end - start
        reached = end
    if reached < len(parent.data):
        view._changed(position, 1, reached, len(parent.data))
        parts.append(b"\0")
    view.data = b"".join(parts)
    return view


def _undone(parent: View, pattern: re.Pattern[bytes], undo: Callable[[bytes], bytes]) -> View | None:
    match = pattern.search(parent.data)
    if not match:
        return None
    view = View(b"", parent.percent or pattern in (_PERCENT, _FORM), parent)
    parts: list[bytes | memoryview] = []
    literal = memoryview(parent.data)
    reached = position = 0
    for match in pattern.finditer(parent.data):
        begin, stop = match.span()
        plain = undo(match[0])
        position += begin - reached
        view._changed(position, len(plain), begin, stop)
        parts += (literal[reached:begin], plain)
        position += len(plain)
        reached = stop
    parts.append(literal[reached:])
    view.data = b"".join(parts)
    return view


@lru_cache(512)
def _undo_percent(text: bytes) -> bytes:
    return b" " if text == b"+" else bytes([int(text[1:], 16)])


@lru_cache(4096)
def _undo_json(text: bytes) -> bytes:
    if text[1:2] == b"u":
        units = bytes.fromhex(text.replace(b"\\u", b"").decode())
        return units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")
    return _SIMPLE.get(text[1:2], text[1:2])


@lru_cache(4096)
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
