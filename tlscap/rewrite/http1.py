"""Exchanges of one connection to HTTP/1.x (RFC 9112), 0.9 and 1.0 included.

Start lines and fields are written as they are.  Content-Length is made to fit; a chunked body stays chunked, one that ended with
its connection stays so.  A hole in a body is one in the file.  Where a message was lost in a way that says
nothing of its length, a hole of one byte keeps the reader from taking the next message for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tlscap.http.events import Header, Side
from tlscap.model import GapReason
from tlscap.replay.recording import Hole, Piece, RecordedExchange, RecordedMessage, RecordedRequest
from tlscap.rewrite.steps import (
    Lane,
    Passing,
    Step,
    content,
    declared_length,
    fitting_length,
    interleave,
    stored_length,
    with_length,
)
from tlscap.rewrite.websocket import frame, without_deflate

_NO_BODY_STATUS: Final = frozenset({101, 204, 304})
_COUNTED, _CHUNKED, _ENDLESS, _NONE = "counted", "chunked", "endless", "none"


class Http1Writer:
    """Makes steps of the exchanges of one connection, in their order."""

    def __init__(self, steps: list[Step]) -> None:
        self._lanes = {side: Lane(side, steps) for side in Side}

    @property
    def lanes(self) -> dict[Side, Lane]:
        """The two directions; what follows an upgrade to HTTP/2 goes on with them."""
        return self._lanes

    def add(self, exchange: RecordedExchange, *, last: bool, after: Step | None = None) -> Step:
        """Write an exchange; return the step with which its question became known, which comes after ``after``.

        ``last``: nothing follows on this connection, so that a body may be ended by its end.
        """
        request, response = exchange.request, exchange.response
        asked = self._lanes[Side.REQUEST]
        framing = _request_framing(request)
        fields = _fields(request, framing)
        if exchange.upgraded_to == "websocket":
            fields = without_deflate(fields)
        head = self._head(asked, request, _request_line(request) + _block(fields, request.version), after)
        sent = self._body(asked, request, framing, last=last)
        answers = self._lanes[Side.RESPONSE]
        if not response:
            if not last and exchange.upgraded_to != "h2c":
                answers.add(request.ended_ns, _unknown(request.ended_ns), after=[head])
            return head
        if response.version == b"HTTP/2":  # it asked for h2c, and is answered there
            return head
        for interim in response.interim:
            line = b"%s %03d %s\r\n" % (response.version, interim.status, _line(interim.reason))
            answers.add(interim.time_ns, line + _block(interim.headers, response.version), after=[head])
        framing = _response_framing(exchange, last=last)
        fields = _fields(response, framing)
        if exchange.upgraded_to == "websocket":
            fields = without_deflate(fields)
        if response.version == b"HTTP/0.9":
            start = b""
        else:
            start = b"%s %03d %s\r\n" % (response.version, response.status, _line(response.reason))
            start += _block(fields, response.version)
        answer = self._head(answers, response, start, head)
        received = self._body(answers, response, framing, last=last)
        interleave(sent, received)
        self._messages(exchange, answer)
        return head

    def _head(self, lane: Lane, message: RecordedMessage, head: bytes, after: Step | None) -> Step:
        """Write a head; return its end."""
        if not head:
            return lane.last or lane.add(message.started_ns, after=[after])
        if message.ended_ns > message.started_ns and not message.pieces and not message.holes and not message.trailers:
            # All of it is head, and it took its time.
            lane.add(message.started_ns, head[:1])
            return lane.add(message.ended_ns, head[1:], after=[after])
        return lane.add(message.started_ns, head, after=[after])

    def _body(self, lane: Lane, message: RecordedMessage, framing: str, *, last: bool) -> list[Passing]:
        passed: list[Passing] = []
        if framing == _NONE:
            return passed
        for part in content(message):
            what: bytes | Hole = part.data if isinstance(part, Piece) else part
            length = len(part.data) if isinstance(part, Piece) else part.length
            if framing == _CHUNKED:
                step = lane.add(part.time_ns, b"%x\r\n" % length, what, b"\r\n")
            else:
                step = lane.add(part.time_ns, what)
            passed.append(Passing(part, step))
        if framing == _CHUNKED and (message.complete or message.missing):
            lines = b"".join(_field(*field) for field in message.trailers)
            lane.add(message.ended_ns, b"0\r\n" + lines + b"\r\n")
        elif framing == _CHUNKED and not last:
            lane.add(message.ended_ns, _unknown(message.ended_ns))
        elif framing == _COUNTED and not last:
            left = fitting_length(message) - stored_length(message) - message.missing
            if left:
                lane.add(message.ended_ns, _unknown(message.ended_ns, left))
        elif framing == _ENDLESS and lane.last and last:
            lane.last.ends_side = message.complete
        return passed

    def _messages(self, exchange: RecordedExchange, answer: Step) -> None:
        before = answer
        for message in exchange.messages:
            before = self._lanes[message.side].add(message.time_ns, frame(message), after=[before])


def _unknown(time_ns: int, length: int = 1) -> Hole:
    return Hole(0, length, GapReason.UNKNOWN, time_ns)


# --- Framing (RFC 9112, 6.3), as `tlscap.http.http1` reads it ---


def _codings(message: RecordedMessage) -> list[bytes]:
    values = message.values(b"transfer-encoding")
    names = (one.partition(b";")[0].strip().lower() for value in values for one in value.split(b","))
    return [name for name in names if name and name != b"identity"]


def _request_framing(request: RecordedRequest) -> str:
    if codings := _codings(request):
        return _CHUNKED if codings[-1] == b"chunked" else _ENDLESS
    if declared_length(request.headers) is not None or request.pieces or request.missing:
        return _COUNTED if request.version != b"HTTP/0.9" else _NONE
    return _NONE


def _response_framing(exchange: RecordedExchange, *, last: bool) -> str:
    request, response = exchange.request, exchange.response
    assert response, "there is a response"  # noqa: S101
    if response.version == b"HTTP/0.9":
        return _ENDLESS
    granted = request.method == b"CONNECT" and 200 <= response.status < 300
    if request.method == b"HEAD" or response.status in _NO_BODY_STATUS or granted:
        return _NONE
    if codings := _codings(response):
        return _CHUNKED if codings[-1] == b"chunked" else _ENDLESS
    if declared_length(response.headers) is not None or not last:
        return _COUNTED
    return _ENDLESS


# --- Heads ---


def _request_line(request: RecordedRequest) -> bytes:
    words = [request.method, _line(request.target)]
    if request.version != b"HTTP/0.9":
        words.append(request.version)
    return b" ".join(words) + b"\r\n"


def _fields(message: RecordedMessage, framing: str) -> tuple[Header, ...]:
    """Return the fields of a message, with a Content-Length that fits."""
    if framing != _COUNTED:
        return message.headers
    length = fitting_length(message)
    if declared_length(message.headers) is None:
        kept = (field for field in message.headers if field[0].lower().rstrip() != b"content-length")
        return (*kept, (b"Content-Length", b"%d" % length))
    return with_length(message.headers, length)


def _block(fields: Sequence[Header], version: bytes) -> bytes:
    return b"".join(_field(*field) for field in fields) + b"\r\n" if version != b"HTTP/0.9" else b""


def _field(name: bytes, value: bytes) -> bytes:
    return b"%s: %s\r\n" % (_line(name), _line(value))


def _line(text: bytes) -> bytes:
    """Return a text that can't end the line it stands in, whoever made it."""
    return text if b"\n" not in text else text.replace(b"\r\n", b" ").replace(b"\n", b" ")
