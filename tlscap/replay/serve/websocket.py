"""A recorded WebSocket conversation, held again: the server's messages after the client's that preceded them (RFC 6455).

Client messages are compared with the recorded ones; one that differs is reported, and ends the conversation with 1008.  Pings are answered,
pongs are not waited for: clients send both when they like.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import ProtocolError

from tlscap.http.events import Header, Side
from tlscap.http.messages import field_values
from tlscap.replay.json_documents import parse_json, plain_number
from tlscap.replay.matching import Content
from tlscap.replay.nearest import content_differences
from tlscap.replay.recording import RecordedExchange, TunnelMessage
from tlscap.replay.serve.answers import Answer, http1_head, http2_fields
from tlscap.replay.serve.pace import Pace
from tlscap.replay.serve.requests import ReceivedRequest

Message = TextMessage | BytesMessage

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_EXTENSIONS: Final = b"sec-websocket-extensions"
_PIECE: Final = 4096  # bytes decompressed at once: a thousand times as much at most
_AHEAD_LIMIT: Final = 1000  # messages that a client may be ahead of the conversation
_CLOSE_PATIENCE_S: Final = 5.0
_REASON_LIMIT: Final = 120  # RFC 6455, 5.5: 125 bytes, two of them the code


class Channel(Protocol):
    """What a conversation is held over: a connection, or a stream of HTTP/2."""

    async def send(self, data: bytes) -> None:
        """Write bytes, at the speed of the client."""
        ...

    def close(self) -> None:
        """End this side."""
        ...


def handshake(request: ReceivedRequest, answer: Answer) -> tuple[int, bytes, list[Header], PerMessageDeflate | None]:
    """Return status, reason and fields that accept a WebSocket, and the compression that was agreed.

    They are the recorded ones, but for what depends on the client's own fields: its key, its offers.
    """
    over_http2 = request.version == b"HTTP/2"
    deflate, agreed = _compression(request, answer)
    protocols = {
        name.strip() for value in field_values(request.headers, b"sec-websocket-protocol") for name in value.split(b",")
    }
    computed: dict[bytes, bytes | None] = {_EXTENSIONS: agreed, b"sec-websocket-accept": _accept(request) or None}
    found: list[Header] = []
    for name, value in answer.response.headers:
        lower = name.lower()
        if lower == b"sec-websocket-protocol" and value.strip() not in protocols:
            continue
        if lower in (b"content-length", b"transfer-encoding"):
            continue
        fresh = computed.pop(lower) if lower in computed else value
        if fresh is not None:
            found.append((name, fresh))
    if over_http2:
        return 200, b"", [field for field in http2_fields(tuple(found)) if field[0] != b"sec-websocket-accept"], deflate
    names = {name.lower() for name, _ in found}
    wanted = ((b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", _accept(request)))
    missing = [(name, value) for name, value in wanted if name not in names]
    reason = answer.response.reason if answer.response.status == 101 else b""
    return 101, reason, [*missing, *found], deflate


def handshake_bytes(request: ReceivedRequest, answer: Answer) -> tuple[bytes, PerMessageDeflate | None]:
    """Return the same for a connection of HTTP/1.1."""
    status, reason, headers, deflate = handshake(request, answer)
    return http1_head(status, reason, headers), deflate


def _accept(request: ReceivedRequest) -> bytes:
    keys = field_values(request.headers, b"sec-websocket-key")
    key = keys[0].strip() if keys else b""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()) if key else b""


def _compression(request: ReceivedRequest, answer: Answer) -> tuple[PerMessageDeflate | None, bytes | None]:
    recorded = b",".join(answer.response.values(_EXTENSIONS)).lower()
    if PerMessageDeflate.name.encode() not in recorded:
        return None, None
    for value in field_values(request.headers, _EXTENSIONS):
        for offer in value.decode("latin-1").split(","):
            if offer.partition(";")[0].strip().lower() != PerMessageDeflate.name:
                continue
            deflate = PerMessageDeflate()
            try:
                agreed = deflate.accept(offer.strip())
            except ValueError:
                continue
            if agreed is None:
                continue
            text = f"{deflate.name}; {agreed}" if agreed else deflate.name
            return deflate, text.encode("latin-1")
    return None, None


class Conversation:
    """One WebSocket, played."""

    def __init__(
        self,
        exchange: RecordedExchange,
        channel: Channel,
        deflate: PerMessageDeflate | None,
        *,
        limit: int,
        speed: float,
        report: Callable[[str, list[str]], None],
    ) -> None:
        """``limit``: bytes of a message.  ``report`` takes what was wrong, and lines with the details."""
        self._exchange = exchange
        self._channel = channel
        self._socket = Connection(ConnectionType.SERVER, [deflate] if deflate else [])
        self._limit = limit
        self._report = report
        self._pace = Pace(speed, exchange.response.ended_ns if exchange.response else 0)
        self._received: deque[Event | None] = deque()
        self._news = asyncio.Event()
        self._parts: list[bytes] = []
        self._size = 0
        self._fault: tuple[int, str] | None = None
        self._waiting: deque[Message] = deque()

    # --- From the client ---

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        for start in range(0, len(data), _PIECE):
            if self._fault:
                return
            self._receive(data[start : start + _PIECE])
        self._news.set()

    def _receive(self, data: bytes) -> None:
        try:
            self._socket.receive_data(data)
            for event in self._socket.events():
                self._note(event)
        except ProtocolError as error:
            self._fault = (1002, str(error))

    def _note(self, event: Event) -> None:
        if isinstance(event, Message):
            piece = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            self._parts.append(piece)
            self._size += len(piece)
            if self._size > self._limit:
                self._fault = (1009, "message too long")
                return
            if not event.message_finished:
                return
            whole = b"".join(self._parts)
            self._parts, self._size = [], 0
            event = TextMessage(whole.decode()) if isinstance(event, TextMessage) else BytesMessage(whole)
        self._received.append(event)
        if len(self._received) + len(self._waiting) > _AHEAD_LIMIT:
            self._fault = (1008, "too many messages that nobody waits for")

    def lost(self) -> None:
        """Take the news that the connection is gone."""
        self._received.append(None)
        self._news.set()

    # --- The conversation ---

    async def run(self) -> None:
        """Hold it, to its end."""
        try:
            await self._play()
        except _OverError:
            pass
        finally:
            self._channel.close()

    async def _play(self) -> None:
        number = 0
        messages = self._exchange.messages
        for message in messages:
            if message.side is Side.RESPONSE:
                if message.kind == "close":
                    break
                if message.kind != "pong":
                    await self._wait_until(message.time_ns)
                    await self._send(_event(message))
            elif message.kind in ("text", "binary"):
                number += 1
                await self._compare(await self._next_message(), message, number)
            elif message.kind == "close":
                await self._until_closed()
        closing = next((one for one in messages if one.side is Side.RESPONSE and one.kind == "close"), None)
        if closing:
            await self._wait_until(closing.time_ns)
            await self._close(closing.code, closing.data.decode("utf-8", "replace"))
        surplus = await self._next_message()
        await self._differs(
            f"client message {number + 1}", [f"is {_shown(surplus)}; the recorded conversation is over"]
        )

    async def _compare(self, message: Message, recorded: TunnelMessage, number: int) -> None:
        what = f"client message {number}"
        kind = "text" if isinstance(message, TextMessage) else "binary"
        if kind != recorded.kind:
            await self._differs(what, [f"is {kind}, recorded {recorded.kind}"])
        one, two = _content(message.data), _content(recorded.data)
        if one.digest() != two.digest():
            await self._differs(what, list(content_differences(one, two))[:20])

    async def _differs(self, what: str, lines: list[str]) -> None:
        self._report(what, lines)
        await self._close(1008, f"not as recorded: {what}")

    async def _next_message(self) -> Message:
        while not self._waiting:
            await self._react(None)
        return self._waiting.popleft()

    async def _until_closed(self) -> None:
        while True:
            if self._waiting:
                return
            await self._react(None)

    async def _wait_until(self, time_ns: int) -> None:
        while (left := self._pace.left(time_ns)) > 0:
            await self._react(left)

    async def _react(self, patience_s: float | None) -> None:
        """Take one event of the client, or wait for it; messages are put aside for whoever wants them."""
        if not self._received and not self._fault:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), patience_s)
            except TimeoutError:
                return
        if self._received:
            match self._received.popleft():
                case None:
                    raise _OverError
                case (TextMessage() | BytesMessage()) as message:
                    self._waiting.append(message)
                case Ping() as ping:
                    await self._send(ping.response())
                case CloseConnection() as close:
                    await self._answer_close(close)
        elif self._fault:
            code, reason = self._fault
            await self._close(code, reason)

    async def _answer_close(self, close: CloseConnection) -> None:
        """Answer the client's close as the server did, else with its own code."""
        recorded = next(
            (one for one in self._exchange.messages if one.side is Side.RESPONSE and one.kind == "close"), None
        )
        if self._socket.state is ConnectionState.REMOTE_CLOSING:
            if recorded:
                await self._send(_closing(recorded.code, recorded.data.decode("utf-8", "replace")))
            else:
                await self._send(close.response())
        elif self._socket.state is ConnectionState.OPEN:  # what came was no WebSocket frame
            await self._send(_closing(close.code, close.reason or ""))
        raise _OverError

    async def _close(self, code: int, reason: str) -> None:
        """Say that it is over, and wait for the client to agree."""
        if self._socket.state is ConnectionState.OPEN:
            await self._send(_closing(code, reason))
            if not self._fault:
                try:
                    async with asyncio.timeout(_CLOSE_PATIENCE_S):
                        while not any(event is None or isinstance(event, CloseConnection) for event in self._received):
                            self._received.clear()
                            self._news.clear()
                            await self._news.wait()
                except TimeoutError:
                    pass
        raise _OverError

    async def _send(self, event: Event) -> None:
        await self._channel.send(bytes(self._socket.send(event)))


class _OverError(Exception):
    """The conversation is over."""


def _event(message: TunnelMessage) -> Event:
    if message.kind == "ping":
        return Ping(payload=message.data)
    if message.kind == "text":
        try:
            return TextMessage(message.data.decode())
        except UnicodeDecodeError:
            pass
    return BytesMessage(message.data)


def _closing(code: int, reason: str) -> CloseConnection:
    if not 1000 <= code <= 4999 or code in (1004, 1005, 1006, 1015):
        return CloseConnection(code=1005)  # a frame without a code
    return CloseConnection(code=code, reason=reason.encode()[:_REASON_LIMIT].decode("utf-8", "ignore"))


def _content(data: str | bytes | bytearray) -> Content:
    """Return a message as it is compared: JSON when it is that."""
    text = data.encode() if isinstance(data, str) else bytes(data)
    if text[:1] in (b"{", b"["):
        try:
            return Content("json", [parse_json(text, number=plain_number)])
        except ValueError:
            pass
    return Content("bytes", text)


def _shown(message: Message) -> str:
    data = message.data if isinstance(message.data, str) else bytes(message.data).hex(" ")
    return repr(data if len(data) <= 80 else data[:79] + "…")
