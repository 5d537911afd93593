"""Bodies that are lines: server-sent events (WHATWG HTML, 9.2) and newline-delimited JSON.

Both go on after a hole.  What begins before it is incomplete; so is what ends after it, as its beginning may be missing.
"""

from __future__ import annotations

import re
from typing import Final

from tlscap.http.events import Side
from tlscap.http.messages import MESSAGE_LIMIT, UNPARSED, AppMessage, Draft

_LINE_END = re.compile(rb"[\r\n]")
_FIELD = re.compile(rb"(?:data|event|id|retry)?:|\Z")  # what a line begins with, when it is one
_BOM: Final = b"\xef\xbb\xbf"
_NAME_MAX: Final = 1000
_PREFIX_MAX: Final = 16  # a byte order mark, a field's name, colon and blank: not part of what is kept

TORN: Final = "its beginning may be missing"
"""The note of what ends after a hole."""


class EventStreamDecoder:
    """A ``text/event-stream`` body.  See `tlscap.http.messages.MessageDecoder`.

    A comment is given as soon as its line ended, even inside of an event.  An event that the end of the body cut is
    given incomplete, where a browser drops it.
    """

    def __init__(self, side: Side, *, limit: int = MESSAGE_LIMIT) -> None:
        self.between = 0
        self._side = side
        self._limit = limit
        self._messages: list[AppMessage] = []
        self._time_ns = 0
        self._line = bytearray()  # under way: its beginning
        self._line_size = 0
        self._line_ns = 0
        self._after_cr = False  # an LF that comes now belongs to the line end before it
        self._first = True  # nothing but the first line may begin with a byte order mark
        self._after_hole = False  # the line may be the rest of one
        self._torn = False  # the event may be the rest of one
        self._event: Draft | None = None
        self._length = 0  # of the event's lines
        self._has_data = False
        self._fields: dict[bytes, bytes] = {}

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the messages that ended."""
        if not data:
            return []
        self._time_ns = time_ns
        pos = 0
        if self._after_cr:
            pos = self._skip_lf(data, pos)
        while pos < len(data):
            end = _LINE_END.search(data, pos)
            reached = end.start() if end else len(data)
            self._collect(data[pos:reached])
            pos = reached
            if end:
                pos += 1
                self._end_line(1)
                if data[reached : reached + 1] == b"\r":
                    self._after_cr = True
                    pos = self._skip_lf(data, pos)
        return self._taken()

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if length <= 0:
            return []
        self._time_ns = time_ns
        self._after_cr = False
        self._end_partial_line()
        draft = self._event
        if draft is None:
            draft = Draft(UNPARSED, self._side, time_ns, self._limit)
            draft.hole(length)
            self._emit(draft)
        else:
            draft.hole(length)
            self._length += length
            self._end_event(draft)
        self._first = False
        self._after_hole = self._torn = True
        return self._taken()

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end.  An event without a blank line after it is incomplete."""
        self._end_partial_line()
        if self._event:
            self._event.cut(why or "ended inside of it")
            self._end_event(self._event)
        return self._taken()

    # --- Lines ---

    def _skip_lf(self, data: bytes, pos: int) -> int:
        if pos == len(data):
            return pos
        self._after_cr = False
        if data[pos] != 0x0A:
            return pos
        self._count(1)
        return pos + 1

    def _collect(self, data: bytes) -> None:
        if not self._line_size:
            self._line_ns = self._time_ns
        self._line_size += len(data)
        self._line += data[: max(0, self._limit + _PREFIX_MAX - len(self._line))]

    def _end_partial_line(self) -> None:
        if self._line_size:
            self._end_line(0)

    def _end_line(self, terminator: int) -> None:
        """Take the line under way, whose end took ``terminator`` bytes; 0: there was none."""
        line = bytes(self._line)
        length = self._line_size + terminator
        beyond = self._line_size - len(line)  # bytes of it that are not kept
        self._line.clear()
        self._line_size = 0
        if self._first:
            line = line.removeprefix(_BOM)
            self._first = False
        after_hole, self._after_hole = self._after_hole, False
        if after_hole and not _FIELD.match(line):
            draft = Draft(UNPARSED, self._side, self._line_ns, self._limit)
            draft.cut(TORN)
            draft.add(line)
            draft.pass_by(beyond)
            draft.length = length
            self._emit(draft)
        elif line.startswith(b":"):
            self._comment(line[1:].removeprefix(b" "), beyond, length, whole=terminator > 0)
        elif line:
            self._field(line, beyond)
            self._length += length
        else:
            self._count(length)
            if terminator:
                if self._event:
                    self._end_event(self._event)
                self._torn = False

    def _comment(self, text: bytes, beyond: int, length: int, *, whole: bool) -> None:
        draft = Draft("comment", self._side, self._line_ns, self._limit)
        draft.add(text)
        draft.pass_by(beyond)
        draft.length = length
        if not whole:
            draft.cut("its line has no end")
        self._emit(draft)

    def _field(self, line: bytes, beyond: int) -> None:
        """Process a field (9.2.6)."""
        event = self._event
        if event is None:
            event = self._event = Draft("fields", self._side, self._line_ns, self._limit)
            event.name = "message"
            if self._torn:
                event.cut(TORN)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            if self._has_data:
                event.add(b"\n")
            self._has_data = True
            event.kind = "event"
            event.add(value)
            event.pass_by(beyond)
        elif name == b"event":
            event.name = value[:_NAME_MAX].decode("utf-8", "replace") or "message"
        elif name == b"id" and b"\0" in value:
            event.note("id with a NUL, hence ignored")
        elif name == b"retry" and not value.isdigit():
            event.note("retry is no number, hence ignored")
        elif name in (b"id", b"retry"):
            self._fields[name] = value
        else:
            event.note("field that is not known")

    # --- Events ---

    def _end_event(self, event: Draft) -> None:
        event.headers = tuple(self._fields.items())
        event.length = self._length
        self._emit(event)
        self._event = None
        self._length = 0
        self._has_data = False
        self._fields = {}

    def _count(self, length: int) -> None:
        if self._event:
            self._length += length
        else:
            self.between += length

    def _emit(self, draft: Draft) -> None:
        self._messages.append(draft.done(self._time_ns))

    def _taken(self) -> list[AppMessage]:
        messages = self._messages
        self._messages = []
        return messages


class LineDecoder:
    """A body of newline-delimited JSON.  See `tlscap.http.messages.MessageDecoder`.

    Blank lines are no messages.  The last line needs no end, if the body's end was an orderly one.
    """

    def __init__(self, side: Side, *, limit: int = MESSAGE_LIMIT) -> None:
        self.between = 0
        self._side = side
        self._limit = limit
        self._time_ns = 0
        self._line: Draft | None = None
        self._cr = False  # the last byte, which is part of the line unless an LF follows
        self._torn = False

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the lines that ended."""
        self._time_ns = time_ns
        messages: list[AppMessage] = []
        pos = 0
        while pos < len(data):
            newline = data.find(b"\n", pos)
            reached = newline if newline >= 0 else len(data)
            self._collect(data[pos:reached])
            pos = reached
            if newline >= 0:
                pos += 1
                messages += self._end_line(1 + self._cr)
        return messages

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if length <= 0:
            return []
        self._time_ns = time_ns
        self._release_cr()
        draft = self._line or Draft(UNPARSED, self._side, time_ns, self._limit)
        draft.hole(length)
        self._line = None
        self._torn = True
        return [draft.done(time_ns)]

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end."""
        if self._line and why:
            self._line.cut(why)
        return self._end_line(int(self._cr))

    def _collect(self, piece: bytes) -> None:
        if not piece:
            return
        self._release_cr()
        if piece.endswith(b"\r"):
            self._cr = True
            piece = piece[:-1]
        if piece:
            self._draft().add(piece)

    def _release_cr(self) -> None:
        if self._cr:
            self._draft().add(b"\r")
            self._cr = False

    def _draft(self) -> Draft:
        if self._line is None:
            self._line = Draft("line", self._side, self._time_ns, self._limit)
            if self._torn:
                self._line.cut(TORN)
        return self._line

    def _end_line(self, terminator: int) -> list[AppMessage]:
        line, self._line = self._line, None
        self._cr = self._torn = False
        if line is None:
            self.between += terminator
            return []
        line.length += terminator
        message = line.done(self._time_ns)
        if message.data.strip() or not message.complete:
            return [message]
        self.between += message.length
        return []
