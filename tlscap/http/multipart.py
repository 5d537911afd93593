"""Multipart bodies (RFC 2046, 5.1): forms (RFC 7578), byte ranges, mixed, related.

A part's content is as transferred: a Content-Transfer-Encoding is not undone, and a part that is multipart itself is
one piece.  The line break in front of a boundary belongs to the boundary; a bare LF is accepted for it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from tlscap.http.events import Header, Side
from tlscap.http.http1 import parse_headers
from tlscap.http.messages import (
    BYTES_MISSING,
    MESSAGE_LIMIT,
    UNPARSED,
    AppMessage,
    Draft,
    field_values,
    parameters,
)

BOUNDARY_MAX: Final = 256
"""Longest boundary in bytes that is looked for.  RFC 2046 allows 70."""

HEADERS_MAX: Final = 1 << 16
"""Longest block of a part's header fields, in bytes."""

_HOLD: Final = -1
_NO: Final = -2
_LINE_BREAK = re.compile(rb"[\r\n]")
_BOUNDARY_END = re.compile(rb"--|[ \t]{0,64}+\r?\n")
_BOUNDARY_END_PREFIX = re.compile(rb"(?:-|[ \t]{0,64}+\r?)\Z")
_CLOSING_END = re.compile(rb"[ \t\r]*+(\n?)")


def usable_boundary(boundary: bytes) -> bool:
    """Tell whether a body can be split at this boundary."""
    return 0 < len(boundary) <= BOUNDARY_MAX and not _LINE_BREAK.search(boundary)


def part_names(headers: tuple[Header, ...]) -> tuple[str, str]:
    """Return a part's name and file name by its Content-Disposition (RFC 7578, 4.2; RFC 6266), or empty strings."""
    values = field_values(headers, b"content-disposition")
    options = parameters(values[0])[1] if values else {}
    filename = _extended(options[b"filename*"]) if b"filename*" in options else _text(options.get(b"filename", b""))
    return _text(options.get(b"name", b"")), filename


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _extended(value: bytes) -> str:
    """Decode ``UTF-8'en'%e2%82%ac`` (RFC 8187, formerly 5987)."""
    charset, quote, rest = value.partition(b"'")
    text = unquote_to_bytes(rest.partition(b"'")[2] if quote else value)
    return text.decode("latin-1") if charset.lower() == b"iso-8859-1" else _text(text)


class MultipartDecoder:
    """A body of parts.  See `tlscap.http.messages.MessageDecoder`.

    What stands before the first boundary and after the last comes out as ``preamble`` and ``epilogue``.  A hole in a
    part ends it incomplete; what follows is unparsed up to the next boundary.
    """

    def __init__(self, side: Side, boundary: bytes, *, limit: int = MESSAGE_LIMIT) -> None:
        self.between = 0
        self._side = side
        self._limit = limit
        self._dash = b"--" + boundary
        self._delimiter = b"\r\n" + self._dash
        self._messages: list[AppMessage] = []
        self._time_ns = 0
        self._held = b""  # what may be the beginning of a boundary
        self._state = self._content
        self._line_start = True  # a boundary may stand right here, without a line break
        self._draft = self._new("preamble")
        self._block = bytearray()  # the part's header fields so far
        self._block_line = 0  # where the last line in it begins

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the parts that ended."""
        if not data:
            return []
        self._time_ns = time_ns
        if not (self._draft.length or self._held):
            self._draft.started_ns = time_ns
        data = self._held + data
        self._held = b""
        pos = 0
        while pos < len(data):
            pos = self._state(data, pos)
        return self._taken()

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if length <= 0:
            return []
        self._time_ns = time_ns
        self._flush()
        self._draft.hole(length)
        if self._state == self._content and self._draft.kind != UNPARSED:
            self._emit()
            self._open(UNPARSED)
            self._draft.cut(BYTES_MISSING)
            self._line_start = True  # what was lost may have ended with a line
        return self._taken()

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end.  Without the closing boundary the last part is incomplete."""
        self._flush()
        if self._state == self._content:
            self._draft.cut(why or ("no boundary" if self._draft.kind == "preamble" else "no closing boundary"))
        self._emit()
        return self._taken()

    # --- States: each takes some of data[pos:] and returns the new position ---

    def _content(self, data: bytes, pos: int) -> int:
        """Take content up to a boundary, or up to what may become one."""
        if self._line_start:
            reached = self._boundary(data, pos, pos)
            if reached >= 0:
                return reached
            if reached == _HOLD:
                return self._hold(data, pos)
            self._line_start = False
        search = pos
        while (newline := data.find(b"\n" + self._dash, search)) >= 0:
            begin = newline - 1 if newline > pos and data[newline - 1] == 0x0D else newline
            reached = self._boundary(data, newline + 1, begin, pos)
            if reached >= 0:
                return reached
            if reached == _HOLD:
                self._draft.add(data[pos:begin])
                return self._hold(data, begin)
            search = newline + 1
        begin = self._delimiter_prefix(data, pos)
        self._draft.add(data[pos:begin])
        return self._hold(data, begin)

    def _headers(self, data: bytes, pos: int) -> int:
        """Take one line of a part's header fields."""
        newline = data.find(b"\n", pos)
        reached = newline + 1 if newline >= 0 else len(data)
        reached = min(reached, pos + HEADERS_MAX + 1 - len(self._block))
        self._block += data[pos:reached]
        if len(self._block) > HEADERS_MAX:
            self._draft.note("header fields too long")
            self._begin_content(len(self._block))
        elif newline >= 0:
            if bytes(self._block[self._block_line :]) in (b"\n", b"\r\n"):
                self._begin_content(len(self._block))
            elif not self._boundary_line():
                self._block_line = len(self._block)
        return reached

    def _boundary_line(self) -> bool:
        """Tell whether the last line of the block is a boundary rather than a header field; if so, react to it."""
        line = bytes(self._block[self._block_line :])
        if not (line.startswith(self._dash) and _BOUNDARY_END.match(line, len(self._dash))):
            return False
        self._draft.note("no blank line after its header fields")
        self._begin_content(self._block_line)
        at = 0
        while at < len(line):  # it is read again as what follows content
            at = self._state(line, at)
        return True

    def _closing(self, data: bytes, pos: int) -> int:
        """Take what is left of the closing boundary's line."""
        blanks = _CLOSING_END.match(data, pos)
        assert blanks, "it matches anything"  # noqa: S101
        self.between += blanks.end() - pos
        if blanks[1] or blanks.end() < len(data):
            self._state = self._epilogue
        return blanks.end()

    def _epilogue(self, data: bytes, pos: int) -> int:
        self._draft.add(data[pos:])
        return len(data)

    # --- Boundaries ---

    def _boundary(self, data: bytes, at: int, begin: int, content: int = -1) -> int:
        """Look for a boundary at ``at``; ``begin`` is where the line break before it begins, ``content`` the content.

        When there is one, end what it ends, begin what it begins, and return where it ends; else ``_NO`` or ``_HOLD``.
        """
        if not data.startswith(self._dash, at):
            short = len(data) - at < len(self._dash)
            return _HOLD if short and self._dash.startswith(data[at:]) else _NO
        after = at + len(self._dash)
        end = _BOUNDARY_END.match(data, after)
        if not end:
            return _HOLD if _BOUNDARY_END_PREFIX.match(data, after) else _NO
        if content >= 0:
            self._draft.add(data[content:begin])
        self._emit()
        if end[0] == b"--":
            self.between += end.end() - begin
            self._open("epilogue")
            self._state = self._closing
        else:
            self._open("part")
            self._draft.length = end.end() - begin
            self._state = self._headers
        return end.end()

    def _delimiter_prefix(self, data: bytes, pos: int) -> int:
        """Return where, at the end of ``data``, a boundary with its line break may have begun."""
        for match in _LINE_BREAK.finditer(data, max(pos, len(data) - len(self._delimiter))):
            rest = data[match.start() :]
            if self._delimiter.startswith(rest) or self._delimiter.startswith(rest, 1):
                return match.start()
        return len(data)

    def _hold(self, data: bytes, pos: int) -> int:
        self._held = data[pos:]
        return len(data)

    # --- Parts ---

    def _begin_content(self, length: int) -> None:
        """Read the first ``length`` bytes of the block as header fields; content follows."""
        block = bytes(self._block[:length])
        self._draft.length += length
        self._block.clear()
        self._block_line = 0
        fields = block.rstrip(b"\r\n")
        if fields:
            self._draft.headers, notes = parse_headers(fields + b"\r\n\r\n")
            for note in notes:
                self._draft.note(note)
            self._draft.name, self._draft.filename = part_names(self._draft.headers)
        self._state = self._content
        self._line_start = True

    def _flush(self) -> None:
        """Give up waiting: what was held of a boundary is content, what was held of header fields is all of them."""
        if self._state == self._headers and not self._boundary_line():
            self._draft.cut("ended inside of its header fields")
            self._begin_content(len(self._block))
        self._draft.add(self._held)
        self._held = b""

    def _new(self, kind: str) -> Draft:
        return Draft(kind, self._side, self._time_ns, self._limit)

    def _open(self, kind: str) -> None:
        self._draft = self._new(kind)

    def _emit(self) -> None:
        """End the draft; one of no bytes is none, unless it is a part."""
        if self._draft.length or self._draft.kind == "part":
            self._messages.append(self._draft.done(self._time_ns))

    def _taken(self) -> list[AppMessage]:
        messages = self._messages
        self._messages = []
        return messages
