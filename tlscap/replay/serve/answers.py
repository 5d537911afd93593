"""A recorded response, ready to be sent: to HTTP/1.1 clients in its bytes, to HTTP/2 clients in its fields.

What is sent is what was recorded: status, reason, fields in their order and case, the pieces of the body, trailers.  Nothing is added.
Framing alone is corrected, where the client speaks another version than the recorded one or the recorded framing is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tlscap.http.content import ContentError
from tlscap.http.events import Header
from tlscap.replay.matching import grpc_messages, is_websocket, kind_of_type
from tlscap.replay.recording import (
    DECODED_LIMIT,
    Interim,
    Piece,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    decoded,
)

WHOLE_LIMIT: Final = 1 << 16
"""Bytes up to which an answer is kept as one piece; a larger one is sent in steps, at the speed of its client."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_FORBIDDEN = re.compile(rb"[\0\r\n]")  # RFC 9110, 5.5
_REASON = re.compile(rb"[\t -~\x80-\xff]*")  # RFC 9112, 4
_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)  # RFC 9113, 8.2.2


class UnservableError(ValueError):
    """An exchange whose answer can't be given to anybody.  ``str(error)`` says why."""


@dataclass(frozen=True, slots=True)
class Http1Answer:
    """What goes to an HTTP/1 client."""

    head: bytes
    """Status line, fields, blank line."""
    pieces: Sequence[bytes]
    """The body, with its framing."""
    end: bytes
    """The last chunk and trailers."""
    close: bool
    """Whether the connection ends with it."""
    whole: bytes | None
    """All of it, interim answers too, unless it is large."""


@dataclass(frozen=True, slots=True)
class Http2Answer:
    """What goes to an HTTP/2 client."""

    headers: tuple[Header, ...]
    pieces: Sequence[bytes]
    trailers: tuple[Header, ...]
    body: bytes | None
    """All of it, unless it is large."""


class Answer:
    """One response.  Raises `UnservableError`.

    ``request`` is what it answers; without it, the answer is of the server's own making.
    """

    __slots__ = (
        "_http1",
        "_http2",
        "by_messages",
        "early",
        "exchange",
        "gates",
        "head_gate",
        "interims",
        "opening",
        "request",
        "response",
        "waits_for_end",
    )

    def __init__(
        self,
        response: RecordedResponse,
        request: RecordedRequest | None = None,
        exchange: RecordedExchange | None = None,
    ) -> None:
        _check(response)
        self.response = response
        self.request = request
        self.exchange = exchange
        self.interims = [interim for interim in response.interim if interim.status not in (100, 101)]
        """Without ``100 Continue``: the server sends that when a client waits for it."""
        self.early = request is not None and _is_dialogue(request, response)
        """Whether it began before its question ended: parts of both depend on each other."""
        self.by_messages = False
        """Whether `gates` count gRPC messages rather than bytes."""
        self.head_gate = 0
        """How much of the request's body must have come before the head."""
        self.gates: list[int] = []
        """The same for each piece."""
        self.opening: tuple[bytes, ...] | None = None
        """The gRPC messages that came before the first of the answer; ``None``: they are no such messages."""
        self.waits_for_end = not self.early or (request is not None and response.ended_ns >= request.ended_ns)
        """Whether the request ended before the response did."""
        if self.early and request is not None:
            self._find_gates(request)
        self._http1: dict[tuple[bool, bool], Http1Answer] = {}
        self._http2: dict[bool, Http2Answer] = {}

    @property
    def is_websocket(self) -> bool:
        """Whether a conversation follows."""
        return self.exchange is not None and self.exchange.upgraded_to == "websocket"

    def _find_gates(self, request: RecordedRequest) -> None:
        before = sum(len(piece.data) for piece in request.pieces if piece.time_ns <= self.response.started_ns)
        marks = [before, *(piece.other_bytes for piece in self.response.pieces)]
        messages = grpc_messages(request, request.body) if kind_of_type(request) == "grpc" else None
        if messages is not None:
            self.by_messages = True
            ends = _message_ends(request.body)
            marks = [sum(end <= mark for end in ends) for mark in marks]
            self.opening = messages[: marks[1] if len(marks) > 1 else marks[0]]
        self.head_gate, *self.gates = marks

    # --- HTTP/1 ---

    def http1(self, *, bodiless: bool, old: bool) -> Http1Answer:
        """Return what an HTTP/1 client gets; ``bodiless``: it asked with HEAD; ``old``: it speaks HTTP/1.0."""
        answer = self._http1.get((bodiless, old))
        if answer is None:
            answer = self._http1[bodiless, old] = self._make_http1(bodiless=bodiless, old=old)
        return answer

    def _make_http1(self, *, bodiless: bool, old: bool) -> Http1Answer:
        response = self.response
        has_body = not bodiless and response.status not in (204, 304)
        recorded_http1 = response.version.startswith(b"HTTP/1.")
        codings, chunked = _transfer_codings(response)
        headers = list(response.headers)
        pieces = [piece.data for piece in response.pieces] if has_body else []
        end = b""
        close = old or _says_close(response) or (recorded_http1 and response.version != b"HTTP/1.1")
        if not has_body:
            pass
        elif old and (chunked or codings):
            pieces = [_without(codings, pieces)]
            headers = _with_length([field for field in headers if field[0].lower() != b"transfer-encoding"], None)
            close = True
        elif chunked or (not recorded_http1 and not old and not response.values(b"content-length")):
            if not chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            headers = _with_length(headers, None)
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
            end = b"0\r\n" + _lines(response.trailers) + b"\r\n"
        elif response.values(b"content-length") and not codings:
            headers = _with_length(headers, sum(map(len, pieces)))
        else:
            close = True
        version = response.version if recorded_http1 else b"HTTP/1.1"
        head = _head(version, response.status, response.reason, headers)
        size = len(head) + len(end) + sum(map(len, pieces))
        whole = None
        if size <= WHOLE_LIMIT:
            whole = (b"" if old else self.http1_interims()) + head + b"".join(pieces) + end
        return Http1Answer(head, pieces, end, close, whole)

    def http1_interims(self) -> bytes:
        """Return the 1xx answers that come before this one."""
        return b"".join(http1_interim(interim) for interim in self.interims)

    # --- HTTP/2 ---

    def http2(self, *, bodiless: bool) -> Http2Answer:
        """Return what an HTTP/2 client gets; ``bodiless``: it asked with HEAD."""
        answer = self._http2.get(bodiless)
        if answer is None:
            answer = self._http2[bodiless] = self._make_http2(bodiless=bodiless)
        return answer

    def _make_http2(self, *, bodiless: bool) -> Http2Answer:
        response = self.response
        has_body = not bodiless and response.status not in (204, 304)
        headers: list[Header] = http2_fields(response.headers)
        pieces = [piece.data for piece in response.pieces] if has_body else []
        codings, _ = _transfer_codings(response)
        if codings:
            pieces = [_without(codings, pieces)]
        size = sum(map(len, pieces))
        if has_body and response.values(b"content-length"):
            headers = _with_length(headers, size)
        trailers = tuple(http2_fields(response.trailers)) if has_body else ()
        return Http2Answer(
            ((b":status", b"%d" % response.status), *headers),
            pieces,
            trailers,
            b"".join(pieces) if size <= WHOLE_LIMIT else None,
        )


def _is_dialogue(request: RecordedRequest, response: RecordedResponse) -> bool:
    """Tell whether a client may wait for a part of the answer before it goes on asking.

    A server that answers without reading a short body is none: that body is compared before it is answered.
    """
    if request.ended_ns <= response.started_ns:
        return False
    if any(value.startswith(b"application/grpc") for value in request.values(b"content-type")):
        return True
    pieces = request.pieces
    return len(pieces) > 1 and pieces[0].time_ns <= response.started_ns < pieces[-1].time_ns


def answer_to(exchange: RecordedExchange) -> Answer:
    """Return the answer of an exchange.  Raises `UnservableError`."""
    response = exchange.response
    if response is None:
        raise UnservableError("it has no response")
    if not exchange.complete and (response.missing or not response.complete):
        raise UnservableError("its response is incomplete")
    if exchange.upgraded_to == "websocket":
        for message in exchange.messages:
            if message.kind not in ("text", "binary", "ping", "pong", "close"):
                raise UnservableError("a message of its WebSocket is incomplete")
    elif (exchange.upgraded_to and exchange.upgraded_to != "h2c") or response.status == 101:
        raise UnservableError(f"it became a {exchange.upgraded_to or 'tunnel'}, which is not replayed")
    elif exchange.request.method == b"CONNECT" and not is_websocket(exchange.request):
        raise UnservableError("it asked a proxy for a tunnel")
    return Answer(response, exchange.request, exchange)


def made(status: int, headers: tuple[Header, ...], body: bytes) -> Answer:
    """Return an answer of the server's own making."""
    pieces = [Piece(body, 0, 0)] if body else []
    return Answer(RecordedResponse(headers, b"HTTP/2", 0, 0, "", pieces, status=status))


# --- Parts ---


def http2_fields(headers: Sequence[Header]) -> list[Header]:
    """Return fields as HTTP/2 has them: in lower case, without those that are about a connection (RFC 9113, 8.2)."""
    dropped = _CONNECTION_FIELDS
    for name, value in headers:
        if name.lower() == b"connection":
            dropped |= {option.strip().lower() for option in value.split(b",")}
    return [(lower, value.strip(b" \t")) for name, value in headers if (lower := name.lower()) not in dropped]


def http1_interim(interim: Interim) -> bytes:
    """Return a 1xx answer in bytes."""
    return _head(b"HTTP/1.1", interim.status, interim.reason, interim.headers)


def http2_interim(interim: Interim) -> tuple[Header, ...]:
    """Return a 1xx answer in fields."""
    return ((b":status", b"%d" % interim.status), *http2_fields(interim.headers))


def http1_head(status: int, reason: bytes, headers: Sequence[Header]) -> bytes:
    """Return the head of a response of HTTP/1.1."""
    return _head(b"HTTP/1.1", status, reason, headers)


def _head(version: bytes, status: int, reason: bytes, headers: Sequence[Header]) -> bytes:
    return b"%b %03d %b\r\n%b\r\n" % (version, status, reason or _phrase(status), _lines(headers))


def _lines(headers: Sequence[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _with_length(headers: Sequence[Header], length: int | None) -> list[Header]:
    """Return the fields with the right Content-Length in its place; ``None``: without any."""
    if length is not None:
        values = [value.strip() for name, value in headers if name.lower() == b"content-length"]
        if values == [b"%d" % length]:
            return list(headers)
    found: list[Header] = []
    for name, value in headers:
        if name.lower() != b"content-length":
            found.append((name, value))
        elif length is not None:
            found.append((name, b"%d" % length))
            length = None
    return found


def _transfer_codings(response: RecordedResponse) -> tuple[list[str], bool]:
    """Return the transfer codings other than chunked, and whether chunks are around them."""
    if not response.version.startswith(b"HTTP/1."):
        return [], False
    text = b",".join(response.values(b"transfer-encoding")).decode("latin-1").lower()
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "identity")]
    return [name for name in names if name != "chunked"], bool(names) and names[-1] == "chunked"


def _without(codings: list[str], pieces: list[bytes]) -> bytes:
    body = b"".join(pieces)
    try:
        return decoded(body, ", ".join(codings), DECODED_LIMIT) if codings else body
    except ContentError:
        return body


def _says_close(response: RecordedResponse) -> bool:
    if not response.version.startswith(b"HTTP/1."):
        return False
    options = b",".join(response.values(b"connection")).lower().split(b",")
    return b"close" in [option.strip() for option in options]


def _message_ends(body: bytes) -> list[int]:
    """Return where the messages of a gRPC body end."""
    ends, pos = [], 0
    while pos + 5 <= len(body):
        pos += 5 + int.from_bytes(body[pos + 1 : pos + 5], "big")
        ends.append(pos)
    return ends


def _check(response: RecordedResponse) -> None:
    """Refuse what would put bytes of the recording's choice between the fields of a response, or beyond it."""
    if not 200 <= response.status <= 999 and response.status != 101:
        raise UnservableError(f"its status is {response.status}")
    for interim in response.interim:
        if not 100 <= interim.status <= 199:
            raise UnservableError(f"it has an interim status {interim.status}")
        _check_reason(interim.reason)
        _check_fields(interim.headers)
    _check_reason(response.reason)
    _check_fields(response.headers)
    _check_fields(response.trailers)


def _check_reason(reason: bytes) -> None:
    if not _REASON.fullmatch(reason):
        raise UnservableError("its reason phrase has characters that are not allowed")


def _check_fields(headers: tuple[Header, ...]) -> None:
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise UnservableError(f"it has a field with the name {name[:40]!r}")
        if _FORBIDDEN.search(value):
            raise UnservableError(
                f"the value of its field {name[:40].decode('latin-1')} has characters that are not allowed"
            )
