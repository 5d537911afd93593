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
import struct
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final

from tlscap.errors import CorruptError, TruncatedError
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    Gap,
    GapReason,
    Item,
    Process,
    Role,
    TupleSource,
)

READ: Final = 1 << 20
MAX_VALUE: Final = 1 << 28
"""Longest entry, in characters, that is read."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS = 1e12  # thirty years: a time longer than that is a mistake
_MAX_SIZE = 1 << 40
_MOST_OPEN = 4096  # connections that wait for another entry

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_UNPRINTABLE = re.compile(rb"[\x00-\x20\x7f-\xff]")
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.IGNORECASE)
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})  # Python's own
_SPACE = re.compile(r"[ \t\r\n]*")
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_SECURE = frozenset({"https", "wss"})
_WITHOUT_BODY = frozenset({204, 304})  # and 1xx (RFC 9110, 6.4.1)

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
        self._json = _Json(stream, head)
        self._process = Process(pid=-1)
        self._open: dict[tuple[str, ...], _Wire] = {}
        self.entries = 0
        self.notes: dict[str, None] = {}
        """What is not as it was sent, a line each."""
        self.truncated = ""
        """Where the file ends early, if it does; the entries before were yielded."""

    def items(self) -> Iterator[Item]:
        """Yield everything that happened, entry by entry.  Raises `CorruptError`."""
        try:
            for entry in self._json.entries():
                self.entries += 1
                try:
                    yield from self._entry(entry)
                except _Missing as error:
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
        target = _Target(request.text("url"))
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
            wire = _Wire(self._flow(target, address, clock))
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

    def _flow(self, target: _Target, address: str, clock: _Clock) -> Flow:
        return Flow(
            id=0,
            process=self._process,
            opened_ns=clock.connect_ns,
            remote=Endpoint(address, target.port) if address else None,
            tuple_source=TupleSource.IMPORTED if address else TupleSource.PLACEHOLDER,
            role=Role.CLIENT,
            plaintext=target.scheme not in _SECURE,
            sni=target.host if target.scheme in _SECURE and not target.is_address else "",
            handshake_start_ns=clock.tls_ns,
            handshake_end_ns=clock.send_ns if clock.tls_ns else 0,
        )

    # --- Messages ---

    def _request(self, request: _Fields, target: _Target, version: str) -> tuple[bytes, bytes | int]:
        """Return a request's head, and its body or the size of the body that is missing."""
        method = request.text("method")
        if not _TOKEN.fullmatch(method):
            raise _Missing(f"request.method is no method: {method[:40]!r}")
        fields = request.fields("headers")
        if not _values(fields, "host"):
            authority = _values(fields, ":authority") or [target.authority]
            fields.insert(0, ("Host", authority[0]))
        body: bytes | int = self._posted(request)
        declared = _values(fields, "content-length")
        if not body:
            body = _size(request.get("bodySize")) or (_size(declared[0]) if declared else 0)
        line = f"{method} ".encode() + target.form(method) + f" {_http1(version)}\r\n".encode()
        keep = {"transfer-encoding", *(("content-length",) if body else ())}
        return line + _head(fields, without=keep, length=_length(body) if body else None), body

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
            raise _Missing(f"response.status is no status: {status}")
        fields = response.fields("headers")
        line = f"{_http1(response.optional('httpVersion') or version)} {status} ".encode()
        line += _line(response.optional("statusText")) + b"\r\n"
        if method == "HEAD" or status < 200 or status in _WITHOUT_BODY or (method == "CONNECT" and status < 300):
            return line + _head(fields, without={"transfer-encoding"}, length=None), b""
        body = self._content(response)
        if body and _values(fields, "content-encoding"):
            self.notes[NOTE_CODING] = None
        without = {"transfer-encoding", "content-length", *(("content-encoding",) if body else ())}
        return line + _head(fields, without=without, length=_length(body)), body

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


def _messages(fields: _Fields, wire: _Wire, time_ns: int) -> Iterator[Item]:
    """Yield a WebSocket's messages as frames (RFC 6455, 5.2)."""
    messages = fields.get("_webSocketMessages")
    for index, one in enumerate(messages if isinstance(messages, list) else ()):
        message = _Fields(one, f"_webSocketMessages[{index}]")
        opcode = int(_number(message.get("opcode"), 1)) & 0x0F
        text = message.optional("data")
        data = text.encode("utf-8", "surrogatepass") if opcode == 1 else message.base64(text)
        is_sent = message.optional("type") == "send"
        time_ns = max(time_ns, int(_number(message.get("time"), 0) * 1e9))
        head = bytes([0x80 | opcode])
        mask = 0x80 if is_sent else 0
        if len(data) < 126:
            head += bytes([mask | len(data)])
        elif len(data) < 1 << 16:
            head += struct.pack("!BH", mask | 126, len(data))
        else:
            head += struct.pack("!BQ", mask | 127, len(data))
        if is_sent:
            head += bytes(4)
        yield wire.data(Direction.OUTBOUND if is_sent else Direction.INBOUND, head + data, time_ns)


class _Wire:
    """Puts the bytes of a flow one after the other."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._offsets = [0, 0]
        self._time_ns = flow.opened_ns

    def data(self, direction: Direction, data: bytes, time_ns: int) -> Data:
        self._time_ns = max(self._time_ns, time_ns)
        item = Data(self.flow, direction, self._offsets[direction], data, self._time_ns)
        self._offsets[direction] += len(data)
        return item

    def body(self, direction: Direction, body: bytes | int, time_ns: int) -> Iterator[Item]:
        """Yield a body, or the gap in its place."""
        if not body:
            return
        if isinstance(body, bytes):
            yield self.data(direction, body, time_ns)
            return
        self._time_ns = max(self._time_ns, time_ns)
        yield Gap(self.flow, direction, self._offsets[direction], body, GapReason.NOT_CAPTURED, self._time_ns)
        self._offsets[direction] += body

    def close(self, time_ns: int = 0) -> Iterator[Item]:
        self.flow.closed_ns = self._time_ns = max(self._time_ns, time_ns)
        yield FlowClosed(self.flow, self._time_ns)


class _Clock:
    """When an entry's bytes passed, in nanoseconds, from its start and the milliseconds of each phase."""

    def __init__(self, entry: _Fields) -> None:
        text = entry.text("startedDateTime")
        try:
            started = datetime.fromisoformat(text)
        except ValueError:
            raise _Missing(f"startedDateTime is no time: {text[:40]!r}") from None
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


class _Target:
    """What a request's URL asks for, and of whom."""

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            self.scheme = parts.scheme.lower()
            self.host = parts.hostname or ""
            self.port = parts.port or _PORTS.get(self.scheme, 0)
        except ValueError:
            raise _Missing(f"request.url is no URL: {url[:80]!r}") from None
        if self.scheme not in _PORTS or not self.host:
            raise _Missing(f"request.url is no URL of HTTP: {url[:80]!r}")
        self.authority = parts.netloc.rpartition("@")[2]
        self.is_address = ":" in self.host or re.fullmatch(r"[0-9.]+", self.host) is not None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def form(self, method: str) -> bytes:
        """Return the request's target (RFC 9112, 3.2)."""
        if method == "CONNECT":
            return _escaped(f"{self.host}:{self.port}")
        return _escaped(self._path)


# --- Pieces of messages ---

_Headers = list[tuple[str, str]]


def _http1(version: str) -> str:
    return "HTTP/1.0" if version.upper() == "HTTP/1.0" else "HTTP/1.1"


def _values(fields: _Headers, name: str) -> list[str]:
    return [value for key, value in fields if key.lower() == name]


def _head(fields: _Headers, *, without: set[str], length: int | None) -> bytes:
    """Return the header fields and the blank line, with a Content-Length if it is given."""
    lines = [
        name.encode() + b": " + _line(value) + b"\r\n"
        for name, value in fields
        if not name.startswith(":") and name.lower() not in without
    ]
    if length is not None:
        lines.append(b"Content-Length: %d\r\n" % length)
    return b"".join(lines) + b"\r\n"


def _line(text: str) -> bytes:
    """Return a text that can't end the line it stands in."""
    text = re.sub(r"[\r\n\0]+", " ", text).strip()
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _escaped(text: str) -> bytes:
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogatepass"))


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="%+!*'()-._~:/?@,;$[]", errors="replace")


def _length(body: bytes | int) -> int:
    return body if isinstance(body, int) else len(body)


def _multipart(pairs: list[_Fields], boundary: str) -> bytes:
    """Return a form with files (RFC 7578)."""
    parts = []
    for pair in pairs:
        head = f'Content-Disposition: form-data; name="{pair.optional("name")}"'
        if name := pair.optional("fileName"):
            head += f'; filename="{name}"'
        lines = [_line(head)]
        if kind := pair.optional("contentType"):
            lines.append(b"Content-Type: " + _line(kind))
        content = pair.optional("value").encode("utf-8", "surrogatepass")
        parts.append(b"--" + _line(boundary) + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) + b"--" + _line(boundary) + b"--\r\n"


# --- Values of the file ---


class _Missing(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with an entry."""


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
            raise _Missing(f"{where or 'it'} is no object")
        self._value: dict[str, Any] = value
        self._where = where

    def get(self, name: str) -> object:
        return self._value.get(name)

    def _named(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def _needed(self, name: str) -> object:
        if self._value.get(name) is None:
            raise _Missing(f"{self._named(name)} is missing")
        return self._value[name]

    def object(self, name: str) -> _Fields:
        return _Fields(self._needed(name), self._named(name))

    def text(self, name: str) -> str:
        value = self._needed(name)
        if not isinstance(value, str) or not value:
            raise _Missing(f"{self._named(name)} is no text")
        return value

    def optional(self, name: str) -> str:
        """Return a text or a number as text, "" when it is neither or missing."""
        value = self._value.get(name)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def number(self, name: str) -> int:
        value = self._needed(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _Missing(f"{self._named(name)} is no number")
        return int(value)

    def base64(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=False)
        except (binascii.Error, ValueError):
            raise _Missing(f"{self._where}: what should be base64 is not") from None

    def fields(self, name: str) -> _Headers:
        """Return header fields; a value of several lines, Chrome's way to tell repeated fields, becomes several."""
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _Missing(f"{self._named(name)} is no list")
        found: _Headers = []
        for index, one in enumerate(value):
            field = _Fields(one, f"{self._named(name)}[{index}]")
            key = field.text("name")
            if not _TOKEN.fullmatch(key.removeprefix(":")):
                raise _Missing(f"{self._named(name)}[{index}].name is no field name: {key[:40]!r}")
            found += [(key, line) for line in field.optional("value").split("\n")]
        return found


# --- JSON, one entry at a time ---


class _Json:
    """Reads ``{"log": {..., "entries": [...]}}`` without ever holding more than one entry."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._ended = False
        self.taken = 0
        if head:
            self._take(head)

    def entries(self) -> Iterator[object]:
        """Yield the entries, wherever they stand in the log."""
        self._find("log")
        self._find("entries")
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

    def _find(self, wanted: str) -> None:
        """Go into an object, as far as the value of a name."""
        self._expect("{")
        while self._next() == '"':
            name = self._value()
            self._expect(":")
            if name == wanted:
                return
            self._value()
            if self._next() == ",":
                self._position += 1
        raise CorruptError(f"no HAR file: it has no {wanted!r}")

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
