"""HTTP/1 (RFC 9112) for a replay server: httptools reads the requests, answers are written as they are.

Small answers go out in one call as soon as their request is whole.  Large ones, delayed ones and those that depend on the rest of their
request are sent by a task, at the speed of the client.  Requests that come ahead wait their turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

from tlscap.http.events import Header
from tlscap.replay.serve.answers import Answer, http1_interim
from tlscap.replay.serve.pace import Pace
from tlscap.replay.serve.playbook import Entry
from tlscap.replay.serve.requests import Incoming, ReceivedRequest
from tlscap.replay.serve.state import ReplayState, refusal
from tlscap.replay.serve.websocket import Conversation, handshake_bytes

HEAD_LIMIT: Final = 64 << 10
"""Bytes of a request line and its fields, or of trailers."""

_FIELD_COST: Final = 4  # bytes around a name and a value
_AHEAD_LIMIT: Final = 32  # requests that wait for their turn before reading stops
_LINGER_S: Final = 2.0
_SLICE: Final = 1 << 16
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True, eq=False)
class _Turn:
    """A request, on its way or waiting."""

    request: ReceivedRequest
    keep_alive: bool
    incoming: Incoming = field(default_factory=Incoming)
    entry: Entry | None = None
    """What answers it, if that was known before its body."""
    refused: Answer | None = None
    whole: bool = False


class Http1Protocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: ReplayState, *, scheme: str, authority: bytes = b"", on_close: Any = None) -> None:
        """``authority`` is what a CONNECT around this connection named."""
        self._state = state
        self._scheme = scheme
        self._authority = authority
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._plain_speed = not state.options.timing
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[Header] = []
        self._head_size = 0
        self._in_head = True
        self._not_upgraded: tuple[Header, ...] = ()
        self._again = b""  # the head of a request that asked for an upgrade, without that
        self._since = 0  # bytes since the parser last told of something
        self._current: _Turn | None = None
        self._turns: deque[_Turn] = deque()
        self._task: asyncio.Task[None] | None = None
        self._conversation: Conversation | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._reading_paused = False
        self._half_closed = False
        self.silent_s = 0.0
        """Seconds since something came; counted by the server."""

    # --- The connection ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._writable.set()
        if self._conversation:
            self._conversation.lost()
        elif self._task:
            self._task.cancel()
        for turn in {id(one): one for one in (*self._turns, self._current) if one}.values():
            self._release(turn)
        self._turns.clear()
        self._current = None
        self._transport = None
        if self._on_close:
            self._on_close(self)

    def eof_received(self) -> bool:
        # A client that half-closes still gets its answers, unless these wait for more of it.  TLS has no half-closed connections.
        pending = self._task is not None or bool(self._turns)
        self._half_closed = pending and not self._current and not self._conversation and self._scheme == "http"
        return self._half_closed

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        if not self._task:
            self._advance()

    @property
    def idle(self) -> bool:
        """Whether nothing is going on."""
        return self._task is None

    def shut_down(self) -> None:
        """End now."""
        if self._task:
            self._task.cancel()
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """End without a word."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.silent_s = 0.0
        if self._conversation:
            self._conversation.receive(data)
            return
        while data and not self._closing:
            if self._in_head and not self._url:
                data = data.lstrip(b"\r\n") if data[:1] in b"\r\n" else data
            self._since += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self._conversation:
                    self._conversation.receive(data)
                    return
                # An upgrade that isn't taken, such as h2c: HTTP/1.1 goes on (RFC 9110, 7.8).  The parser left the body out.
                self._parser = httptools.HttpRequestParser(self)
                self._since = 0
                data, self._again = self._again + data, b""
                continue
            except httptools.HttpParserError:
                self._refuse(400, "This is no HTTP request.")
                return
            break
        if self._since > HEAD_LIMIT and not self._closing:
            self._refuse(431 if self._in_head else 400, "The head of this request is too long.")

    # --- What the parser tells ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._head_size = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + _FIELD_COST
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._since = 0
        self._in_head = False
        parser = self._parser
        method = parser.get_method()
        if self._not_upgraded:
            headers, self._not_upgraded = self._not_upgraded, ()
        else:
            headers = tuple(self._headers)
        self._headers = []
        authority, waits, length, upgrade, has_body = self._authority, False, 0, False, False
        for name, value in headers:
            match name.lower():
                case b"host":
                    authority = authority or value
                case b"expect":
                    waits = value.lower() == b"100-continue"
                case b"content-length":
                    length = int(value) if value.isdigit() else 0
                    has_body = length > 0
                case b"transfer-encoding":
                    has_body = True
                case b"upgrade":
                    upgrade = value.strip().lower() == b"websocket"
        if parser.should_upgrade() and not upgrade and method != b"CONNECT":
            self._not_upgraded = headers
            fields = [b"%b: %b\r\n" % field for field in headers if field[0].lower() != b"upgrade"]
            self._again = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self._url, b"".join(fields))
            return
        target, scheme, proxied = self._url, self._scheme, bool(self._authority)
        if target[:1] not in (b"/", b"*") and method != b"CONNECT":
            scheme, authority, target, named = _absolute(target, scheme, authority)
            proxied = proxied or named
        version = parser.get_http_version()
        request = ReceivedRequest(
            method, target, headers, scheme, authority, b"HTTP/1.1" if version == "1.1" else b"HTTP/1.0", b"", proxied
        )
        request.websocket = upgrade and method == b"GET" and parser.should_upgrade()
        turn = self._current = _Turn(request, version == "1.1" and parser.should_keep_alive())
        if len(self._url) + self._head_size > HEAD_LIMIT:
            self._refuse(431, "The head of this request is too long.")
            return
        if length > self._state.options.body_limit:
            self._refuse(413, "The body of this request is too long.")
            return
        if method == b"CONNECT":
            self._refuse(400, "CONNECT must be the first request of a plain connection.")
            return
        if waits and version == "1.1" and self._transport and not self._turns:
            self._transport.write(_CONTINUE)
        if has_body and not self._turns and not self._task:
            self._begin_early(turn)

    def on_body(self, body: bytes) -> None:
        self._since = 0
        turn = self._current
        if turn is None or self._closing:
            return
        turn.incoming.add(body)
        self._state.bodies_left -= len(body)
        if turn.incoming.size > self._state.options.body_limit:
            self._refuse(413, "The body of this request is too long.")
        elif self._state.bodies_left < 0:
            self._refuse(503, "The bodies of all requests under way take too much memory.")

    def on_message_complete(self) -> None:
        self._since = 0
        turn = self._current
        self._in_head = True
        self._url = b""
        if turn is None or self._closing:
            return
        self._current = None
        turn.whole = True
        turn.request.body = turn.incoming.end()
        turn.request.trailers = tuple(self._headers)
        self._headers = []
        if turn.entry:
            return
        self._turns.append(turn)
        if self._task or len(self._turns) > 1:
            if len(self._turns) > _AHEAD_LIMIT and self._transport and not self._reading_paused:
                self._transport.pause_reading()
                self._reading_paused = True
            return
        self._advance()

    # --- Answers ---

    def _begin_early(self, turn: _Turn) -> None:
        """Begin to answer before the rest of the request came, if that is how it was."""
        entry = self._state.decide_early(turn.request, turn.incoming)
        if entry:
            turn.entry = entry
            turn.incoming.follow(turn.request)
            self._turns.append(turn)
            self._start(self._perform(turn, entry.answer))

    def _advance(self) -> None:
        """Answer the requests that are whole, in their order, as long as that takes no waiting."""
        while self._turns and not self._task and self._writable.is_set() and self._transport:
            turn = self._turns[0]
            if self._conversation or turn.entry:
                return
            answer = turn.refused or self._state.decide(turn.request)
            if answer is None:
                self._start(self._forward(turn))
                return
            if answer.is_websocket:
                self._turns.popleft()
                self._accept_websocket(turn, answer)
                return
            ready = None
            if self._plain_speed or answer.exchange is None:
                ready = answer.http1(bodiless=turn.request.method == b"HEAD", old=turn.request.version == b"HTTP/1.0")
            if ready is None or ready.whole is None:
                self._start(self._perform(turn, answer))
                return
            self._turns.popleft()
            self._transport.write(ready.whole)
            self._finished(turn, close=ready.close)
        if self._reading_paused and len(self._turns) <= _AHEAD_LIMIT and self._transport:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._half_closed and not self._turns and not self._task and self._transport:
            self._transport.close()

    def _start(self, work: Any) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        failed = None if task.cancelled() else task.exception()
        if failed:
            self._state.faults.append(failed)
        if (failed or task.cancelled()) and self._transport:
            self._transport.abort()
        else:
            self._advance()

    async def _forward(self, turn: _Turn) -> None:
        await self._perform(turn, await self._state.forward(turn.request))

    async def _perform(self, turn: _Turn, answer: Answer) -> None:
        """Send an answer step by step."""
        request, incoming, response = turn.request, turn.incoming, answer.response
        pace = Pace.of_answer(answer, self._state.options.timing, early=turn.entry is not None)
        old = request.version == b"HTTP/1.0"
        ready = answer.http1(bodiless=request.method == b"HEAD", old=old)
        for interim in () if old else answer.interims:
            await pace.until(interim.time_ns)
            await self._write(http1_interim(interim))
        if turn.entry:
            await incoming.passed(answer.head_gate, by_messages=answer.by_messages)
        await pace.until(response.started_ns)
        await self._write(ready.head)
        gates = answer.gates if turn.entry else []
        for number, piece in enumerate(ready.pieces):
            if number < len(gates):
                await incoming.passed(gates[number], by_messages=answer.by_messages)
            if number < len(response.pieces):
                await pace.until(response.pieces[number].time_ns)
            for start in range(0, len(piece), _SLICE):
                await self._write(piece[start : start + _SLICE])
        if turn.entry and answer.waits_for_end:
            await incoming.whole()
        await pace.until(response.ended_ns)
        if turn.entry and turn.whole and not self._state.playbook.agrees(request, turn.entry):
            self._state.report(self._state.playbook.disagreement(request, turn.entry))
            self.shut_down()
            return
        await self._write(ready.end)
        self._turns.popleft()
        self._finished(turn, close=ready.close or not turn.whole)

    async def _write(self, data: bytes) -> None:
        await self._writable.wait()
        if data and self._transport:
            self._transport.write(data)

    def _finished(self, turn: _Turn, *, close: bool) -> None:
        self._release(turn)
        if (close or turn.refused or not turn.keep_alive) and self._transport:
            self._closing = True
            self._turns.clear()
            if turn.refused or not turn.whole:
                self._linger()
            else:
                self._transport.close()

    def _release(self, turn: _Turn) -> None:
        self._state.bodies_left += turn.incoming.size
        turn.incoming.size = 0

    def _refuse(self, status: int, why: str) -> None:
        """Answer what can't be read any further, after what came before it, and end the connection."""
        self._closing = True
        turn, self._current = self._current, None
        if turn and turn.entry:  # its answer is under way, and waits for what isn't read
            self._release(turn)
            self.shut_down()
            return
        if turn is None:
            turn = _Turn(ReceivedRequest(b"GET", b"/", (), self._scheme, b"", b"HTTP/1.1"), keep_alive=False)
        turn.refused = refusal(status, why)
        self._turns.append(turn)
        self._advance()

    def _linger(self) -> None:
        """Close a connection whose client is still sending: at once, the kernel would reset it, and the answer would be lost (RFC 9112, 9.6)."""
        transport = self._transport
        if transport is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(_LINGER_S, transport.close)

    # --- WebSocket ---

    def _accept_websocket(self, turn: _Turn, answer: Answer) -> None:
        if answer.exchange is None or self._transport is None:
            return
        head, deflate = handshake_bytes(turn.request, answer)
        self._transport.write(head)

        def report(what: str, lines: list[str]) -> None:
            self._state.report_message(turn.request, answer, what, lines)

        self._conversation = Conversation(
            answer.exchange,
            self,
            deflate,
            limit=self._state.options.body_limit // 4,
            speed=self._state.options.timing,
            report=report,
        )
        self._start(self._conversation.run())

    async def send(self, data: bytes) -> None:
        """Write bytes of a WebSocket."""
        await self._write(data)

    def close(self) -> None:
        """End a WebSocket."""
        self._closing = True
        if self._transport:
            self._transport.close()


def _absolute(target: bytes, scheme: str, authority: bytes) -> tuple[str, bytes, bytes, bool]:
    """Split an absolute target, as clients of a proxy send it (RFC 9112, 3.2.2)."""
    try:
        split = urlsplit(target)
    except ValueError:
        return scheme, authority, target, False
    if not split.scheme or not split.netloc:
        return scheme, authority, target, False
    path = split.path or b"/"
    return (
        split.scheme.decode("latin-1").lower(),
        split.netloc,
        path + (b"?" + split.query if split.query else b""),
        True,
    )
