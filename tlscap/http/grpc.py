"""gRPC and gRPC-Web: length-prefixed messages in a body, and the status of a call.

The framing is that of "gRPC over HTTP2" (doc/PROTOCOL-HTTP2.md of grpc) and of its gRPC-Web variant (PROTOCOL-WEB.md):
one byte of flags, four of length, big-endian, then the message.  In gRPC-Web the trailers are a last frame of their
own, and the ``-text`` kind is base64 as a whole.  What a message says in protobuf: `tlscap.http.protobuf`.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote_to_bytes

from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import Header, Side
from tlscap.http.http1 import parse_headers
from tlscap.http.messages import BYTES_MISSING, MESSAGE_LIMIT, UNPARSED, AppMessage, Draft, FramedDecoder, field_values

_COMPRESSED: Final = 0x01
_TRAILERS: Final = 0x80  # gRPC-Web

# Groups of four, up to one with padding, which ends a piece that stands for itself.
_BASE64 = re.compile(
    rb"(?:[A-Za-z0-9+/]{4})++(?:[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=))?|[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=)"
)

_NAMES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""The status codes by number (doc/statuscodes.md)."""


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """How a call ended."""

    code: int
    """-1 when it is no number."""
    name: str
    """``NOT_FOUND``; ``code 99`` for one that has no name; what was sent for one that is no number."""
    message: str
    details: bytes = b""
    """A ``google.rpc.Status`` message in protobuf, or empty."""


def grpc_status(headers: tuple[Header, ...], trailers: tuple[Header, ...]) -> GrpcStatus | None:
    """Return how a call ended, by its response's fields; ``None``: they do not say.

    It stands in the trailers, or in the headers of a response that has nothing else ("Trailers-Only").
    """
    for fields in (trailers, headers):
        codes = field_values(fields, b"grpc-status")
        if not codes:
            continue
        text = codes[0].strip().decode("latin-1")
        code = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        name = _NAMES[code] if 0 <= code < len(_NAMES) else (f"code {code}" if code >= 0 else text)
        messages = field_values(fields, b"grpc-message")
        details = field_values(fields, b"grpc-status-details-bin")
        return GrpcStatus(
            code,
            name,
            unquote_to_bytes(messages[0]).decode("utf-8", "replace") if messages else "",
            _binary(details[0]) if details else b"",
        )
    return None


def _binary(value: bytes) -> bytes:
    """Decode a ``-bin`` field: base64, whose padding senders may leave out; empty when it is none."""
    value = value.strip().rstrip(b"=")
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error:
        return b""


class GrpcDecoder(FramedDecoder):
    """The body of a gRPC request or response.  See `tlscap.http.messages.MessageDecoder`.

    ``encoding`` is the value of ``grpc-encoding``; each message says itself whether it is compressed with that.
    """

    _HEADER_MAX = 5

    def __init__(self, side: Side, encoding: str = "", *, web: bool = False, limit: int = MESSAGE_LIMIT) -> None:
        super().__init__(side, limit)
        self._encoding = encoding.strip().lower()
        self._flags = (0, _COMPRESSED, _TRAILERS, _TRAILERS | _COMPRESSED) if web else (0, _COMPRESSED)

    def _begin(self, head: bytes, started_ns: int) -> int:
        if head[0] not in self._flags:
            return -1
        if len(head) < 5:
            return 0
        kind = "trailers" if head[0] & _TRAILERS else "message"
        coding, note = self._coding() if head[0] & _COMPRESSED else (None, "")
        self._frame = Draft(kind, self._side, started_ns, self._limit, coding=coding)
        if note:
            self._frame.note(note)
        self._frame.length = 5
        self._left = int.from_bytes(head[1:5], "big")
        return 5

    def _coding(self) -> tuple[ContentDecoder | None, str]:
        """Return what undoes a message's compression, or why nothing does."""
        if self._encoding in ("", "identity"):
            return None, "compressed flag without a grpc-encoding"
        try:
            if "," not in self._encoding:  # it names one coding, never a stack
                return ContentDecoder(self._encoding), ""
        except ContentError:
            pass
        return None, f"compressed with {self._encoding!r:.50}, which is not known"

    def _end(self, frame: Draft) -> None:
        message = self._emit(frame)
        if frame.kind == "trailers" and not frame.raw:
            self._messages[-1] = replace(message, headers=_fields(message.data))

    def _abandon(self, why: str) -> None:
        if self._frame:
            self._frame.cut(why)
            self._emit(self._frame)

    def _fits(self, data: bytes) -> bool:
        """At least one whole message, not empty (zeros would be many of those), and after it nothing but messages."""
        pos = 0
        while len(data) - pos >= 5:
            length = int.from_bytes(data[pos + 1 : pos + 5], "big")
            if data[pos] not in self._flags or (not pos and not 0 < length <= len(data) - 5):
                return False
            pos += 5 + length
        return pos > 0 and (pos >= len(data) or data[pos] in self._flags)


def _fields(block: bytes) -> tuple[Header, ...]:
    """Split the lines of a trailers frame (PROTOCOL-WEB.md)."""
    block = block.strip(b"\r\n")
    return parse_headers(block + b"\r\n\r\n")[0] if block else ()


class GrpcWebTextDecoder:
    """The body of a gRPC-Web ``-text`` request or response: base64, padded at its end and wherever it was flushed.

    The messages' lengths count decoded bytes.  A hole ends what can be read: nothing says where groups begin after it.
    """

    def __init__(self, side: Side, encoding: str = "", *, limit: int = MESSAGE_LIMIT) -> None:
        self._inner = GrpcDecoder(side, encoding, web=True, limit=limit)
        self._expansion = 0  # bytes of base64 less bytes decoded
        self._held = b""  # of a group of four
        self._side = side
        self._limit = limit
        self._time_ns = 0
        self._lost: Draft | None = None

    @property
    def between(self) -> int:
        """Bytes so far that belong to no message: what base64 adds."""
        return self._inner.between + self._expansion

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the messages that ended."""
        if not data:
            return []
        self._time_ns = time_ns
        if self._lost:
            self._lost.add(data)
            return []
        text = self._held + data
        whole = len(text) - len(text) % 4
        self._held = text[whole:]
        messages: list[AppMessage] = []
        pos = 0
        while pos < whole:
            groups = _BASE64.match(text, pos, whole)
            if not groups:
                messages += self._lose("not base64")
                self._rest(text[pos:whole])
                break
            decoded = binascii.a2b_base64(groups[0])
            self._expansion += len(groups[0]) - len(decoded)
            messages += self._inner.feed(decoded, time_ns)
            pos = groups.end()
        return messages

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if length <= 0:
            return []
        self._time_ns = time_ns
        messages = self._lose(BYTES_MISSING)
        self._rest(b"")
        assert self._lost, "the step is lost"  # noqa: S101
        self._lost.hole(length)
        return messages

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end; what is under way is incomplete."""
        messages = self._lose(why or "ended inside of it")
        self._rest(b"")
        if self._lost and self._lost.length:
            messages.append(self._lost.done(self._time_ns))
        return messages

    def _lose(self, why: str) -> list[AppMessage]:
        if self._lost:
            return []
        self._lost = Draft(UNPARSED, self._side, self._time_ns, self._limit)
        self._lost.cut(why)
        return self._inner.finish(self._time_ns, why=why)

    def _rest(self, text: bytes) -> None:
        """Note that base64 that was at hand can't be read."""
        assert self._lost, "the step is lost"  # noqa: S101
        self._lost.add(text + self._held)
        self._held = b""
