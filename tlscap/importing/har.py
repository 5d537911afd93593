"""HAR files (HTTP Archive 1.1 and 1.2), as browsers and proxies export them, to the items of flows.

A HAR file tells requests and responses, not bytes.  The bytes here are HTTP/1.1 made from what it tells, so that everything
that reads captures can read them:

- Header fields are those of the entry, in their order, except: Content-Length is what the body really has; Transfer-Encoding
  is left out, and of responses Content-Encoding, because a HAR file holds bodies decoded.  HTTP/2's pseudo fields are left
  out, and ``:authority`` becomes Host.
- HTTP/2 and HTTP/3 are written as HTTP/1.1.  `HarFile.notes` says so, and what else is not as it was sent.
- Text bodies are encoded in the charset of their type, else as UTF-8.  A form's fields are written out where the
  text is missing.  A body of which only the size is told is a hole of that size.
- WebSocket messages, which Chrome adds as ``_webSocketMessages``, are put into frames, those of the client with a mask of zeros.

Times are computed from ``startedDateTime`` and ``timings``.  The server's address is ``serverIPAddress``; nothing tells
the client's, and often not the server's: both are marked as placeholders by whoever writes the flow.  The SNI is the
URL's host name if the scheme is https.

HTTP/1 entries with the same ``connection`` (and server) are one flow.  Any other entry is a flow of its own: streams
of HTTP/2 overlap, HTTP/1.1 can't.

An entry that can't be understood is a `CorruptError` that names it, counted from 1.  The file is read entry by entry.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import math
import re
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final

from tlscap.errors import CorruptError, TruncatedError
from tlscap.importing.wire import (
    TOKEN,
    EntryError,
    Headers,
    Target,
    Wire,
    client_flow,
    is_bodiless,
    one_line,
    request_head,
    response_head,
    values,
    websocket_frame,
)
from tlscap.model import Direction, Flow, FlowOpened, Item, Process

READ: Final = 1 << 20
MAX_VALUE: Final = 1 << 28
"""Longest entry, in characters, that is read."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS = 1e12  # thirty years: a time longer than that is a mistake
_MAX_SIZE = 1 << 40
_MOST_OPEN = 4096  # connections that wait for another entry

_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.IGNORECASE)
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})  # Python's own
_SPACE = re.compile(r"[ \t\r\n]*")

NOTE_VERSION: Final = "HTTP/2 and HTTP/3 entries are written as HTTP/1.1"
NOTE_CODING: Final = "bodies are written as the file holds them, decoded, without their Content-Encoding"
NOTE_CHARSET: Final = "some bodies can't be written in their own charset and are UTF-8"
NOTE_FORM: Final = "some request bodies are put together from the fields of their form"


def is_har(head: bytes) -> bool:
    """Tell from a file's first bytes whether it may be a HAR file: a JSON object."""
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


class HarFile:
    """A HAR file that is being read.  ``head`` is what was already taken from the stream."""

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        self._json = JsonEntries(stream, head)
        self._process = Process(pid=-1)
        self._open: dict[tuple[str, ...], Wire] = {}
        self.entries = 0
        self.notes: dict[str, None] = {}
        """What is not as it was sent, a line each."""
        self.truncated = ""
        """Where the file ends early, if it does; the entries before were yielded."""

    def items(self) -> Iterator[Item]:
        """Yield everything that happened, entry by entry.  Raises `CorruptError`."""
        try:
            for entry in self._json.entries(("log",), ("entries",)):
                self.entries += 1
                try:
                    yield from self._entry(entry)
                except EntryError as error:
                    raise CorruptError(f"entry {self.entries}: {error}") from None
        except TruncatedError as error:
            if not self.entries:
                raise
            self.truncated = str(error)
        for wire in self._open.values():
            yield from wire.close()

    def _entry(self, entry: object) -> Iterator[Item]:
        fields = _Fields(entry, "")
        request, response = fields.object("request"), fields.object("response")
        target = Target(request.text("url"), "request.url")
        clock = _Clock(fields)
        version = request.optional("httpVersion") or response.optional("httpVersion")
        is_http1 = not re.match(r"(?:h|http/|HTTP/)[23]|quic|spdy", version, re.IGNORECASE)
        if not is_http1:
            self.notes[NOTE_VERSION] = None
        address = fields.optional("serverIPAddress").strip("[]")
        connection = fields.optional("connection")
        key = (connection, address, target.scheme, target.host, str(target.port))
        wire = self._open.get(key) if connection and is_http1 else None
        if wire is None:
            wire = Wire(self._flow(target, address, clock))
            yield FlowOpened(wire.flow, wire.flow.opened_ns)
            if connection and is_http1:
                self._open[key] = wire
            if len(self._open) > _MOST_OPEN:
                yield from self._open.pop(next(iter(self._open))).close()
        head, body = self._request(request, target, version)
        yield wire.data(Direction.OUTBOUND, head, clock.send_ns)
        yield from wire.body(Direction.OUTBOUND, body, clock.sent_ns)
        status = response.number("status")
        if status > 0:
            head, body = self._response(response, status, request.text("method"), version)
            yield wire.data(Direction.INBOUND, head, clock.first_ns)
            yield from wire.body(Direction.INBOUND, body, clock.end_ns)
            if status == 101:
                yield from _messages(fields, wire, clock.end_ns)
        if not (connection and is_http1):
            yield from wire.close(clock.end_ns)

    def _flow(self, target: Target, address: str, clock: _Clock) -> Flow:
        return client_flow(
            target,
            self._process,
            clock.connect_ns,
            address=address,
            handshake=(clock.tls_ns, clock.send_ns) if clock.tls_ns else None,
        )

    # --- Messages ---

    def _request(self, request: _Fields, target: Target, version: str) -> tuple[bytes, bytes | int]:
        """Return a request's head, and its body or the size of the body that is missing."""
        method = request.text("method")
        if not TOKEN.fullmatch(method):
            raise EntryError(f"request.method is no method: {method[:40]!r}")
        fields = request.fields("headers")
        declared = values(fields, "content-length")
        body: bytes | int = self._posted(request)
        if not body:
            body = _size(request.get("bodySize")) or (_size(declared[0]) if declared else 0)
        return request_head(
            method, target.form(method), fields, body, authority=target.authority, version=version
        ), body

    def _posted(self, request: _Fields) -> bytes:
        posted = request.get("postData")
        if not isinstance(posted, dict):
            return b""
        data = _Fields(posted, "request.postData")
        kind = data.optional("mimeType")
        if text := data.optional("text"):
            if data.optional("encoding") == "base64":
                return data.base64(text)
            return self._encoded(text, kind)
        parameters = posted.get("params")
        if not isinstance(parameters, list) or not parameters:
            return b""
        self.notes[NOTE_FORM] = None
        pairs = [_Fields(one, f"request.postData.params[{index}]") for index, one in enumerate(parameters)]
        boundary = re.search(r"boundary\s*=\s*\"?([^\s\";]+)", kind)
        if kind.startswith("multipart/") and boundary:
            return _multipart(pairs, boundary[1])
        # What is percent-encoded stays so: most programs write the fields as they were sent.
        words = [f"{_quoted(pair.optional('name'))}={_quoted(pair.optional('value'))}" for pair in pairs]
        return "&".join(words).encode()

    def _response(self, response: _Fields, status: int, method: str, version: str) -> tuple[bytes, bytes | int]:
        """Return a response's head, and its body or the size of the body that is missing."""
        if not 100 <= status <= 999:
            raise EntryError(f"response.status is no status: {status}")
        fields = response.fields("headers")
        body = b"" if is_bodiless(method, status) else self._content(response)
        if body and values(fields, "content-encoding"):
            self.notes[NOTE_CODING] = None
        reason, spoken = response.optional("statusText"), response.optional("httpVersion") or version
        return response_head(status, reason, fields, body, method=method, version=spoken, is_decoded=True), body

    def _content(self, response: _Fields) -> bytes | int:
        content = response.get("content")
        if not isinstance(content, dict):
            return max(0, _size(response.get("bodySize")))
        data = _Fields(content, "response.content")
        text = data.optional("text")
        if not text:
            return _size(content.get("size"))
        if data.optional("encoding").lower() == "base64":
            return data.base64(text)
        return self._encoded(text, data.optional("mimeType"))

    def _encoded(self, text: str, kind: str) -> bytes:
        """Return a text in the charset of its type, else as UTF-8."""
        name = match[1] if (match := _CHARSET.search(kind)) else "utf-8"
        try:
            charset = codecs.lookup(name).name
            if charset not in ("utf-8", *_NO_CHARSETS):
                return text.encode(charset)
        except (LookupError, UnicodeError):
            charset = ""
        if charset != "utf-8":
            self.notes[NOTE_CHARSET] = None
        return text.encode("utf-8", "surrogatepass")


def _messages(fields: _Fields, wire: Wire, time_ns: int) -> Iterator[Item]:
    """Yield a WebSocket's messages as frames (RFC 6455, 5.2)."""
    messages = fields.get("_webSocketMessages")
    for index, one in enumerate(messages if isinstance(messages, list) else ()):
        message = _Fields(one, f"_webSocketMessages[{index}]")
        opcode = int(_number(message.get("opcode"), 1)) & 0x0F
        text = message.optional("data")
        data = text.encode("utf-8", "surrogatepass") if opcode == 1 else message.base64(text)
        is_sent = message.optional("type") == "send"
        time_ns = max(time_ns, int(_number(message.get("time"), 0) * 1e9))
        direction = Direction.OUTBOUND if is_sent else Direction.INBOUND
        yield wire.data(direction, websocket_frame(opcode, data, masked=is_sent), time_ns)


class _Clock:
    """When an entry's bytes passed, in nanoseconds, from its start and the milliseconds of each phase."""

    def __init__(self, entry: _Fields) -> None:
        text = entry.text("startedDateTime")
        try:
            started = datetime.fromisoformat(text)
        except ValueError:
            raise EntryError(f"startedDateTime is no time: {text[:40]!r}") from None
        started = started if started.tzinfo else started.replace(tzinfo=UTC)
        start_ns = max(0, (started - _EPOCH) // timedelta(microseconds=1) * 1000)
        timings = entry.get("timings")
        phases = timings if isinstance(timings, dict) else {}

        def phase(name: str) -> int:
            return int(max(0.0, _number(phases.get(name), 0)) * 1e6)

        connect, ssl = phase("connect"), phase("ssl")
        self.connect_ns = start_ns + phase("blocked") + phase("dns")
        self.send_ns = self.connect_ns + max(connect, ssl)  # "ssl" is a part of "connect"
        self.tls_ns = self.send_ns - ssl if ssl else 0
        self.sent_ns = self.send_ns + phase("send")
        self.first_ns = self.sent_ns + phase("wait")
        self.end_ns = self.first_ns + phase("receive")
        if not any(phases.get(name) for name in ("send", "wait", "receive")):
            self.end_ns = max(self.end_ns, start_ns + int(max(0.0, _number(entry.get("time"), 0)) * 1e6))


# --- Forms ---


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="%+!*'()-._~:/?@,;$[]", errors="replace")


def _multipart(pairs: list[_Fields], boundary: str) -> bytes:
    """Return a form with files (RFC 7578)."""
    parts = []
    for pair in pairs:
        head = f'Content-Disposition: form-data; name="{pair.optional("name")}"'
        if name := pair.optional("fileName"):
            head += f'; filename="{name}"'
        lines = [one_line(head)]
        if kind := pair.optional("contentType"):
            lines.append(b"Content-Type: " + one_line(kind))
        content = pair.optional("value").encode("utf-8", "surrogatepass")
        parts.append(b"--" + one_line(boundary) + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) + b"--" + one_line(boundary) + b"--\r\n"


# --- Values of the file ---


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return max(-_MAX_MS, min(_MAX_MS, value)) if not isinstance(value, float) or math.isfinite(value) else default


def _size(value: object) -> int:
    """Return a size; 0 when it is not known."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else 0
    return min(_MAX_SIZE, max(0, int(_number(value, 0))))


class _Fields:
    """An object of the file, and where it stands."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise EntryError(f"{where or 'it'} is no object")
        self._value: dict[str, Any] = value
        self._where = where

    def get(self, name: str) -> object:
        return self._value.get(name)

    def _named(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def _needed(self, name: str) -> object:
        if self._value.get(name) is None:
            raise EntryError(f"{self._named(name)} is missing")
        return self._value[name]

    def object(self, name: str) -> _Fields:
        return _Fields(self._needed(name), self._named(name))

    def text(self, name: str) -> str:
        value = self._needed(name)
        if not isinstance(value, str) or not value:
            raise EntryError(f"{self._named(name)} is no text")
        return value

    def optional(self, name: str) -> str:
        """Return a text or a number as text, "" when it is neither or missing."""
        value = self._value.get(name)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def number(self, name: str) -> int:
        value = self._needed(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise EntryError(f"{self._named(name)} is no number")
        return int(value)

    def base64(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=False)
        except (binascii.Error, ValueError):
            raise EntryError(f"{self._where}: what should be base64 is not") from None

    def fields(self, name: str) -> Headers:
        """Return header fields; a value of several lines, Chrome's way to tell repeated fields, becomes several."""
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise EntryError(f"{self._named(name)} is no list")
        found: Headers = []
        for index, one in enumerate(value):
            field = _Fields(one, f"{self._named(name)}[{index}]")
            key = field.text("name")
            if not TOKEN.fullmatch(key.removeprefix(":")):
                raise EntryError(f"{self._named(name)}[{index}].name is no field name: {key[:40]!r}")
            found += [(key, line) for line in field.optional("value").split("\n")]
        return found


# --- JSON, one entry at a time ---


class JsonEntries:
    """Reads ``{"log": {..., "entries": [...]}}``, and files like it, without ever holding more than one entry."""

    def __init__(self, stream: BinaryIO, head: bytes, what: str = "HAR file") -> None:
        self._stream = stream
        self._what = what
        self._decoder = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._ended = False
        self.taken = 0
        if head:
            self._take(head)

    def entries(self, *way: tuple[str, ...]) -> Iterator[object]:
        """Yield the entries; ``way`` has the names of objects to go into, each by all that it may be called."""
        for names in way:
            self._find(names)
        self._expect("[")
        if self._next() == "]":
            return
        while True:
            yield self._value()
            if (mark := self._next()) == "]":
                return
            if mark != ",":
                raise self._corrupt(f"a comma or the end of the entries is expected, not {mark!r}")
            self._position += 1

    def _find(self, wanted: tuple[str, ...]) -> None:
        """Go into an object, as far as the value of a name."""
        self._expect("{")
        while self._next() == '"':
            name = self._value()
            self._expect(":")
            if name in wanted:
                return
            self._value()
            if self._next() == ",":
                self._position += 1
        raise CorruptError(f"no {self._what}: it has no {wanted[0]!r}")

    def _expect(self, mark: str) -> None:
        found = self._next()
        if found != mark:
            raise self._corrupt(f"{mark!r} is expected, not {found!r}")
        self._position += 1

    def _next(self) -> str:
        """Return the next character that is no space, without taking it."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            self._more(READ)

    def _value(self) -> object:
        """Take a value.  Whenever the text ends too early, as much again is read: linear for any size."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except RecursionError:
                raise self._corrupt("it is nested too deeply") from None
            except ValueError as error:
                if self._ended or len(self._text) - self._position > MAX_VALUE:
                    if self._ended and _is_early(error, len(self._text)):
                        raise self._truncated() from None
                    if isinstance(error, json.JSONDecodeError):
                        self._position = error.pos
                        raise self._corrupt(error.msg) from None
                    raise self._corrupt(str(error)) from None
            else:
                if end < len(self._text) or self._ended:  # a number may go on
                    self._position = end
                    return value
            self._more(max(READ, len(self._text) - self._position))

    def _more(self, size: int) -> None:
        """Read on.  Raise `TruncatedError` at the end of the file."""
        if self._ended:
            raise self._truncated()
        taken = self.taken
        while self.taken - taken < size and not self._ended:
            self._take(self._stream.read(READ))

    def _take(self, data: bytes) -> None:
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._corrupt(f"not UTF-8: {error.reason}") from None
        self._ended = not data
        self.taken += len(data)
        self._text = self._text[self._position :] + text
        self._position = 0

    def _corrupt(self, what: str) -> CorruptError:
        place = self.taken - len(self._text[self._position :].encode("utf-8", "surrogatepass"))
        return CorruptError(f"no valid JSON at byte {place}: {what}", offset=place)

    def _truncated(self) -> TruncatedError:
        return TruncatedError(f"the file ends inside its JSON, after {self.taken} bytes", offset=self.taken)


def _is_early(error: ValueError, end: int) -> bool:
    """Tell whether a value could not be read because the text ended: the error lies at the end, or in an open string."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= end - len("\\u0000") or error.msg.startswith("Unterminated string")
    )
