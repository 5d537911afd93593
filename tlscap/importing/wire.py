"""Exchanges that another program told, as the bytes of connections: HTTP/1.1, whatever it was on the wire.

What the importers of HAR files, of vcrpy's cassettes and of mitmproxy's flows share: heads and bodies one after the other, WebSocket frames,
and flows of which only the client's view is known.
"""

from __future__ import annotations

import re
import struct
import urllib.parse
from collections.abc import Iterator
from typing import Final

from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    Gap,
    GapReason,
    Item,
    Process,
    Role,
    TupleSource,
)

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method, or the name of a header field (RFC 9110, 5.6.2)."""

SECURE: Final = frozenset({"https", "wss"})
_WITHOUT_BODY: Final = frozenset({204, 304})
_UNPRINTABLE = re.compile(rb"[\x00-\x20\x7f-\xff]")
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

Headers = list[tuple[str, str]]
"""Names and values; what is no Latin-1 becomes UTF-8."""


class EntryError(Exception):
    """What is wrong with an entry of a file; the importers say which entry it is."""


class Chunked(bytes):
    """A body in one chunk, with trailers behind it (RFC 9112, 7.1): what only chunks can carry."""

    @classmethod
    def of(cls, body: bytes, trailers: Headers) -> Chunked:
        """Put a body and trailers into chunks."""
        lines = b"".join(name.encode() + b": " + one_line(value) + b"\r\n" for name, value in trailers)
        return cls((b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n" + lines + b"\r\n")


class Wire:
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


class Target:
    """What a request's URL asks for, and of whom."""

    def __init__(self, url: str, where: str) -> None:
        """Raise `EntryError` for what is no URL of HTTP; ``where`` is what the entry calls it."""
        try:
            parts = urllib.parse.urlsplit(url)
            self.scheme = parts.scheme.lower()
            self.host = parts.hostname or ""
            self.port = parts.port or _PORTS.get(self.scheme, 0)
        except ValueError:
            raise EntryError(f"{where} is no URL: {url[:80]!r}") from None
        if self.scheme not in _PORTS or not self.host:
            raise EntryError(f"{where} is no URL of HTTP: {url[:80]!r}")
        self.authority = parts.netloc.rpartition("@")[2]
        self.is_address = ":" in self.host or re.fullmatch(r"[0-9.]+", self.host) is not None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def form(self, method: str) -> bytes:
        """Return the request's target (RFC 9112, 3.2)."""
        if method == "CONNECT":
            return escaped(f"{self.host}:{self.port}")
        return escaped(self._path)


def client_flow(
    target: Target, process: Process, opened_ns: int, *, address: str = "", handshake: tuple[int, int] | None = None
) -> Flow:
    """Return a flow as its client saw it; ``address`` is the server's, ``handshake`` when that of TLS began and ended."""
    return Flow(
        id=0,
        process=process,
        opened_ns=opened_ns,
        remote=Endpoint(address, target.port) if address else None,
        tuple_source=TupleSource.IMPORTED if address else TupleSource.PLACEHOLDER,
        role=Role.CLIENT,
        plaintext=target.scheme not in SECURE,
        sni=target.host if target.scheme in SECURE and not target.is_address else "",
        handshake_start_ns=handshake[0] if handshake else 0,
        handshake_end_ns=handshake[1] if handshake else 0,
    )


# --- Pieces of messages ---


def request_head(
    method: str, target: bytes, fields: Headers, body: bytes | int | Chunked, *, authority: str, version: str = ""
) -> bytes:
    """Return a request's head; ``body`` is what follows, or the size of what is missing there.

    The fields are those that are given but for HTTP/2's pseudo fields and the framing; Host is put before them if there is none.
    """
    if not values(fields, "host"):
        fields = [("Host", (values(fields, ":authority") or [authority])[0]), *fields]
    line = f"{method} ".encode() + target + f" {_version(version)}\r\n".encode()
    without = {"transfer-encoding", *(("content-length",) if body else ())}
    return line + _fields(fields, without, body or None)


def response_head(
    status: int,
    reason: str,
    fields: Headers,
    body: bytes | int | Chunked,
    *,
    method: str,
    version: str = "",
    is_decoded: bool = False,
) -> bytes:
    """Return a response's head, as `request_head` does; a decoded body loses its Content-Encoding."""
    line = f"{_version(version)} {status} ".encode() + one_line(reason) + b"\r\n"
    if is_bodiless(method, status):
        return line + _fields(fields, {"transfer-encoding"}, None)
    without = {"transfer-encoding", "content-length", *(("content-encoding",) if body and is_decoded else ())}
    return line + _fields(fields, without, body)


def is_bodiless(method: str, status: int) -> bool:
    """Tell whether an answer has no body (RFC 9110, 6.4.1)."""
    return method == "HEAD" or status < 200 or status in _WITHOUT_BODY or (method == "CONNECT" and status < 300)


def _version(version: str) -> str:
    return "HTTP/1.0" if version.upper() == "HTTP/1.0" else "HTTP/1.1"


def values(fields: Headers, name: str) -> list[str]:
    return [value for key, value in fields if key.lower() == name]


def _fields(fields: Headers, without: set[str], body: bytes | int | Chunked | None) -> bytes:
    """Return the header fields, how long the body is if there is one, and the blank line."""
    lines = [
        name.encode() + b": " + one_line(value) + b"\r\n"
        for name, value in fields
        if not name.startswith(":") and name.lower() not in without
    ]
    if isinstance(body, Chunked):
        lines.append(b"Transfer-Encoding: chunked\r\n")
    elif body is not None:
        lines.append(b"Content-Length: %d\r\n" % (body if isinstance(body, int) else len(body)))
    return b"".join(lines) + b"\r\n"


def one_line(text: str) -> bytes:
    """Return a text that can't end the line it stands in."""
    text = re.sub(r"[\r\n\0]+", " ", text).strip()
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def escaped(text: str | bytes) -> bytes:
    """Return a request's target with everything percent-encoded that can't stand there."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match[0][0], data)


def websocket_frame(opcode: int, data: bytes, *, masked: bool) -> bytes:
    """Return a frame (RFC 6455, 5.2); a mask is of zeros."""
    mask = 0x80 if masked else 0
    head = bytes([0x80 | opcode])
    if len(data) < 126:
        head += bytes([mask | len(data)])
    elif len(data) < 1 << 16:
        head += struct.pack("!BH", mask | 126, len(data))
    else:
        head += struct.pack("!BQ", mask | 127, len(data))
    return head + bytes(4 if masked else 0) + data
