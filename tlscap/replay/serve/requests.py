"""A request as it came in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from tlscap.http.decoding import content_codings
from tlscap.http.events import Header, Side
from tlscap.http.grpc import GrpcDecoder
from tlscap.replay.matching import kind_of_type

_MESSAGE_KEPT: Final = 0  # bytes of a message that is only counted


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """What a client of a replay server asked; a fallback gets it whole.

    It looks like a `tlscap.replay.recording.RecordedRequest` in all that is compared.
    """

    method: bytes
    target: bytes
    """In origin form: ``/path?query``; ``*`` of an OPTIONS request."""
    headers: tuple[Header, ...]
    """As sent: order, case, bytes.  Without HTTP/2's pseudo-fields."""
    scheme: str
    """``https`` or ``http``."""
    authority: bytes
    """``:authority``, that of an absolute target or of the CONNECT around it, or Host."""
    version: bytes
    """``HTTP/1.0``, ``HTTP/1.1`` or ``HTTP/2``."""
    protocol: bytes = b""
    """HTTP/2's ``:protocol`` of an extended CONNECT."""
    proxied: bool = False
    """Whether it came as to a proxy: the client named the host that it wants."""
    websocket: bool = False
    """Whether it asks for a WebSocket."""
    body: bytes = b""
    """As transferred: without framing, with its content codings."""
    trailers: tuple[Header, ...] = ()

    @property
    def encodings(self) -> str:
        """Content codings, then transfer codings other than chunked, in the order in which they were applied."""
        return content_codings(self.headers) if self.body else ""


@dataclass(slots=True, eq=False)
class Incoming:
    """The body of a request on its way."""

    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    ended: bool = False
    messages: int = 0
    """gRPC messages that came whole."""
    _decoder: GrpcDecoder | None = None
    _news: asyncio.Event | None = None

    def follow(self, request: ReceivedRequest) -> None:
        """From now on tell `passed` of what comes."""
        self._news = asyncio.Event()
        if kind_of_type(request) == "grpc":
            self._decoder = GrpcDecoder(Side.REQUEST, limit=_MESSAGE_KEPT)
            for piece in self.pieces:
                self._count(piece)

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.pieces.append(data)
        self.size += len(data)
        if self._news:
            self._count(data)
            self._news.set()

    def end(self) -> bytes:
        """Take the end; return the body."""
        self.ended = True
        if self._news:
            self._news.set()
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def _count(self, data: bytes) -> None:
        if self._decoder:
            self.messages += sum(message.kind == "message" for message in self._decoder.feed(data, 0))

    async def passed(self, gate: int, *, by_messages: bool) -> None:
        """Wait until so many bytes, or messages, came, or all there is."""
        while self._news and not self.ended and (self.messages if by_messages else self.size) < gate:
            self._news.clear()
            await self._news.wait()

    async def whole(self) -> None:
        """Wait for the end."""
        while self._news and not self.ended:
            self._news.clear()
            await self._news.wait()
