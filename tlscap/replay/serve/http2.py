"""HTTP/2 (RFC 9113) for a replay server, by h2: fields and bodies as recorded, within the windows that the client grants.

Small answers go out with whatever else was asked in the same read.  Each of the others is sent by a task of its stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import h2.connection
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder, NeverIndexedHeaderTuple

from tlscap.http.events import Header
from tlscap.replay.serve.answers import Answer, http2_interim
from tlscap.replay.serve.pace import Pace
from tlscap.replay.serve.playbook import Entry
from tlscap.replay.serve.requests import Incoming, ReceivedRequest
from tlscap.replay.serve.state import ReplayState, grpc_trailers, refusal
from tlscap.replay.serve.websocket import Conversation, handshake

_STREAMS: Final = 128
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 8 << 20
_HEAD_LIMIT: Final = 64 << 10
_FLUSH: Final = 1 << 18  # bytes that one read may put into the buffer before answers have to wait for the client
_RESETS: Final = 500
"""Streams that a client may reset beyond those that it lets end: more is an attack (CVE-2023-44487)."""
_BLOCKS_KEPT: Final = 4096
_EMPTY_TABLE: Final = b"\x20"  # RFC 7541, 6.3: the dynamic table's size becomes 0

_blocks: dict[tuple[Header, ...], bytes] = {}


class _StatelessEncoder:
    """Encodes fields without the dynamic table (RFC 7541, 2.3.2): the same fields are the same bytes on every connection, and are kept.

    It stands in for hpack's in h2.
    """

    def __init__(self) -> None:
        self._prefix = b""

    @property
    def header_table_size(self) -> int:
        """Of the table that isn't used."""
        return 0

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        # RFC 7541, 4.2: a table that the peer made smaller is acknowledged by the next block.
        self._prefix = _EMPTY_TABLE

    def encode(self, headers: Any) -> bytes:
        """Return a block."""
        key = tuple(headers)
        block = _blocks.get(key)
        if block is None:
            if len(_blocks) >= _BLOCKS_KEPT:
                _blocks.clear()
            block = _blocks[key] = Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in key])
        prefix, self._prefix = self._prefix, b""
        return prefix + block


@dataclass(slots=True, eq=False)
class _Stream:
    """A request and its answer."""

    id: int
    request: ReceivedRequest
    incoming: Incoming = field(default_factory=Incoming)
    entry: Entry | None = None
    task: asyncio.Task[None] | None = None
    conversation: Conversation | None = None
    answered: bool = False


class Http2Protocol(asyncio.Protocol):
    """One connection."""

    def __init__(
        self, state: ReplayState, *, scheme: str, authority: bytes = b"", websockets: bool = False, on_close: Any = None
    ) -> None:
        """``authority`` is what a CONNECT around this connection named; ``websockets``: whether to offer those (RFC 8441)."""
        self._state = state
        self._scheme = scheme
        self._authority = authority
        self._websockets = websockets
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._at_once = not state.options.timing
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            # What is sent was made by `answers`; what comes is only compared.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._buffered = 0
        self._resets = 0
        self._window_news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.silent_s = 0.0
        """Seconds since something came; counted by the server."""

    # --- The connection ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        connection = self._h2
        initial = {
            SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: _HEAD_LIMIT,
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
        }
        if self._websockets:
            initial[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        connection.local_settings = Settings(client=False, initial_values=initial)
        connection.decoder.max_header_list_size = _HEAD_LIMIT
        connection.encoder = _StatelessEncoder()  # type: ignore[assignment]  # as much of one as h2 uses
        connection.initiate_connection()
        connection.increment_flow_control_window(_CONNECTION_WINDOW)
        transport.write(connection.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        for stream in list(self._streams.values()):
            self._forget(stream)
        if self._on_close:
            self._on_close(self)

    def pause_writing(self) -> None:
        # A client that doesn't read its answers isn't read from either: nothing piles up.
        self._writable.clear()
        if self._transport:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._transport:
            self._transport.resume_reading()

    @property
    def idle(self) -> bool:
        """Whether nothing is going on."""
        return not any(stream.task for stream in self._streams.values())

    def shut_down(self) -> None:
        """End now."""
        if self._transport:
            self._h2.close_connection()
            self._flush()
            self._transport.close()
        for stream in list(self._streams.values()):
            self._forget(stream)

    def abort(self) -> None:
        """End without a word."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.silent_s = 0.0
        self._buffered = 0
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
                if self._transport is None:
                    return
        except ProtocolError:
            self._flush()
            if self._transport:
                self._transport.close()
            return
        self._flush()

    def _flush(self) -> None:
        if self._transport and (data := self._h2.data_to_send()):
            self._transport.write(data)

    def _take(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case StreamEnded():
                if stream := self._streams.get(event.stream_id):
                    self._whole(stream)
            case DataReceived():
                self._data(event)
            case WindowUpdated() | RemoteSettingsChanged():
                self._window_news.set()
            case StreamReset():
                self._resets += 1
                if stream := self._streams.get(event.stream_id):
                    self._forget(stream)
                if self._resets > _RESETS and self._transport:
                    self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                    self._flush()
                    self._transport.close()
                    self._transport = None
            case TrailersReceived():
                if stream := self._streams.get(event.stream_id):
                    stream.request.trailers = tuple((bytes(name), bytes(value)) for name, value in event.headers or ())
            case ConnectionTerminated():
                if self._transport and not self._streams:
                    self._transport.close()
            case _:
                pass

    # --- Requests ---

    def _begin(self, event: RequestReceived) -> None:
        pseudo: dict[bytes, bytes] = {}
        fields: list[Header] = []
        waits, host = False, b""
        for name, value in event.headers or ():
            if name[:1] == b":":
                pseudo[name] = value
                continue
            fields.append((name, value))
            if name == b"host":
                host = value
            elif name == b"expect":
                waits = value.lower() == b"100-continue"
        method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        protocol = pseudo.get(b":protocol", b"")
        if not method or (not path and method != b"CONNECT"):
            self._h2.reset_stream(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        authority = pseudo.get(b":authority", b"") or host or self._authority
        request = ReceivedRequest(
            method, path, tuple(fields), self._scheme, authority, b"HTTP/2", protocol, bool(self._authority)
        )
        stream = self._streams[event.stream_id] = _Stream(event.stream_id, request)
        if method == b"CONNECT" and protocol != b"websocket":
            self._respond(stream, refusal(501, "There is no tunnel within HTTP/2 here."))
        elif protocol:
            request.websocket = True
            self._decide(stream)
        elif event.stream_ended is None:
            if waits:
                self._h2.send_headers(stream.id, ((b":status", b"100"),))
            self._begin_early(stream)

    def _begin_early(self, stream: _Stream) -> None:
        """Begin to answer before the rest of the request came, if that is how it was."""
        stream.entry = self._state.decide_early(stream.request, stream.incoming)
        if stream.entry:
            stream.incoming.follow(stream.request)
            self._start(stream, self._perform(stream, stream.entry.answer))

    def _data(self, event: DataReceived) -> None:
        data, length = event.data or b"", event.flow_controlled_length or 0
        if length:
            self._h2.acknowledge_received_data(length, event.stream_id)
        stream = self._streams.get(event.stream_id)
        if stream is None or stream.answered:
            return
        if stream.conversation:
            stream.conversation.receive(data)
            return
        if not data:
            return
        stream.incoming.add(data)
        self._state.bodies_left -= len(data)
        if stream.incoming.size > self._state.options.body_limit:
            self._respond(stream, refusal(413, "The body of this request is too long."))
        elif self._state.bodies_left < 0:
            self._respond(stream, refusal(503, "The bodies of all requests under way take too much memory."))
        elif not stream.entry:
            self._begin_early(stream)

    def _whole(self, stream: _Stream) -> None:
        if stream.conversation:
            stream.conversation.lost()
            return
        stream.request.body = stream.incoming.end()
        if not stream.entry and not stream.answered:
            self._decide(stream)

    def _decide(self, stream: _Stream) -> None:
        answer = self._state.decide(stream.request)
        if answer is None:
            self._start(stream, self._forward(stream))
        else:
            self._respond(stream, answer)

    # --- Answers ---

    def _respond(self, stream: _Stream, answer: Answer) -> None:
        """Answer at once if that fits, else step by step."""
        if answer.is_websocket:
            self._accept_websocket(stream, answer)
            return
        connection = self._h2
        ready = answer.http2(bodiless=stream.request.method == b"HEAD")
        body = ready.body
        if (
            body is not None
            and not answer.interims
            and (self._at_once or answer.exchange is None)
            and self._buffered < _FLUSH
        ):
            size = len(body)
            if not size:
                connection.send_headers(stream.id, ready.headers, end_stream=not ready.trailers)
            elif size <= connection.max_outbound_frame_size and size <= connection.local_flow_control_window(stream.id):
                connection.send_headers(stream.id, ready.headers)
                connection.send_data(stream.id, body, end_stream=not ready.trailers)
                self._buffered += size
            else:
                size = -1
            if size >= 0:
                if ready.trailers:
                    connection.send_headers(stream.id, ready.trailers, end_stream=True)
                self._finished(stream)
                return
        self._start(stream, self._perform(stream, answer))

    def _start(self, stream: _Stream, work: Any) -> None:
        task = stream.task = self._loop.create_task(work)
        task.add_done_callback(lambda done: self._done(stream, done))

    def _done(self, stream: _Stream, task: asyncio.Task[None]) -> None:
        failed = None if task.cancelled() else task.exception()
        if failed and not isinstance(failed, ProtocolError):  # the stream was reset meanwhile
            self._state.faults.append(failed)
        if failed and self._transport:
            self._reset(stream, ErrorCodes.INTERNAL_ERROR)
        self._forget(stream)

    async def _forward(self, stream: _Stream) -> None:
        await self._perform(stream, await self._state.forward(stream.request))

    async def _perform(self, stream: _Stream, answer: Answer) -> None:
        """Send an answer step by step."""
        request, incoming, response = stream.request, stream.incoming, answer.response
        pace = Pace.of_answer(answer, self._state.options.timing, early=stream.entry is not None)
        ready = answer.http2(bodiless=request.method == b"HEAD")
        for interim in answer.interims:
            await pace.until(interim.time_ns)
            self._h2.send_headers(stream.id, http2_interim(interim))
            self._flush()
        if stream.entry:
            await incoming.passed(answer.head_gate, by_messages=answer.by_messages)
        await pace.until(response.started_ns)
        nothing_follows = not ready.pieces and not ready.trailers and not (stream.entry and answer.waits_for_end)
        await self._writable.wait()
        self._h2.send_headers(stream.id, ready.headers, end_stream=nothing_follows)
        self._flush()
        gates = answer.gates if stream.entry else []
        for number, piece in enumerate(ready.pieces):
            if number < len(gates):
                await incoming.passed(gates[number], by_messages=answer.by_messages)
            if number < len(response.pieces):
                await pace.until(response.pieces[number].time_ns)
            await self._send_data(stream.id, piece)
        if not nothing_follows:
            if stream.entry and answer.waits_for_end:
                await incoming.whole()
            await pace.until(response.ended_ns)
            await self._writable.wait()
            if stream.entry and incoming.ended and not self._state.playbook.agrees(request, stream.entry):
                self._disagree(stream, stream.entry)
                return
            if ready.trailers:
                self._h2.send_headers(stream.id, ready.trailers, end_stream=True)
            else:
                self._h2.end_stream(stream.id)
        self._finished(stream)
        self._flush()

    def _disagree(self, stream: _Stream, entry: Entry) -> None:
        """Say that the rest of a request wasn't the recorded one, as far as that can still be said."""
        miss = self._state.playbook.disagreement(stream.request, entry)
        self._state.report(miss)
        if trailers := grpc_trailers(stream.request, miss):
            self._h2.send_headers(stream.id, trailers, end_stream=True)
            self._finished(stream)
        else:
            self._reset(stream, ErrorCodes.INTERNAL_ERROR)
        self._flush()

    async def _send_data(self, stream_id: int, data: bytes) -> None:
        """Send bytes as the client's windows allow."""
        connection = self._h2
        at = 0
        while at < len(data):
            await self._writable.wait()
            room = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if room <= 0:
                self._window_news.clear()
                await self._window_news.wait()
                continue
            connection.send_data(stream_id, data[at : at + room])
            self._flush()
            at += room

    def _finished(self, stream: _Stream) -> None:
        stream.answered = True
        self._resets -= self._resets > 0
        if not stream.incoming.ended:
            # RFC 9113, 8.1: the answer is whole, the rest of the question isn't needed.
            self._reset(stream, ErrorCodes.NO_ERROR)
        self._forget(stream)

    def _reset(self, stream: _Stream, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(stream.id, code)
        except ProtocolError:
            return  # it is over already
        self._flush()

    def _forget(self, stream: _Stream) -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        self._state.bodies_left += stream.incoming.size
        stream.incoming.size = 0
        if stream.conversation:
            stream.conversation.lost()
        elif stream.task and stream.task is not asyncio.current_task(self._loop):
            stream.task.cancel()

    # --- WebSocket (RFC 8441) ---

    def _accept_websocket(self, stream: _Stream, answer: Answer) -> None:
        if answer.exchange is None:
            return
        status, _, headers, deflate = handshake(stream.request, answer)
        self._h2.send_headers(stream.id, ((b":status", b"%d" % status), *headers))

        def report(what: str, lines: list[str]) -> None:
            self._state.report_message(stream.request, answer, what, lines)

        stream.conversation = Conversation(
            answer.exchange,
            _StreamChannel(self, stream),
            deflate,
            limit=self._state.options.body_limit // 4,
            speed=self._state.options.timing,
            report=report,
        )
        self._start(stream, stream.conversation.run())


class _StreamChannel:
    """A stream that carries a WebSocket."""

    def __init__(self, protocol: Http2Protocol, stream: _Stream) -> None:
        self._protocol = protocol
        self._stream = stream

    async def send(self, data: bytes) -> None:
        """Write bytes."""
        await self._protocol._send_data(self._stream.id, data)

    def close(self) -> None:
        """End the stream."""
        protocol, stream = self._protocol, self._stream
        if stream.id in protocol._streams and protocol._transport:
            try:
                protocol._h2.end_stream(stream.id)
            except ProtocolError:
                return  # the client was faster
            protocol._flush()
