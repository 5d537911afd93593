"""Messages of the protocols that ride on HTTP, in a body or in the tunnel after an upgrade, and who decodes which.

A decoder takes the bytes of one body, or of one side of a tunnel, in any pieces, and gives an `AppMessage` for each
message that ended: WebSocket (`tlscap.http.websocket`), gRPC and gRPC-Web (`tlscap.http.grpc`), server-sent events and
newline-delimited JSON (`tlscap.http.sse`), multipart (`tlscap.http.multipart`).  `body_decoder` and `tunnel_decoders`
choose it.

Decoders are passive observers: whatever comes, they raise nothing and refuse nothing.  What is odd about a message
stands in its ``notes``, what cannot be read comes out as a message of the kind `UNPARSED`.  They hold one message at a
time (WebSocket: and one control frame), and of each no more than ``limit`` bytes as transferred and as many decoded.

The messages account for every byte.  After `MessageDecoder.finish`, the sum of their ``length``
plus `MessageDecoder.between` is the number of bytes that were fed or reported missing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tlscap.http.content import ContentError
from tlscap.http.events import Header, Side

MESSAGE_LIMIT: Final = 16 << 20
"""Most bytes that are kept of one message.  gRPC receivers take 4 MiB by default, WebSocket ones 1 to 100 MiB."""

UNPARSED: Final = "unparsed"
"""The kind of what is no message: bytes that could not be read, or are missing, between messages."""

BYTES_MISSING: Final = "bytes missing"
"""The note of a message with a hole, and of what a hole made unreadable."""

_NOTE_LIMIT: Final = 16

# RFC 9110, 5.6.6.  Possessive throughout, so that no value makes it slow.
_PARAMETER = re.compile(rb';\s*+([^\s=;"]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^;]*+))', re.DOTALL)
_QUOTED_PAIR = re.compile(rb'\\(["\\])')  # no others: browsers once sent paths such as C:\file

_LINE_TYPES: Final = frozenset(
    {
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/x-jsonl",
        b"application/jsonlines",
        b"application/x-jsonlines",
        b"application/stream+json",
        b"application/x-json-stream",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppMessage:
    """One message, or as much of it as passed.

    Times are those of its first byte, and of its last or of what showed that no more of it comes.
    """

    kind: str
    """WebSocket: ``text``, ``binary``, ``ping``, ``pong``, ``close``, ``continuation`` (its beginning was not seen),
    ``unknown`` (a reserved opcode).  gRPC: ``message``, ``trailers`` (gRPC-Web).  Server-sent events: ``event``,
    ``fields`` (a block without data, which dispatches nothing), ``comment``.  Multipart: ``part``, ``preamble``,
    ``epilogue``.  Newline-delimited JSON: ``line``.  All: ``unparsed``."""
    side: Side
    started_ns: int
    time_ns: int
    data: bytes
    """The payload, decompressed, up to the decoder's limit; of a close frame its reason; with a hole what is around it."""
    size: int
    """Bytes of the payload that passed: before decompression, without framing, without missing bytes, kept or not."""
    length: int
    """Bytes of the body or tunnel that it stands for, framing and missing bytes included."""
    name: str = ""
    """An event's type, a part's name, a close frame's code (``1000 normal``), a reserved opcode."""
    filename: str = ""
    """What a part calls its file."""
    headers: tuple[Header, ...] = ()
    """A part's fields; gRPC-Web trailers; ``id`` and ``retry`` of an event."""
    complete: bool = True
    """Whether all of it was seen.  What is beyond the limit was seen too, and is said in ``notes``."""
    missing: int = 0
    """Bytes of it that passed but are not stored."""
    notes: tuple[str, ...] = ()
    """What is odd about it, in words for people."""


class MessageDecoder(Protocol):
    """What understands one body, or one side of a tunnel."""

    @property
    def between(self) -> int:
        """Bytes so far that belong to no message: blank lines, closing boundaries, base64's expansion."""
        ...

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the messages that ended."""
        ...

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        ...

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end; ``why`` is empty for an orderly one, else says what cut it short.  Nothing may follow."""
        ...


def body_decoder(side: Side, headers: tuple[Header, ...], *, limit: int = MESSAGE_LIMIT) -> MessageDecoder | None:
    """Return what decodes a body with these header fields, or ``None``: it is one piece, or not known.

    The decoder wants the body without its content coding (`tlscap.http.content`).
    """
    # The decoders are made of what this module defines, hence can't be imported before it is.
    from tlscap.http.grpc import GrpcDecoder, GrpcWebTextDecoder  # noqa: PLC0415
    from tlscap.http.multipart import MultipartDecoder, usable_boundary  # noqa: PLC0415
    from tlscap.http.sse import EventStreamDecoder, LineDecoder  # noqa: PLC0415

    values = field_values(headers, b"content-type")
    media_type, options = parameters(values[0] if values else b"")
    if media_type == b"text/event-stream":
        return EventStreamDecoder(side, limit=limit)
    if media_type in _LINE_TYPES:
        return LineDecoder(side, limit=limit)
    if media_type.startswith(b"multipart/"):
        boundary = options.get(b"boundary", b"")
        return MultipartDecoder(side, boundary, limit=limit) if usable_boundary(boundary) else None
    family = media_type.partition(b"+")[0]  # what follows names the messages' format: proto, json, ...
    encoding = b", ".join(field_values(headers, b"grpc-encoding")).decode("latin-1")
    if family == b"application/grpc":
        return GrpcDecoder(side, encoding, limit=limit)
    if family == b"application/grpc-web":
        return GrpcDecoder(side, encoding, web=True, limit=limit)
    if family == b"application/grpc-web-text":
        return GrpcWebTextDecoder(side, encoding, limit=limit)
    return None


def tunnel_decoders(
    protocol: str,
    request_headers: tuple[Header, ...],
    response_headers: tuple[Header, ...],
    *,
    limit: int = MESSAGE_LIMIT,
) -> tuple[MessageDecoder, MessageDecoder] | None:
    """Return what decodes the two sides, the client's first, of a connection that was upgraded to ``protocol``.

    ``None`` when the protocol is not known.  The response's fields decide: what the request offers is not yet agreed.
    """
    from tlscap.http.websocket import WebSocketDecoder, negotiated  # noqa: PLC0415 - as above

    if protocol.strip().lower() != "websocket":
        return None
    extensions = negotiated(response_headers)
    return (
        WebSocketDecoder(Side.REQUEST, extensions, limit=limit),
        WebSocketDecoder(Side.RESPONSE, extensions, limit=limit),
    )


# --- Header fields ---


def field_values(headers: tuple[Header, ...], name: bytes) -> list[bytes]:
    """Return every value of a field; ``name`` in lower case."""
    return [value for key, value in headers if key.lower().rstrip() == name]


def parameters(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Split a value such as a media type (RFC 9110, 8.3.1): what it is, and its parameters, both names in lower case.

    Of a parameter that stands there twice the first counts.
    """
    result: dict[bytes, bytes] = {}
    for match in _PARAMETER.finditer(value):
        quoted = match[2]
        result.setdefault(match[1].lower(), match[3].strip() if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted))
    return value.partition(b";")[0].strip().lower(), result


# --- What decoders are made of ---


class Coding(Protocol):
    """What undoes the compression of one message.  Raises `ContentError`."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes stand for, in small pieces."""
        ...

    def finish(self) -> bool:
        """Return whether the compressed data ended properly."""
        ...


class Draft:
    """A message under way: what is kept of it, and what is only counted.

    With ``coding`` its payload is compressed.  When that fails the message is given as transferred.  Once ``limit``
    decoded bytes are kept the rest is not decoded, unless ``decode_all`` says that later messages refer to it.
    """

    __slots__ = (
        "_coding",
        "_decode_all",
        "_decoded",
        "_decoded_size",
        "_failed",
        "_kept",
        "_limit",
        "_notes",
        "complete",
        "filename",
        "headers",
        "kept_all",
        "kind",
        "length",
        "missing",
        "name",
        "side",
        "size",
        "started_ns",
        "whole",
    )

    def __init__(
        self,
        kind: str,
        side: Side,
        started_ns: int,
        limit: int,
        *,
        coding: Coding | None = None,
        decode_all: bool = False,
    ) -> None:
        self.kind = kind
        self.side = side
        self.started_ns = started_ns
        self.name = ""
        self.filename = ""
        self.headers: tuple[Header, ...] = ()
        self.size = 0
        self.missing = 0
        self.length = 0
        self.complete = True
        self.whole = False  # set by done(): its compressed data was decoded and ended properly
        self.kept_all = True  # set by done(): its data is not cut by the limit
        self._limit = limit
        self._notes: dict[str, None] = {}
        self._kept = bytearray()
        self._coding = coding
        self._decode_all = decode_all
        self._decoded = bytearray()
        self._decoded_size = 0
        self._failed = ""

    @property
    def full(self) -> bool:
        """Whether further payload would only be counted."""
        return self.size >= self._limit and self._coding is None

    @property
    def raw(self) -> bool:
        """Whether its data is as transferred although it is compressed."""
        return bool(self._failed)

    def add(self, data: bytes) -> None:
        """Take payload as transferred."""
        self.size += len(data)
        self.length += len(data)
        _keep(self._kept, data, self._limit)
        if self._coding and not (self._failed or self.missing):
            self._decode(self._coding, data)

    def pass_by(self, length: int) -> None:
        """Take payload that is counted but not at hand any more.  None may be added after it."""
        self.size += length
        self.length += length

    def hole(self, length: int) -> None:
        """Take payload that is missing."""
        self.missing += length
        self.length += length
        self.cut(BYTES_MISSING)

    def cut(self, why: str) -> None:
        """Note that it is not complete, and why."""
        self.complete = False
        self.note(why)

    def note(self, text: str) -> None:
        """Note what is odd, once."""
        if len(self._notes) < _NOTE_LIMIT:
            self._notes[text] = None

    def done(self, time_ns: int) -> AppMessage:
        """Return the message as it is now."""
        data, size = self._kept, self.size
        if self._failed:
            self.note(self._failed)
        elif self._coding:
            data, size = self._decoded, self._decoded_size
            if self.complete and not self._enough():
                self.whole = self._coding.finish()
                if not self.whole:
                    self.note("compressed data ends early")
        self.kept_all = size == len(data)
        if not self.kept_all:
            self.note(f"first {len(data)} bytes kept")
        return AppMessage(
            kind=self.kind,
            side=self.side,
            started_ns=self.started_ns,
            time_ns=time_ns,
            data=bytes(data),
            size=self.size,
            length=self.length,
            name=self.name,
            filename=self.filename,
            headers=self.headers,
            complete=self.complete,
            missing=self.missing,
            notes=tuple(self._notes),
        )

    def _enough(self) -> bool:
        return self._decoded_size > self._limit and not self._decode_all

    def _decode(self, coding: Coding, data: bytes) -> None:
        if self._enough():
            return
        try:
            for piece in coding.feed(data):
                self._decoded_size += len(piece)
                _keep(self._decoded, piece, self._limit)
                if self._enough():
                    return
        except ContentError as error:
            self._failed = str(error)
            self._decoded.clear()


def _keep(kept: bytearray, data: bytes, limit: int) -> None:
    room = limit - len(kept)
    if room >= len(data):
        kept += data
    elif room > 0:
        kept += data[:room]


class FramedDecoder(ABC):
    """What WebSocket and gRPC have in common: each frame is a header, which says how long its payload is, and that.

    A hole inside of a payload costs that message and nothing else.  Any other hole, and a header that can be none,
    loses the step.  It is found again where fed bytes begin with a header (a program seldom starts a write in the
    middle of a frame) and everything that follows from it fits; after that nothing unusual is believed any more.
    """

    _HEADER_MAX: int
    """Length in bytes of the longest header."""

    def __init__(self, side: Side, limit: int) -> None:
        self.between = 0
        self._side = side
        self._limit = limit
        self._messages: list[AppMessage] = []
        self._time_ns = 0
        self._held = b""  # of a header
        self._held_ns = 0
        self._frame: Draft | None = None  # whose payload passes
        self._left = 0  # of the payload
        self._lost: Draft | None = None  # out of step: what passes meanwhile
        self._steady = True  # never out of step so far

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the messages that ended."""
        if not data:
            return []
        if self._lost and self._fits(data):
            self._regain()
        self._time_ns = time_ns
        if self._lost:
            self._lost.add(data)
            return []
        pos = 0
        while pos < len(data):
            pos = self._pass_payload(data, pos) if self._left else self._pass_header(data, pos)
        return self._taken()

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if length <= 0:
            return []
        self._time_ns = time_ns
        if self._frame and self._left:
            missing = min(length, self._left)
            self._frame.hole(missing)
            self._skipped(missing)
            length -= missing
            self._advance(missing)
        if length:
            self._lose(BYTES_MISSING).hole(length)
        return self._taken()

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end; what is under way is incomplete."""
        self._lose(why or "ended inside of it")
        self._regain()
        return self._taken()

    # --- What a protocol adds ---

    @abstractmethod
    def _begin(self, head: bytes, started_ns: int) -> int:
        """Read the header at the front of ``head``: set the frame and what is left of it, return the header's length.

        0: more is needed.  -1: this is no header.
        """
        ...

    def _payload(self, data: bytes) -> bytes:
        """Return payload bytes as they were before framing."""
        return data

    def _skipped(self, length: int) -> None:
        """Note that as much of the payload is missing."""

    @abstractmethod
    def _end(self, frame: Draft) -> None:
        """React to the end of a frame."""
        ...

    @abstractmethod
    def _abandon(self, why: str) -> None:
        """End what is under way as incomplete."""
        ...

    @abstractmethod
    def _fits(self, data: bytes) -> bool:
        """Tell whether ``data`` is frames from its first byte on, beyond reasonable doubt."""
        ...

    # --- Steps ---

    def _pass_header(self, data: bytes, pos: int) -> int:
        head = self._held + data[pos : pos + self._HEADER_MAX - len(self._held)]
        length = self._begin(head, self._held_ns if self._held else self._time_ns)
        if not length:
            if not self._held:
                self._held_ns = self._time_ns
            self._held = head
            return len(data)
        if length < 0:
            self._lose("no frame header").add(data[pos:])
            return len(data)
        pos += length - len(self._held)
        self._held = b""
        self._advance(0)
        return pos

    def _pass_payload(self, data: bytes, pos: int) -> int:
        reached = min(len(data), pos + self._left)
        assert self._frame, "bytes of a frame are left"  # noqa: S101
        if self._frame.full:
            self._frame.pass_by(reached - pos)
        else:
            self._frame.add(self._payload(data[pos:reached]))
        self._advance(reached - pos)
        return reached

    def _advance(self, length: int) -> None:
        self._left -= length
        if not self._left and self._frame:
            frame, self._frame = self._frame, None
            self._end(frame)

    def _lose(self, why: str) -> Draft:
        """Lose the step; return what collects the bytes that pass until it is found again."""
        if self._lost is None:
            self._abandon(why)
            self._frame = None
            self._left = 0
            self._steady = False
            self._lost = Draft(UNPARSED, self._side, self._held_ns if self._held else self._time_ns, self._limit)
            self._lost.cut(why)
            self._lost.add(self._held)
            self._held = b""
        return self._lost

    def _regain(self) -> None:
        if self._lost and self._lost.length:
            self._emit(self._lost)
        self._lost = None

    def _emit(self, draft: Draft) -> AppMessage:
        message = draft.done(self._time_ns)
        self._messages.append(message)
        return message

    def _taken(self) -> list[AppMessage]:
        messages = self._messages
        self._messages = []
        return messages
