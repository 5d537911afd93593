"""Cassettes of vcrpy (YAML or JSON, its old format too), and those of Ruby's VCR and betamax, to the items of flows.

A cassette tells requests and responses without times, versions and connections.  The bytes here are HTTP/1.1 made from what it
tells (`tlscap.importing.wire`); all that went to one server is one connection.  Each exchange begins a millisecond after the one before ended,
or when ``recorded_at`` or the response's Date says, if that is later.

Bodies are bytes as they were sent, with their content coding, or what vcrpy made of them: when a body is not in the coding that its header
names, the header is left out.

YAML is read event by event: nothing is ever constructed but texts, bytes, lists and dictionaries, whatever tags it has.  An alias
is the same value once more, so a small file can stand for a large capture: there is a limit to that.  An interaction that can't be
understood is a `CorruptError` that names it, counted from 1.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Final

import yaml

from tlscap.errors import CorruptError, TruncatedError
from tlscap.http.content import ContentDecoder, ContentError
from tlscap.importing.har import JsonEntries
from tlscap.importing.wire import (
    TOKEN,
    EntryError,
    Headers,
    Target,
    Wire,
    client_flow,
    is_bodiless,
    request_head,
    response_head,
    values,
)
from tlscap.model import Direction, FlowOpened, Item, Process

MOST_DEPTH: Final = 64
"""Lists and mappings in one another."""
MOST_PENDING: Final = 1 << 28
"""Bytes of one text."""
MOST_WEIGHT: Final = 1 << 28
"""Bytes of memory, about, of one interaction, and of all that has anchors: a list without anything in it is two bytes in a file, and far more here."""
MOST_FIELDS: Final = 1 << 24
"""Bytes of the header fields of one message: aliases can make much of little."""
MOST_REPEATED: Final = 1 << 30
"""Bytes that are made of a file with aliases, beyond what it is long."""

_LISTS: Final = ("interactions", "http_interactions")  # the second is that of Ruby's VCR and betamax
_JSON = re.compile(rb'\s*(?:\{.{0,4000}?"(?:http_)?interactions"\s*:|\[\s*\{\s*"re(?:quest|sponse)"\s*:)', re.DOTALL)
_YAML = re.compile(
    rb"(?:(?:\s*|#[^\n]*|%YAML[^\n]*|---[^\n]*)\n)*"
    rb"(?:---\s*)?(?:(?:http_)?interactions:|version: *\d|recorded_with:|- +(?:!\S+ +)?(?:request|response):)"
)

_CONTINUATIONS: Final = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
_STEP_NS: Final = 1_000_000
_MAX_TIME_NS: Final = 1 << 62
_VALUE_WEIGHT: Final = 64
_PORTS: Final = {"http": "80", "https": "443"}

NOTE_TIMES: Final = "the cassette has no times: they are made up"
NOTE_CODING: Final = "some bodies are decoded in the cassette and have lost their Content-Encoding"


def is_cassette(head: bytes) -> bool:
    """Tell from a file's first bytes whether it may be a cassette."""
    head = head.removeprefix(codecs.BOM_UTF8)
    return bool(_JSON.match(head) or _YAML.match(head))


class CassetteFile:
    """A cassette that is being read.  ``head`` is what was already taken from the stream."""

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        self._stream = _Counted(stream, head)
        self._is_json = self._stream.starts_with(b"{") or self._stream.starts_with(b"[")
        self._process = Process(pid=-1)
        self._open: dict[tuple[str, str, int], Wire] = {}
        self._now_ns = 0
        self._made = 0
        self.interactions = 0
        self.notes: dict[str, None] = {}
        """What is not as it was sent, a line each."""
        self.truncated = ""
        """Where the file ends early, if it does; the interactions before were yielded."""

    def items(self) -> Iterator[Item]:
        """Yield everything that happened, one interaction after the other.  Raises `CorruptError`."""
        try:
            for value in self._interactions():
                self.interactions += 1
                try:
                    yield from self._interaction(value)
                except EntryError as error:
                    raise CorruptError(f"interaction {self.interactions}: {error}") from None
        except TruncatedError as error:
            if not self.interactions:
                raise
            self.truncated = str(error)
        for wire in self._open.values():
            yield from wire.close()

    def _interactions(self) -> Iterator[object]:
        if not self._is_json:
            return _yaml_interactions(self._stream)
        file = JsonEntries(self._stream, b"", "cassette")  # type: ignore[arg-type]
        return file.entries() if self._stream.starts_with(b"[") else file.entries(_LISTS)

    def _interaction(self, value: object) -> Iterator[Item]:
        entry = _mapping(value, "it")
        request, response = _mapping(entry.get("request"), "request"), _mapping(entry.get("response"), "response")
        method = _text(request.get("method"), "request.method").upper()
        if not TOKEN.fullmatch(method):
            raise EntryError(f"request.method is no method: {method[:40]!r}")
        target = Target(_url(request), "request.uri")
        sent_fields, fields = _fields(request.get("headers"), "request"), _fields(response.get("headers"), "response")
        status, reason = _status(response.get("status"))
        asked = _body(request.get("body"), "request")
        answered = b"" if is_bodiless(method, status) else _body(response.get("body"), "response")
        is_decoded = bool(answered) and not _is_coded(answered, values(fields, "content-encoding"))
        if is_decoded:
            self.notes[NOTE_CODING] = None
        asking = request_head(method, target.form(method), sent_fields, asked, authority=target.authority)
        answering = response_head(status, reason, fields, answered, method=method, is_decoded=is_decoded)
        self._made += len(asking) + len(asked) + len(answering) + len(answered)
        if self._made > MOST_REPEATED + 2 * self._stream.taken:
            raise EntryError("the file repeats itself with aliases, to more than it may become")
        self._now_ns = max(self._now_ns + _STEP_NS, self._told(entry, fields))
        key = target.scheme, target.host, target.port
        if key not in self._open:
            self._open[key] = Wire(client_flow(target, self._process, self._now_ns))
            yield FlowOpened(self._open[key].flow, self._now_ns)
        wire = self._open[key]
        yield wire.data(Direction.OUTBOUND, asking, self._now_ns)
        yield from wire.body(Direction.OUTBOUND, asked, self._now_ns)
        self._now_ns += _STEP_NS
        yield wire.data(Direction.INBOUND, answering, self._now_ns)
        yield from wire.body(Direction.INBOUND, answered, self._now_ns)

    def _told(self, entry: dict[Any, Any], fields: Headers) -> int:
        """Return what the cassette says of the time; 0 when it says nothing."""
        try:
            if isinstance(told := entry.get("recorded_at"), str):
                try:
                    moment = datetime.fromisoformat(told)
                except ValueError:
                    moment = parsedate_to_datetime(told)
            else:
                moment = parsedate_to_datetime((values(fields, "date") or [""])[0])
            seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        except (ValueError, TypeError, OverflowError):
            self.notes[NOTE_TIMES] = None
            return 0
        return min(_MAX_TIME_NS, max(0, seconds) * 1_000_000_000)


# --- Values ---


def _mapping(value: object, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise EntryError(f"{what} is {'missing' if value is None else 'no mapping'}")
    return value


def _text(value: object, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise EntryError(f"{what} is no text")
    return value


def _url(request: dict[Any, Any]) -> str:
    """Return the URL; vcrpy before 1.0 kept it in parts."""
    if "uri" in request or "host" not in request:
        return _text(request.get("uri", request.get("url")), "request.uri")
    scheme, host, port, path = (
        _text(request.get(key), f"request.{key}") for key in ("protocol", "host", "port", "path")
    )
    return f"{scheme}://{host}{'' if _PORTS.get(scheme) == port else f':{port}'}{path}"


def _status(value: object) -> tuple[int, str]:
    fields = _mapping(value, "response.status")
    code = _text(fields.get("code"), "response.status.code")
    if not re.fullmatch("[1-9][0-9]{2}", code):
        raise EntryError(f"response.status.code is no status: {code[:40]!r}")
    reason = fields.get("message")
    return int(code), reason if isinstance(reason, str) else ""


def _fields(value: object, what: str) -> Headers:
    """Return header fields: a mapping to values or lists of them, pairs, or the lines of the old format."""
    if value is None:
        return []
    found: Headers = []
    if isinstance(value, dict):
        pairs: list[tuple[object, object]] = list(value.items())
    elif isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], list) and all(isinstance(one, list) for one in value[0]):
            value = value[0]  # a set was written as the list of its arguments
        pairs = [tuple(one) if isinstance(one, list) and len(one) == 2 else _split(one, what) for one in value]
    else:
        raise EntryError(f"{what}.headers is no mapping")
    size = 0
    for key, inner in pairs:
        name = _text(key, f"a name in {what}.headers")
        if not TOKEN.fullmatch(name.removeprefix(":")):
            raise EntryError(f"{what}.headers has {name[:40]!r}, which is no field name")
        for one in inner if isinstance(inner, list) else [inner]:
            text = "" if one is None or one in ("", b"") else _text(one, f"{what}.headers.{name}")
            size += len(name) + len(text) + _VALUE_WEIGHT
            if size > MOST_FIELDS:
                raise EntryError(f"{what}.headers take more than {MOST_FIELDS >> 20} MiB")
            found.append((name, text))
    return found


def _split(line: object, what: str) -> tuple[str, str]:
    name, mark, value = _text(line, f"a line of {what}.headers").partition(":")
    if not mark:
        raise EntryError(f"a line of {what}.headers is no field")
    return name, value.strip()


def _body(value: object, what: str, depth: int = 0) -> bytes:
    """Return a body: text, bytes, nothing, or one of the mappings that were in use for it."""
    if depth > MOST_DEPTH:  # deeper than the file's own YAML can be: of aliases
        raise EntryError(f"{what}.body is nested too deeply")
    if isinstance(value, dict):
        if "base64_string" in value:
            try:
                return base64.b64decode(_body(value["base64_string"], what, depth + 1))
            except (binascii.Error, ValueError):
                raise EntryError(f"{what}.body: what should be base64 is not") from None
        if "string" in value:
            return _body(value["string"], what, depth + 1)
        state = value.get("state")  # a file object, as vcrpy once wrote it
        return _body(state[0] if isinstance(state, list) and state else None, what, depth + 1)
    if isinstance(value, list):  # the pieces of an iterator
        if not all(isinstance(one, str | bytes) for one in value):
            raise EntryError(f"{what}.body is no text")
        if sum(map(len, value)) > MOST_PENDING:  # before aliases are made into bytes of their own
            raise EntryError(f"{what}.body is longer than {MOST_PENDING >> 20} MiB")
        return b"".join(one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one for one in value)
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise EntryError(f"{what}.body is no text")


def _is_coded(body: bytes, codings: list[str]) -> bool:
    """Tell whether a body is in the coding that its header names."""
    if not codings:
        return True
    try:
        decoder = ContentDecoder(", ".join(codings))
    except ContentError:
        return True  # an unknown one: nobody can tell
    try:
        next(decoder.feed(body[: 1 << 16]), None)
    except ContentError:
        return False
    return True


# --- YAML, one interaction at a time ---


class _Counted:
    """A stream that is never read far ahead of what was understood."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._head = head or stream.read(4096)
        self.taken = 0
        self.characters = 0
        """Of what was taken, if it is UTF-8."""
        self.ended = False
        self.pending = 0
        """Bytes since the last event of YAML."""

    def starts_with(self, mark: bytes) -> bool:
        """Tell how what was not read yet begins."""
        return self._head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(mark)

    def read(self, size: int = -1) -> bytes:
        """Read as `BinaryIO` does."""
        data, self._head = (self._head[:size], self._head[size:]) if self._head else (self._stream.read(size), b"")
        self.taken += len(data)
        self.characters += len(data.translate(None, _CONTINUATIONS))
        self.ended = not data
        self.pending += len(data)
        if self.pending > MOST_PENDING:
            raise CorruptError(f"a text is longer than {MOST_PENDING >> 20} MiB")
        return data


def _yaml_interactions(stream: _Counted) -> Iterator[object]:
    """Yield the interactions of a file, wherever the list of them stands in it."""
    events = _Events(stream)
    kind = events.next()
    while isinstance(kind, yaml.StreamStartEvent | yaml.DocumentStartEvent):
        kind = events.next()
    if isinstance(kind, yaml.MappingStartEvent):
        while not isinstance(kind := events.next(), yaml.MappingEndEvent):
            name, kind = events.value(kind), events.next()
            if name in _LISTS and isinstance(kind, yaml.SequenceStartEvent):
                break
            events.value(kind)
        else:
            raise CorruptError("no cassette: it has no 'interactions'")
    elif not isinstance(kind, yaml.SequenceStartEvent):
        raise CorruptError("no cassette: it is no mapping")
    while not isinstance(kind := events.next(), yaml.SequenceEndEvent):
        yield events.value(kind)


class _Events:
    """Events to values."""

    def __init__(self, stream: _Counted) -> None:
        self._stream = stream
        self._events = yaml.parse(stream, Loader=yaml.CSafeLoader)
        self._anchors: dict[str, object] = {}
        self._weight = 0
        self._anchored = 0

    def next(self) -> yaml.Event:
        """Return the next event.  Raises `CorruptError`, and `TruncatedError` when the file ends too early."""
        self._stream.pending = 0
        try:
            event = next(self._events)
        except StopIteration:
            raise TruncatedError("the file ends inside its YAML", offset=self._stream.taken) from None
        except yaml.MarkedYAMLError as error:
            if error.problem_mark and error.problem_mark.index >= self._stream.characters and self._stream.ended:
                raise TruncatedError("the file ends inside its YAML", offset=self._stream.taken) from None
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            raise CorruptError(f"no valid YAML in line {line}: {error.problem or error.context}") from None
        except (yaml.YAMLError, UnicodeError) as error:
            raise CorruptError(f"no valid YAML: {' '.join(str(error).split())[:200]}") from None
        if isinstance(event, yaml.DocumentEndEvent | yaml.StreamEndEvent):
            raise TruncatedError("the file ends inside its YAML", offset=self._stream.taken)
        return event

    def value(self, event: yaml.Event, depth: int = 0) -> Any:
        """Return the value that begins with an event."""
        if depth > MOST_DEPTH:
            raise CorruptError("its YAML is nested too deeply")
        if not depth:
            self._weight = 0
        before = self._weight
        self._weight += _VALUE_WEIGHT + (len(event.value) if isinstance(event, yaml.ScalarEvent) else 0)
        if self._weight > MOST_WEIGHT:
            raise CorruptError(f"one interaction takes more than {MOST_WEIGHT >> 20} MiB of memory")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise CorruptError(f"no valid YAML: *{event.anchor} stands before what it means")
            return self._anchors[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            value: Any = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := self.next(), yaml.SequenceEndEvent):
                value.append(self.value(inner, depth + 1))
        else:
            value = {}
            while not isinstance(inner := self.next(), yaml.MappingEndEvent):
                key = self.value(inner, depth + 1)
                inside = self.value(self.next(), depth + 1)
                if isinstance(key, str | bytes):
                    value[key] = inside
        if anchor := getattr(event, "anchor", None):
            self._anchored += self._weight - before
            if self._anchored > MOST_WEIGHT:
                raise CorruptError(f"what has anchors takes more than {MOST_WEIGHT >> 20} MiB of memory")
            self._anchors[anchor] = value
        return value


def _scalar(event: yaml.ScalarEvent) -> str | bytes | None:
    """Return a text as it is written; only nothing and bytes are something else."""
    if event.tag and event.tag.endswith(":binary"):
        try:
            return base64.b64decode(event.value)
        except (binascii.Error, ValueError):
            raise CorruptError("no valid YAML: what should be base64 is not") from None
    if not event.style and event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL"):
        return None
    return str(event.value)
