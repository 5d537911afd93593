"""Which recorded request is this one?  The language of ``--match`` (docs/matching.md), compiled.

A `Matcher` turns a request into keys: two requests are the same when their keys are equal.  The key of the head is cheap, so a server finds
the few recorded requests with the same head in one look-up, and reads a body only to tell those apart.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from tlscap.errors import UsageError
from tlscap.http.content import ContentError
from tlscap.http.events import Header, Side
from tlscap.http.messages import body_decoder, field_values, parameters
from tlscap.replay.json_documents import parse_json, plain_number
from tlscap.replay.json_paths import JsonPath
from tlscap.replay.recording import DECODED_LIMIT, decoded

DEFAULT: Final = "method host? path query body"

KINDS: Final = ("json", "form", "multipart", "grpc", "text", "bytes")
"""How a body may be compared."""

_PARTS: Final = ("method", "scheme", "host", "host?", "path", "query", "target", "body")
_PARSED_LIMIT: Final = (
    8 << 20
)  # a body that is larger is compared as bytes: parsed, it could take a hundred times as much memory
_PAIRS_LIMIT: Final = 100_000
_PARTS_LIMIT: Final = 10_000
_DECODER_PIECE: Final = 1 << 16

_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

Pair = tuple[str, str]


class Request(Protocol):
    """What is looked at: a recorded request, or one that came in."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes: ...
    @property
    def headers(self) -> tuple[Header, ...]: ...
    @property
    def scheme(self) -> str: ...
    @property
    def authority(self) -> bytes: ...
    @property
    def protocol(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...
    @property
    def encodings(self) -> str: ...


class Part(NamedTuple):
    """One part of a multipart body."""

    name: str
    filename: str
    type: str
    data: bytes


class Content(NamedTuple):
    """A body as it is compared: without what is ignored."""

    kind: str
    """One of `KINDS`; ``bytes`` for what claims to be something else and isn't."""
    value: Any
    """JSON: the document.  Form: pairs.  Multipart: `Part`s.  gRPC: messages.  Text: str.  Else bytes."""

    def digest(self) -> bytes:
        """Return what is equal for equal contents."""
        match self.kind:
            case "bytes":
                data = self.value
            case "json":
                data = json.dumps(self.value, sort_keys=True, separators=(",", ":")).encode()
            case _:
                data = repr(self.value).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16, person=self.kind.encode()).digest()


class HeadKey(NamedTuple):
    """What a head is compared by; parts that don't count are empty."""

    websocket: bool
    method: bytes
    host: str
    path: bytes
    query: tuple[Pair, ...]
    fields: tuple[str | None, ...]


@dataclass(slots=True)
class _Names:
    """Which of some names count: those that were asked for, or all but those that are ignored.  ``*`` stands for anything."""

    only: list[re.Pattern[str]] = field(default_factory=list)
    ignored: list[re.Pattern[str]] = field(default_factory=list)

    def add(self, name: str, *, ignore: bool) -> None:
        pattern = re.compile(".*".join(re.escape(part) for part in name.split("*")), re.DOTALL)
        (self.ignored if ignore else self.only).append(pattern)

    def chosen(self, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
        """Return the pairs that count, sorted by name; those of one name keep their order."""
        if self.only or self.ignored:
            pairs = [pair for pair in pairs if self.counts(pair[0])]
        return tuple(sorted(pairs, key=_name))

    def counts(self, name: str) -> bool:
        if self.only and not any(pattern.fullmatch(name) for pattern in self.only):
            return False
        return not any(pattern.fullmatch(name) for pattern in self.ignored)


def _name(pair: tuple[Any, ...]) -> Any:
    return pair[0]


class Matcher:
    """The words, understood.  Raises `UsageError` for those that can't be.

    ``words`` such as ``header:accept -query:ts`` change the default; as soon as one of them names a part
    (``method``, ``path``, ...) they stand for themselves.
    """

    def __init__(self, words: str = "") -> None:
        try:
            found = shlex.split(words)
        except ValueError as error:
            raise UsageError(f"{words!r}: {str(error).lower()}", hint="see docs/matching.md") from None
        self._query = _Names()
        self._form = _Names()
        self._ignored_paths: list[JsonPath] = []
        self._compared_paths: list[JsonPath] = []
        self._kind = ""
        self.fields: tuple[bytes, ...] = ()
        """Names of the header fields that count, in lower case."""
        changes = not any(word in _PARTS for word in found)
        self.words = " ".join([*([DEFAULT] if changes else []), *found])
        """What counts, in full."""
        self.parts: set[str] = set(DEFAULT.split()) if changes else set()
        """What counts: ``method``, ``path``, ..."""
        for word in found:
            self._take(word)
        self._fields_get: Callable[[Request], tuple[str | None, ...]] = (
            self._field_values if self.fields else _no_fields
        )

    def _take(self, word: str) -> None:
        ignore = word.startswith("-")
        part, colon, value = word.removeprefix("-").partition(":")
        if not colon and part in _PARTS:
            if ignore:
                self.parts -= {part, f"{part}?"}
            else:
                self.parts.add(part)
            return
        match part if value else "":
            case "header" if not ignore:
                self.fields += (value.lower().encode("latin-1", "replace"),)
            case "query":
                self._query.add(value, ignore=ignore)
                self.parts |= set() if ignore else {"query"}
            case "form":
                self._form.add(value, ignore=ignore)
                self.parts |= set() if ignore else {"body"}
            case "json":
                (self._ignored_paths if ignore else self._compared_paths).append(JsonPath(value))
                self.parts |= set() if ignore else {"body"}
            case "body" if not ignore and value in KINDS:
                self._kind = value
                self.parts.add("body")
            case _:
                raise UsageError(
                    f"{word!r} is no word of the matching language",
                    hint="method, scheme, host, path, query, target, body, header:NAME, query:NAME, form:NAME, json:PATH, "
                    f"body:{'|'.join(KINDS)}; with - in front what is to be ignored (docs/matching.md)",
                )

    # --- Heads ---

    def head_key(self, request: Request, host: str) -> HeadKey:
        """Return the key of a head; ``host`` is what the caller found its host to count as."""
        parts = self.parts
        target = request.target
        path = b""
        query: tuple[Pair, ...] = ()
        if "target" in parts:
            path = target
        else:
            raw_path, _, raw_query = target.partition(b"?")
            if "path" in parts:
                path = normal_path(raw_path)
            if "query" in parts and raw_query:
                query = self._query.chosen(pairs_of(raw_query))
        websocket = is_websocket(request)
        method = request.method if "method" in parts and not websocket else b""
        scheme = f"{request.scheme}://" if "scheme" in parts else ""
        return HeadKey(websocket, method, scheme + host, path, query, self._fields_get(request))

    @property
    def counts_host(self) -> bool | None:
        """Whether the host counts; ``None``: if need be."""
        return True if "host" in self.parts else None if "host?" in self.parts else False

    def query_of(self, target: bytes) -> tuple[Pair, ...]:
        """Return the parameters of a target that count."""
        return self._query.chosen(pairs_of(target.partition(b"?")[2]))

    def _field_values(self, request: Request) -> tuple[str | None, ...]:
        return tuple(field_value(request, name) for name in self.fields)

    # --- Bodies ---

    @property
    def counts_body(self) -> bool:
        """Whether bodies are compared at all."""
        return "body" in self.parts

    def kind_of(self, request: Request) -> str:
        """Return how a recorded request's body is compared."""
        return self._kind or kind_of_type(request)

    def content(self, request: Request, kind: str) -> Content:
        """Return a body as something of this kind, or as the bytes that it is when it can't be read so."""
        data = request.body
        if request.encodings:
            try:
                data = decoded(data, request.encodings)
            except ContentError:
                return Content("bytes", data)
        try:
            value = self._read(request, data, kind) if data or kind == "text" else None
        except (ValueError, RecursionError):
            value = None
        return Content("bytes", data) if value is None else Content(kind, value)

    def _read(self, request: Request, data: bytes, kind: str) -> Any:
        """Return a body, understood; ``None`` or `ValueError`: it is no such thing."""
        if len(data) > _PARSED_LIMIT and kind != "grpc":
            return None
        match kind:
            case "json":
                return self._json(data)
            case "form":
                return self._form.chosen(pairs_of(data)) if data.count(b"&") < _PAIRS_LIMIT else None
            case "multipart":
                return self._multipart(request, data)
            case "grpc":
                return grpc_messages(request, data)
            case "text":
                return "\n".join(line.rstrip() for line in data.decode().rstrip().splitlines())
            case _:
                return None

    def _json(self, data: bytes) -> Any:
        document = parse_json(data, number=plain_number)
        if self._compared_paths:
            return [{path.text: path.select(document) for path in self._compared_paths}]
        for path in self._ignored_paths:
            path.remove(document)
        return [document]  # a list, so that null is something

    def _multipart(self, request: Request, data: bytes) -> tuple[Part, ...] | None:
        decoder = body_decoder(Side.REQUEST, request.headers, limit=len(data) + 1)
        if decoder is None or data.count(b"\n--") > _PARTS_LIMIT:
            return None
        parts = [part for part in [*decoder.feed(data, 0), *decoder.finish(0)] if part.kind == "part"]
        found = [
            Part(part.name, part.filename, _one(part.headers, b"content-type").decode("latin-1"), part.data)
            for part in parts
            if self._form.counts(part.name)
        ]
        return tuple(sorted(found, key=_name)) if parts else None


def is_websocket(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket (RFC 6455, 4.1; RFC 8441, 5)."""
    if request.protocol:
        return request.protocol.lower() == b"websocket"
    if request.method != b"GET":
        return False
    return any(name.lower() == b"upgrade" and value.strip().lower() == b"websocket" for name, value in request.headers)


def kind_of_type(request: Request) -> str:
    """Return how a body is compared, by its type."""
    value = _one(request.headers, b"content-type")
    if not value:
        return "bytes"
    media_type, _ = parameters(value)
    family = media_type.partition(b"+")[0]
    if family in (b"application/grpc", b"application/grpc-web", b"application/grpc-web-text"):
        return "grpc"
    if media_type.endswith((b"/json", b"+json")):
        return "json"
    if media_type == b"application/x-www-form-urlencoded":
        return "form"
    return "multipart" if media_type.startswith(b"multipart/") else "bytes"


def grpc_messages(request: Request, data: bytes, *, whole: bool = True) -> tuple[bytes, ...] | None:
    """Return the messages of a gRPC body, decompressed; ``None``: it is none, or too much.

    Unless it has to be ``whole``, a message that is cut off is left out.
    """
    decoder = body_decoder(Side.REQUEST, request.headers, limit=DECODED_LIMIT)
    if decoder is None:
        return None
    found: list[bytes] = []
    size = 0
    for start in range(0, len(data), _DECODER_PIECE):
        for message in decoder.feed(data[start : start + _DECODER_PIECE], 0):
            size += len(message.data) + 64
            if size > DECODED_LIMIT or message.kind != "message":
                return None
            found.append(message.data)
    return None if whole and decoder.finish(0) else tuple(found)


def pairs_of(data: bytes) -> list[Pair]:
    """Split a query or a form; what is no UTF-8 is kept (as surrogates)."""
    pairs = []
    for piece in data.split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((_unquoted(name), _unquoted(value)))
    return pairs


def _unquoted(data: bytes) -> str:
    if b"+" in data:
        data = data.replace(b"+", b" ")
    return (unquote_to_bytes(data) if b"%" in data else data).decode("utf-8", "surrogateescape")


def normal_path(path: bytes) -> bytes:
    """Write a path in its one form (RFC 3986, 6.2.2): ``%7e`` is ``~``, ``%2f`` is ``%2F``, nothing is ``/``."""
    if b"%" in path:
        path = _ESCAPE.sub(_normal_escape, path)
    return path or b"/"


def _normal_escape(match: re.Match[bytes]) -> bytes:
    code = int(match[0][1:], 16)
    return bytes((code,)) if code in _UNRESERVED else match[0].upper()


def field_value(request: Request, name: bytes) -> str | None:
    """Return all values of a field as one; ``None`` when it has none."""
    values = [value.strip() for value in field_values(request.headers, name)]
    if not values:
        return None
    return (b"; " if name == b"cookie" else b", ").join(values).decode("latin-1")


def _no_fields(request: Request) -> tuple[str | None, ...]:
    return ()


def _one(headers: tuple[Header, ...], name: bytes) -> bytes:
    for key, value in headers:
        if len(key) == len(name) and key.lower() == name:
            return value
    return b""
