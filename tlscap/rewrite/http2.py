"""Exchanges of one connection to HTTP/2 (RFC 9113): each on a stream of its own, in frames that say no more than they must.

Header blocks use HPACK's static table and literals that are never indexed and not Huffman-coded (RFC 7541): the same fields are
always the same bytes, and whoever looks for a text in the file finds it.  A body's piece is a DATA frame, a hole in it one in the
file.  A stream that was cut short gets no END_STREAM; one that was reset gets its RST_STREAM.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Final

from hpack import Encoder, NeverIndexedHeaderTuple

from tlscap.http.events import Header, Side
from tlscap.http.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    HEADERS,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    error_name,
)
from tlscap.model import GapReason
from tlscap.replay.recording import (
    Hole,
    Piece,
    RecordedExchange,
    RecordedMessage,
    RecordedRequest,
    RecordedResponse,
)
from tlscap.rewrite.steps import (
    Lane,
    Part,
    Passing,
    Step,
    content,
    declared_length,
    fitting_length,
    interleave,
    stored_length,
    with_length,
)
from tlscap.rewrite.websocket import frame as websocket_frame
from tlscap.rewrite.websocket import without_deflate

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_MAX_FRAME: Final = (1 << 24) - 1
_MAX_FRAME_SIZE: Final = 0x5  # settings (RFC 9113, 6.5.2)
_ENABLE_CONNECT_PROTOCOL: Final = 0x8  # RFC 8441, 3
_ERRORS: Final = {error_name(code): code for code in range(14)}
_RESET = re.compile(r"(?:request|response) cut short: stream reset: (\w+), by the (client|server)")


class Http2Writer:
    """Makes steps of the exchanges of one connection, in their order."""

    def __init__(
        self, steps: list[Step], exchanges: Iterable[RecordedExchange], before: dict[Side, Lane] | None = None
    ) -> None:
        """``before`` are the lanes of an HTTP/1.1 connection whose last request asked for h2c; its answer is on stream 1."""
        self._steps = steps
        self._client_stream = 1 if before else -1
        self._server_stream = 0
        self._tunnels = any(exchange.request.protocol for exchange in exchanges)
        self._opening = {side: before[side] if before else Lane(side, steps) for side in Side}
        self._is_open = False

    def add(self, exchange: RecordedExchange, *, after: Step | None = None) -> Step:
        """Write an exchange; return the step with which its question became known, which comes after ``after``."""
        request = exchange.request
        self._open(request.started_ns)
        if request.pushed:
            self._server_stream += 2
            stream = self._server_stream
            asked = self._promise(exchange, stream, after)
            sent: list[Passing] = []
        else:
            self._client_stream += 2
            stream = self._client_stream
            lane = self._lane(Side.REQUEST)
            asked, sent = self._message(lane, exchange, request, stream, _request_fields(request), after)
        self._answer(exchange, stream, asked, sent)
        return asked

    def answer_upgrade(self, exchange: RecordedExchange, asked: Step) -> None:
        """Write the answer to the request that asked for h2c (RFC 7540, 3.2)."""
        response = exchange.response
        assert response, "it was answered"  # noqa: S101
        line = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        self._opening[Side.RESPONSE].add(response.started_ns, line, after=[asked])
        self._open(response.started_ns)
        self._answer(exchange, 1, asked, [])

    def _open(self, time_ns: int) -> None:
        """Write the connection preface of both sides (RFC 9113, 3.4)."""
        if self._is_open:
            return
        self._is_open = True
        settings = struct.pack(">HI", _MAX_FRAME_SIZE, _MAX_FRAME)
        client = self._opening[Side.REQUEST]
        client.add(time_ns, _PREFACE + _frame(SETTINGS, 0, 0, settings), after=[self._opening[Side.RESPONSE].last])
        if self._tunnels:
            settings += struct.pack(">HI", _ENABLE_CONNECT_PROTOCOL, 1)
        self._opening[Side.RESPONSE].add(time_ns, _frame(SETTINGS, 0, 0, settings), after=[client.last])

    def _lane(self, side: Side) -> Lane:
        lane = Lane(side, self._steps)
        lane.last = self._opening[side].last
        return lane

    def _promise(self, exchange: RecordedExchange, stream: int, after: Step | None) -> Step:
        """Write a PUSH_PROMISE (RFC 9113, 6.6), on the stream of the latest request of the client."""
        request = exchange.request
        block = struct.pack(">I", stream) + _block(_request_fields(request))
        data = _frame(PUSH_PROMISE, END_HEADERS, max(1, self._client_stream), block)
        return self._lane(Side.RESPONSE).add(request.started_ns, data, after=[after])

    def _answer(self, exchange: RecordedExchange, stream: int, asked: Step, sent: list[Passing]) -> None:
        lane = self._lane(Side.RESPONSE)
        if response := exchange.response:
            for interim in response.interim:
                fields = ((b":status", b"%03d" % interim.status), *interim.headers)
                data = _frame(HEADERS, END_HEADERS, stream, _block(fields))
                lane.add(interim.time_ns, data, after=[asked])
            answer, received = self._message(
                lane, exchange, response, stream, _response_fields(exchange, response), asked
            )
            interleave(sent, received)
            self._messages(exchange, stream, answer)
        if reset := next((found for text in exchange.problems if (found := _RESET.fullmatch(text))), None):
            ended_ns = max(exchange.request.ended_ns, response.ended_ns if response else 0)
            by = Side.REQUEST if reset[2] == "client" else Side.RESPONSE
            code = struct.pack(">I", _error_number(reset[1]))
            before = [lane.last, asked, *(one.step for one in sent)]
            self._lane(by).add(ended_ns, _frame(RST_STREAM, 0, stream, code), after=before)

    def _message(
        self,
        lane: Lane,
        exchange: RecordedExchange,
        message: RecordedMessage,
        stream: int,
        fields: tuple[Header, ...],
        after: Step | None,
    ) -> tuple[Step, list[Passing]]:
        """Write a message: its head after ``after``, which is returned, its body, trailers, and its end, if it came."""
        if exchange.upgraded_to == "websocket":
            fields = without_deflate(fields)
        parts = list(content(message))
        if not message.complete and not message.missing and declared_length(fields) == stored_length(message):
            # It would be taken for whole: that is all that its length says.
            parts.append(Hole(0, 1, GapReason.UNKNOWN, message.ended_ns))
        in_tunnel = bool(exchange.upgraded_to) and exchange.upgraded_to != "h2c"
        ends = (message.complete or bool(message.missing)) and not in_tunnel
        last_ns = parts[-1].time_ns if parts else message.started_ns
        apart = bool(message.trailers) or message.ended_ns > last_ns or (bool(parts) and isinstance(parts[-1], Hole))
        with_last = ends and not apart
        flags = END_HEADERS | (END_STREAM if with_last and not parts else 0)
        head = lane.add(message.started_ns, _frame(HEADERS, flags, stream, _block(fields)), after=[after])
        passed: list[Passing] = []
        for part in parts:
            is_last = part is parts[-1] and with_last
            step = lane.add(part.time_ns, *_data(part, stream, END_STREAM if is_last else 0))
            passed.append(Passing(part, step))
        if message.trailers:
            flags = END_HEADERS | (END_STREAM if ends else 0)
            lane.add(message.ended_ns, _frame(HEADERS, flags, stream, _block(message.trailers)))
        elif ends and apart:
            lane.add(message.ended_ns, _frame(DATA, END_STREAM, stream, b""))
        return head, passed

    def _messages(self, exchange: RecordedExchange, stream: int, answer: Step) -> None:
        lanes = {side: self._lane(side) for side in Side}
        before = answer
        for message in exchange.messages:
            flags = END_STREAM if message.kind == "close" else 0
            parts = _data(Piece(websocket_frame(message), message.time_ns, 0), stream, flags)
            before = lanes[message.side].add(message.time_ns, *parts, after=[before])


def _error_number(name: str) -> int:
    """Return the number of an error (RFC 9113, 7); of one without a name, that it has in words."""
    try:
        return _ERRORS[name] if name in _ERRORS else int(name, 16) & 0xFFFFFFFF
    except ValueError:
        return 0


# --- Frames ---


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _header(kind, flags, stream, len(payload)) + payload


def _header(kind: int, flags: int, stream: int, length: int) -> bytes:
    return FRAME.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def _data(what: Piece | Hole, stream: int, flags: int) -> list[Part]:
    """Return a piece of a body as DATA frames, of which the last has the flags."""
    parts: list[Part] = []
    length = len(what.data) if isinstance(what, Piece) else what.length
    for begin in range(0, length, _MAX_FRAME):
        size = min(_MAX_FRAME, length - begin)
        parts.append(_header(DATA, flags if begin + size == length else 0, stream, size))
        if isinstance(what, Piece):
            parts.append(what.data[begin : begin + size])
        else:
            parts.append(what._replace(length=size))
    return parts


def _block(fields: Iterable[Header]) -> bytes:
    """Return a header block that changes no table."""
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in fields], huffman=False)


# --- Heads ---


def _request_fields(request: RecordedRequest) -> tuple[Header, ...]:
    connects = request.method == b"CONNECT" and not request.protocol
    pseudo = (
        (b":method", request.method),
        (b":protocol", request.protocol),
        (b":scheme", b"" if connects else request.scheme.encode("latin-1", "replace")),
        (b":authority", request.authority),
        (b":path", b"" if connects else request.target),
    )
    headers = with_length(request.headers, fitting_length(request))
    return (*((name, value) for name, value in pseudo if value), *headers)


def _response_fields(exchange: RecordedExchange, response: RecordedResponse) -> tuple[Header, ...]:
    headers = response.headers
    if exchange.request.method != b"HEAD" and response.status != 304:
        headers = with_length(headers, fitting_length(response))
    status = ((b":status", b"%03d" % response.status),) if response.status else ()
    return (*status, *headers)
