"""mitmproxy's flow files (what ``mitmdump -w`` and "save" write) to the items of flows.

A file is a row of tnetstrings, one for each flow: dictionaries whose shape has a version (mitmproxy's ``io/compat.py``); those of mitmproxy 4 to 12,
4 to 21, are read.  The bytes here are HTTP/1.1 made from them (`tlscap.importing.wire`), bodies with their codings as they were sent; HTTP/2
and HTTP/3 are written as HTTP/1.1, trailers behind chunks.  WebSocket messages, which mitmproxy keeps whole and decompressed, are put into frames.

What is read is how the client saw it: its address is that of the connection to mitmproxy, the server's that of the connection from there.
Exchanges of HTTP/1 on the same two connections are one flow, any other is a flow of its own: streams of HTTP/2 overlap.

TCP, UDP and DNS flows are counted in `FlowFile.left_out`.  A flow that can't be understood is a `CorruptError` that names it, counted
from 1.  The file is read flow by flow.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any, BinaryIO, Final

from tlscap.errors import CorruptError, TruncatedError, UnsupportedVersionError
from tlscap.importing.wire import (
    TOKEN,
    Chunked,
    EntryError,
    Headers,
    Target,
    Wire,
    client_flow,
    escaped,
    is_bodiless,
    request_head,
    response_head,
    values,
    websocket_frame,
)
from tlscap.model import Direction, Endpoint, FlowOpened, Item, Process

OLDEST: Final = 4
NEWEST: Final = 21
"""Versions of a flow that are understood."""

MOST_FLOW: Final = 1 << 28
"""Bytes of one flow."""
MOST_VALUES: Final = 1 << 22
"""Values in one flow: an empty list is three bytes in a file, and far more in memory."""
MOST_DEPTH: Final = 32
"""Lists and dictionaries in one another."""

NOTE_VERSION: Final = "HTTP/2 and HTTP/3 flows are written as HTTP/1.1"
NOTE_STREAMED: Final = "some bodies are not in the file: mitmproxy passed them on without keeping them"

_MOST_OPEN = 4096  # connections that wait for another exchange
_NO_CODE, _NOT_CLOSED = 1005, 1006  # never sent: a close frame without a code, and none at all (RFC 6455, 7.4.1)
_MAX_TIME_NS: Final = 1 << 62
_START = re.compile(rb"[1-9][0-9]{1,11}:[0-9]{1,9}:")  # the first flow's length, then its first key's


def is_flow_file(head: bytes) -> bool:
    """Tell from a file's first bytes whether it may be one of flows."""
    return bool(_START.match(head))


class FlowFile:
    """A flow file that is being read.  ``head`` is what was already taken from the stream."""

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        self._stream = stream
        self._head = head
        self._taken = 0
        self._process = Process(pid=-1)
        self._open: dict[tuple[str, ...], Wire] = {}
        self.flows = 0
        self.left_out: Counter[str] = Counter()
        """Flows that are not HTTP, by their kind."""
        self.notes: dict[str, None] = {}
        """What is not as it was sent, a line each."""
        self.truncated = ""
        """Where the file ends early, if it does; the flows before were yielded."""

    def items(self) -> Iterator[Item]:
        """Yield everything that happened, flow by flow.  Raises `CorruptError` and `UnsupportedVersionError`."""
        try:
            while (value := self._next()) is not None:
                self.flows += 1
                try:
                    yield from self._flow(_Fields(value, ""))
                except EntryError as error:
                    raise CorruptError(f"flow {self.flows}: {error}") from None
        except TruncatedError as error:
            if not self.flows:
                raise
            self.truncated = str(error)
        for wire in self._open.values():
            yield from wire.close()

    # --- The file ---

    def _next(self) -> object:
        """Read one flow, or return ``None`` at the end of the file."""
        prefix = b""
        while (mark := self._read(1)) != b":":
            if not mark and not prefix:
                return None
            if not mark:
                raise TruncatedError(f"the file ends inside flow {self.flows + 1}", offset=self._taken)
            if not mark.isdigit() or len(prefix) == 12:
                raise CorruptError(f"no flow file at byte {self._taken}: a length is expected", offset=self._taken)
            prefix += mark
        if not prefix or int(prefix) > MOST_FLOW:
            raise CorruptError(f"flow {self.flows + 1} says it is {prefix.decode()} bytes long", offset=self._taken)
        data = self._read(int(prefix) + 1)
        if len(data) <= int(prefix):
            raise TruncatedError(f"the file ends inside flow {self.flows + 1}", offset=self._taken)
        return parse(data[-1:], memoryview(data)[:-1])

    def _read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        while len(data) < size and (more := self._stream.read(min(size - len(data), 1 << 20))):
            data += more
        self._taken += len(data)
        return data

    # --- Flows ---

    def _flow(self, fields: _Fields) -> Iterator[Item]:
        version = fields.get("version")
        if isinstance(version, list):
            version = ".".join(str(part) for part in version[:2])
        if not isinstance(version, int) or not OLDEST <= version <= NEWEST:
            raise UnsupportedVersionError(
                f"flow {self.flows} has version {str(version)[:20]} of mitmproxy's flow format; {OLDEST} to {NEWEST} are read",
                hint="mitmdump -nr OLD -w NEW writes the version of the installed mitmproxy",
            )
        kind = fields.text("type", "")
        if kind != "http":
            self.left_out[kind[:20] or "unknown"] += 1
            return
        request, response = fields.object("request"), fields.optional("response")
        method = request.text("method")
        if not TOKEN.fullmatch(method):
            raise EntryError(f"request.method is no method: {method[:40]!r}")
        target = _target(request)
        wire, opened, is_shared = self._wire(fields, request, target)
        if opened:
            yield opened
        if len(self._open) > _MOST_OPEN:
            yield from self._open.pop(next(iter(self._open))).close()
        yield from self._request(request, target, method, wire)
        if response:
            yield from self._response(response, method, wire, request.time("timestamp_end"))
            if (websocket := fields.optional("websocket")) and response.number("status_code") == 101:
                yield from _messages(websocket, wire)
        if not is_shared:
            yield from wire.close()

    def _wire(self, fields: _Fields, request: _Fields, target: Target) -> tuple[Wire, FlowOpened | None, bool]:
        """Return the connection of a flow, what opens it if it is new, and whether others may follow on it."""
        client, server = fields.optional("client_conn"), fields.optional("server_conn")
        is_http1 = request.text("http_version", "HTTP/1.1").upper().startswith("HTTP/1")
        if not is_http1:
            self.notes[NOTE_VERSION] = None
        ids = [side.text("id", "") if side else "" for side in (client, server)]
        key = (*ids, target.scheme, target.host, str(target.port))
        is_shared = is_http1 and all(ids) and not fields.optional("websocket")
        if is_shared and key in self._open:
            return self._open[key], None, True
        begun = request.time("timestamp_start")
        opened_ns = min(begun, (client.time("timestamp_start") if client else 0) or begun)
        secured_ns = client.time("timestamp_tls_setup", "timestamp_ssl_setup") if client else 0
        remote = server.address("peername", "ip_address") if server else None
        flow = client_flow(
            target,
            self._process,
            opened_ns,
            address=remote.address if remote else "",
            handshake=(opened_ns, secured_ns) if opened_ns < secured_ns <= begun else None,
        )
        if is_http1 and remote and client:
            flow.local, flow.remote = client.address("peername", "address"), remote
        wire = Wire(flow)
        if is_shared:
            self._open[key] = wire
        return wire, FlowOpened(flow, opened_ns), is_shared

    def _request(self, request: _Fields, target: Target, method: str, wire: Wire) -> Iterator[Item]:
        headers = request.headers("headers")
        body = self._content(request, headers)
        form = escaped(request.bytes("path") or b"/") if method != "CONNECT" else target.form(method)
        version = request.text("http_version", "")
        head = request_head(method, form, headers, body, authority=target.authority, version=version)
        yield wire.data(Direction.OUTBOUND, head, request.time("timestamp_start"))
        yield from wire.body(Direction.OUTBOUND, body, request.time("timestamp_end"))

    def _response(self, response: _Fields, method: str, wire: Wire, asked_ns: int) -> Iterator[Item]:
        status = response.number("status_code")
        if not 100 <= status <= 999:
            raise EntryError(f"response.status_code is no status: {status}")
        headers = response.headers("headers")
        body = b"" if is_bodiless(method, status) else self._content(response, headers)
        reason, version = response.text("reason", ""), response.text("http_version", "")
        head = response_head(status, reason, headers, body, method=method, version=version)
        yield wire.data(Direction.INBOUND, head, response.time("timestamp_start") or asked_ns)
        yield from wire.body(Direction.INBOUND, body, response.time("timestamp_end"))

    def _content(self, message: _Fields, headers: Headers) -> bytes | int:
        """Return a body, or how long it was if it was not kept."""
        content = message.get("content")
        if isinstance(content, bytes):
            trailers = message.headers("trailers")
            return Chunked.of(content, trailers) if trailers else content
        if content is not None:
            raise EntryError(f"{message.where}.content is no text")
        told = (values(headers, "content-length") or ["0"])[0]
        size = int(told) if told.isascii() and told.isdecimal() and len(told) < 13 else 0
        if size or values(headers, "transfer-encoding"):
            self.notes[NOTE_STREAMED] = None
        return size


def _target(request: _Fields) -> Target:
    """Return what is asked, and of whom.  A host may be a name or an address, also one of IPv6."""
    host = request.text("host").strip("[]")
    scheme = request.text("scheme", "") or ("https" if request.number("port") == 443 else "http")
    shown = f"[{host}]" if ":" in host else host
    port = request.number("port")
    standard = {"http": 80, "https": 443}.get(scheme.lower())
    target = Target(f"{scheme}://{shown}{'' if port == standard else f':{port}'}/", "request")
    if authority := request.text("authority", ""):
        target.authority = authority
    return target


def _messages(websocket: _Fields, wire: Wire) -> Iterator[Item]:
    """Yield a WebSocket's messages as frames (RFC 6455, 5.2), and the frame that closed it."""
    time_ns = 0
    messages = websocket.get("messages")
    for index, one in enumerate(messages if isinstance(messages, list) else ()):
        if (
            not isinstance(one, list)
            or len(one) < 4
            or not isinstance(one[0], int)
            or not isinstance(one[2], bytes | str)
        ):
            raise EntryError(f"websocket.messages[{index}] is no message")
        opcode, from_client, content, moment = one[:4]
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        time_ns = _nanoseconds(moment)
        direction = Direction.OUTBOUND if from_client else Direction.INBOUND
        yield wire.data(direction, websocket_frame(opcode & 0x0F, data, masked=bool(from_client)), time_ns)
    code = websocket.get("close_code")
    if not isinstance(code, int) or not 1000 <= code <= 4999 or code == _NOT_CLOSED:
        return
    reason = websocket.text("close_reason", "").encode("utf-8", "replace")[:123]
    from_client = websocket.get("closed_by_client")
    direction = Direction.OUTBOUND if from_client else Direction.INBOUND
    told = b"" if code == _NO_CODE else code.to_bytes(2, "big") + reason
    data = websocket_frame(8, told, masked=bool(from_client))
    yield wire.data(direction, data, websocket.time("timestamp_end") or time_ns)


# --- Values ---


def _nanoseconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return round(min(max(value, 0), _MAX_TIME_NS / 1e9) * 1e6) * 1000


class _Fields:
    """A dictionary of the file, and where it stands."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise EntryError(f"{where or 'it'} is no dictionary")
        self._value: dict[str, Any] = value
        self.where = where

    def get(self, *names: str) -> object:
        """Return the first that is there: names changed between versions."""
        return next((self._value[name] for name in names if self._value.get(name) is not None), None)

    def _named(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def object(self, name: str) -> _Fields:
        return _Fields(self.get(name), self._named(name))

    def optional(self, name: str) -> _Fields | None:
        return None if self.get(name) is None else self.object(name)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; bytes are Latin-1, so that every one can be had back."""
        value = self.get(name)
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, str):
            return value
        if default is None or value is not None:
            raise EntryError(f"{self._named(name)} is no text")
        return default

    def bytes(self, name: str) -> bytes:
        return self.text(name).encode("latin-1", "replace")

    def number(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise EntryError(f"{self._named(name)} is no number")
        return value

    def time(self, *names: str) -> int:
        """Return a time in nanoseconds, 0 when there is none."""
        return _nanoseconds(self.get(*names))

    def address(self, *names: str) -> Endpoint | None:
        value = self.get(*names)
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[1], int):
            return None
        host = value[0].decode("latin-1") if isinstance(value[0], bytes) else value[0]
        return Endpoint(host, value[1]) if isinstance(host, str) and host and 0 < value[1] <= 0xFFFF else None

    def headers(self, name: str) -> Headers:
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise EntryError(f"{self._named(name)} is no list")
        found = []
        for index, one in enumerate(value):
            if not isinstance(one, list) or len(one) != 2 or not all(isinstance(part, bytes) for part in one):
                raise EntryError(f"{self._named(name)}[{index}] is no field")
            key, text = (part.decode("latin-1") for part in one)
            if not TOKEN.fullmatch(key.removeprefix(":")):
                raise EntryError(f"{self._named(name)}[{index}] has {key[:40]!r}, which is no field name")
            found.append((key, text))
        return found


# --- tnetstrings ---


def parse(kind: bytes, data: memoryview) -> Any:
    """Return the value of a typed netstring: its type's mark, and what stands between its length and that.

    mitmproxy's own addition is ``;``, text in UTF-8.  Keys of old versions are bytes.  Raises `CorruptError`.
    """
    return _parse(kind, data, 0, count(1))


def _parse(kind: bytes, data: memoryview, depth: int, number: Iterator[int]) -> Any:
    if depth > MOST_DEPTH:
        raise CorruptError("a flow is nested too deeply")
    if next(number) > MOST_VALUES:
        raise CorruptError(f"a flow has more than {MOST_VALUES:,} values")
    try:
        match kind:
            case b",":
                return data.tobytes()
            case b";":
                return str(data, "utf-8", "surrogateescape")
            case b"#":
                return int(_digits(data, 40))
            case b"^":
                return float(_digits(data, 40))
            case b"!" if bytes(data[:6]) in (b"true", b"false"):
                return data[0] == ord("t")
            case b"~" if not data:
                return None
            case b"]":
                return list(_values(data, depth, number))
            case b"}":
                row = list(_values(data, depth, number))
                keys = [key.decode("latin-1") if isinstance(key, bytes) else key for key in row[::2]]
                if len(row) % 2 or not all(isinstance(key, str) for key in keys):
                    raise CorruptError("no tnetstring: a dictionary has a key without a value, or one that is no text")
                return dict(zip(keys, row[1::2], strict=True))
    except ValueError:
        pass
    raise CorruptError(f"no tnetstring: {bytes(data[:20])!r} is no value of the type {kind.decode('latin-1')!r}")


def _digits(data: memoryview, most: int) -> str:
    if len(data) > most:
        raise ValueError
    return str(data, "ascii")


def _values(data: memoryview, depth: int, number: Iterator[int]) -> Iterator[Any]:
    start = 0
    while start < len(data):
        colon = start
        while colon < len(data) and colon - start < 13 and 0x30 <= data[colon] <= 0x39:
            colon += 1
        if colon == start or colon >= len(data) or data[colon] != 0x3A:
            raise CorruptError("no tnetstring: a length is missing")
        end = colon + 1 + int(data[start:colon])
        if end >= len(data):
            raise CorruptError("no tnetstring: a value is longer than what it is in")
        yield _parse(bytes(data[end : end + 1]), data[colon + 1 : end], depth + 1, number)
        start = end + 1
