"""The streams of an HTTP/2 connection: how their messages begin and end, as far as both sides show (RFC 9113, 5.1, 8).

`tlscap.http.http2` reads the frames.  What they do to streams is here: each stream is one exchange of two halves, a
request and a response, and an end of one may end the other (a reset, a refusal, too many that are open).

A CONNECT that was granted makes its stream a tunnel (RFC 9113, 8.5; RFC 8441): both messages end and DATA frames carry
`TunnelData`; the bytes around it come out as one `ControlFrame` ``DATA framing`` when the tunnel ends.  What
a client sends before the answer is the content of its request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from tlscap.http.events import (
    AnyEvent,
    ControlFrame,
    Header,
    MessageEnd,
    RequestHead,
    Side,
    TunnelEnd,
    Upgraded,
)
from tlscap.http.hpack_state import FieldSection
from tlscap.http.http2_frames import NO_ERROR, STREAM_MASK, begun_by, error_name, shown

OPEN_LIMIT: Final = 10_000
"""Open streams that are remembered.  Servers allow some hundred at a time."""

VERSION: Final = b"HTTP/2"

_CLOSED_LIMIT: Final = 1_000  # closed streams that are remembered, at least: frames may still be under way to them
_HEEDED_GOAWAYS: Final = 10  # a server that shuts down says it twice; looking at all streams each time takes time

REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
RESPONSE_PSEUDO: Final = frozenset({b":status"})

MISSING: Final = "bytes missing"
NOT_FROM_START: Final = "stream not seen from its start"

# What a half of a stream is, as far as this observer saw it.
IDLE: Final = 0  # no head yet
ENDED: Final = 1
OPEN: Final = 2  # from here on, DATA has a place to belong to
TUNNEL: Final = 3


@dataclass(slots=True)
class Half:
    """What one side sends on a stream: one message."""

    exchange: int
    state: int
    why: str = ""
    """What to say of frames that don't fit the state."""
    epoch: int = 0
    """The reader's, when everything before was known to be seen; -1: something was missed."""
    framing: int = 0
    received: int = 0
    """Bytes of the body."""
    declared: int = -1
    """What Content-Length says, or -1."""
    last_ns: int = 0
    """When its last byte passed, so far."""
    has_gap: bool = False
    uncertain: bool = False
    """The head had no pseudo-header that could be decoded; it may have been an interim one."""
    note: str = ""
    """What is odd about the trailers."""


@dataclass(slots=True)
class Stream:
    """A stream: one exchange."""

    id: int
    exchange: int
    request: Half
    response: Half
    method: bytes = b""
    protocol: bytes = b""


class Losses(Protocol):
    """What the reader of one side knows of bytes that it did not see."""

    epoch: int
    """How often the step was found again."""

    def missed(self, half: Half) -> bool:
        """Tell whether bytes of this message may have gone by unseen, in an unknown place."""
        ...


class Streams:
    """The streams of one connection, and the events that became certain.  The readers of its sides share it.

    Nothing may be done with streams before ``losses`` holds both readers.
    """

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.now = 0
        """When what is being read passed."""
        self.open: dict[int, Stream] = {}
        """The open ones, oldest first."""
        self.losses: dict[Side, Losses] = {}
        self._closed: dict[int, Stream] = {}  # the youngest of the others
        self._closed_before: dict[int, Stream] = {}
        self._last_accepted = {Side.REQUEST: STREAM_MASK, Side.RESPONSE: STREAM_MASK}  # by who said GOAWAY
        self._goaways = 0
        self._exchanges = 0

    def begin_upgraded(self, exchange: int, method: bytes) -> None:
        """Begin stream 1 with the response to the HTTP/1.1 request of this number: that is the last one so far."""
        self._exchanges = exchange
        request = Half(exchange, ENDED, "stream already ended")
        self.open[1] = Stream(1, exchange, request, Half(exchange, IDLE, "no head seen"), method)

    def find(self, stream_id: int) -> Stream | None:
        """Return a stream, open or closed not long ago."""
        return self.open.get(stream_id) or self._closed.get(stream_id) or self._closed_before.get(stream_id)

    def begin(self, stream_id: int, *, request_seen: bool) -> Stream:
        """Begin a stream, and with it an exchange."""
        if len(self.open) >= OPEN_LIMIT:
            self._end_both(next(iter(self.open.values())), "too many open streams", "stream forgotten")
        self._exchanges += 1
        exchange = self._exchanges
        request = Half(exchange, OPEN) if request_seen else Half(exchange, ENDED, NOT_FROM_START)
        response = Half(exchange, IDLE, "no head seen", self.losses[Side.RESPONSE].epoch)
        stream = self.open[stream_id] = Stream(stream_id, exchange, request, response)
        return stream

    def end_of_stream(self, stream: Stream, side: Side) -> None:
        """End one half as END_STREAM does."""
        half = stream.request if side is Side.REQUEST else stream.response
        if half.state == ENDED:
            return
        half.last_ns = self.now
        missed = half.has_gap or self.losses[side].missed(half)
        if half.state == IDLE:
            self._end(stream, side, complete=False, why=MISSING if missed else "no head")
        elif missed:
            self._end(stream, side, complete=False, why=MISSING)
        else:
            why = "end of stream"
            # Without its request, a response without a body may be one to HEAD.
            if half.declared not in (-1, half.received) and (half.received or stream.method or side is Side.REQUEST):
                why += f"; content-length says {half.declared}"
            if half.note:
                why += f"; {half.note}"
            self._end(stream, side, complete=True, why=why)

    def _end(
        self, stream: Stream, side: Side, *, complete: bool, why: str, after: str = "stream already ended"
    ) -> None:
        """End one half; ``after`` is what to say of frames that still come."""
        half = stream.request if side is Side.REQUEST else stream.response
        if half.state == TUNNEL:
            self._end_tunnel(half, side, "" if complete else why)
        else:
            if not complete and self._is_full(half, side):
                complete, why = True, f"all that content-length says; {why}"
            self._end_message(half, side, complete=complete, why=why)
        half.state = ENDED
        half.why = after
        if stream.request.state == stream.response.state:
            del self.open[stream.id]
            if len(self._closed) >= _CLOSED_LIMIT:
                self._closed_before = self._closed
                self._closed = {}
            self._closed[stream.id] = stream

    def _end_tunnel(self, half: Half, side: Side, why: str) -> None:
        exchange, time_ns = half.exchange, half.last_ns or self.now
        if half.framing:
            kind, length = "DATA framing", half.framing
            self.events.append(ControlFrame(exchange=exchange, side=side, time_ns=time_ns, kind=kind, length=length))
        self.events.append(TunnelEnd(exchange=exchange, side=side, time_ns=time_ns, why=why))

    def _end_message(self, half: Half, side: Side, *, complete: bool, why: str) -> None:
        self.events.append(
            MessageEnd(
                exchange=half.exchange,
                side=side,
                time_ns=half.last_ns or self.now,
                complete=complete,
                why=why,
                framing_length=half.framing,
            )
        )

    def _is_full(self, half: Half, side: Side) -> bool:
        """Tell whether a body is over by its length, though nothing said so: receivers may stop there (RFC 9113, 8.1.1)."""
        whole = half.state == OPEN and half.declared == half.received
        return whole and not half.has_gap and not self.losses[side].missed(half)

    def _end_both(self, stream: Stream, why: str, after: str, *, complete: bool = False) -> None:
        """End what is open of a stream."""
        for side, half in ((Side.REQUEST, stream.request), (Side.RESPONSE, stream.response)):
            if half.state == ENDED:
                half.why = after
            else:
                self._end(stream, side, complete=complete, why=why, after=after)

    def reset(self, stream: Stream, side: Side, error: int) -> None:
        """Take RST_STREAM from ``side``, with its error code."""
        # RFC 9113, 8.1: the server has answered and needs no more of the request.
        quiet = error == NO_ERROR and side is Side.RESPONSE and stream.response.state == ENDED
        who = "client" if side is Side.REQUEST else "server"
        why = f"stream reset: {error_name(error)}, by the {who}"
        asked = stream.request.declared in (-1, stream.request.received)
        self._end_both(stream, why, "stream already reset", complete=quiet and asked)

    def go_away(self, side: Side, last: int) -> None:
        """Take the news that ``side`` will not look at streams of the other one beyond ``last``."""
        if last >= self._last_accepted[side]:
            return
        self._last_accepted[side] = last
        self._goaways += 1
        if self._goaways > _HEEDED_GOAWAYS:
            return  # streams that are refused end with the connection then
        refused = []
        for stream in reversed(self.open.values()):
            if begun_by(stream.id) is not side:
                if stream.id <= last:  # and so are those before it
                    break
                refused.append(stream)
        for stream in reversed(refused):
            self._end_both(stream, "refused: GOAWAY", "stream refused")

    def promise(self, stream_id: int, section: FieldSection, started_ns: int) -> None:
        """Begin a stream that the server promised."""
        head = split_fields(section, REQUEST_PSEUDO)
        stream = self.begin(stream_id, request_seen=True)
        stream.method = head.pseudo.get(b":method", b"")
        self.events.append(request_head(stream.exchange, head, self.now, started_ns, pushed=True))
        self._end(stream, Side.REQUEST, complete=True, why="pushed")

    def switch(self, stream: Stream) -> None:
        """Make a stream a tunnel: its CONNECT was granted."""
        protocol = stream.protocol.decode("latin-1").lower() or "tunnel"
        for side, half in ((Side.RESPONSE, stream.response), (Side.REQUEST, stream.request)):
            if half.state == OPEN:
                missed = half.has_gap or self.losses[side].missed(half)
                why = MISSING if missed else "tunnel begins" if half.received else "no body"
                self._end_message(half, side, complete=not missed, why=why)
                half.framing = 0
                half.state = TUNNEL
                half.why = "header fields in a tunnel"
            self.events.append(Upgraded(exchange=half.exchange, side=side, time_ns=self.now, protocol=protocol))
            if half.state != TUNNEL:  # this side had ended before
                self.events.append(TunnelEnd(exchange=half.exchange, side=side, time_ns=self.now))

    def finish(self, side: Side, why: str) -> None:
        """End every open half of one side: nothing follows."""
        for stream in list(self.open.values()):
            half = stream.request if side is Side.REQUEST else stream.response
            if half.state == ENDED:
                continue
            missed = self.losses[side].missed(half)
            if stream.id > self._last_accepted[begun_by(stream.id).opposite]:
                reason = "refused: GOAWAY"
            elif half.state == IDLE:
                reason = "response not seen" if missed else f"no response: {why}" if why else "no response"
            else:
                reason = MISSING if missed else why or "connection closed"
            self._end(stream, side, complete=False, why=reason)


# --- Heads ---


@dataclass(slots=True)
class Head:
    """The fields of a head, sorted out."""

    pseudo: dict[bytes, bytes]
    headers: list[Header]
    content_length: int
    notes: list[str]

    @property
    def status(self) -> int:
        text = self.pseudo.get(b":status", b"")
        return int(text) if len(text) == 3 and text.isdigit() else 0


def split_fields(section: FieldSection, known: frozenset[bytes]) -> Head:
    """Tell pseudo-header fields, of which ``known`` may occur, from the others (RFC 9113, 8.3)."""
    pseudo: dict[bytes, bytes] = {}
    headers: list[Header] = []
    odd: dict[str, str] = {}  # the first of each kind
    content_length = -1
    for field in section.fields:
        name, value = field
        if name[:1] == b":":
            if name not in known or name in pseudo:
                what = "repeated" if name in known else "unknown"
                odd.setdefault(what, f"{what} pseudo-header {shown(name)}")
                headers.append(field)
            else:
                if headers:
                    odd.setdefault("late", f"{shown(name)} after other fields")
                pseudo[name] = value
            continue
        if name == b"content-length" and content_length < 0 and value.isdigit() and len(value) <= 18:
            content_length = int(value)
        headers.append(field)
    notes = [*section.notes, *odd.values()]
    if not section.partial:
        _check_pseudo(pseudo, known, notes)
    return Head(pseudo, headers, content_length, notes)


def _check_pseudo(pseudo: dict[bytes, bytes], known: frozenset[bytes], notes: list[str]) -> None:
    """Add what is odd about the pseudo-header fields of a head that was decoded in full."""
    if known is RESPONSE_PSEUDO:
        status = pseudo.get(b":status")
        if status is None:
            notes.append("no :status")
        elif len(status) != 3 or not status.isdigit():
            notes.append(f":status is no number: {shown(status)}")
    elif b":method" not in pseudo:
        notes.append("no :method")
    elif b":path" not in pseudo and (pseudo[b":method"] != b"CONNECT" or b":protocol" in pseudo):
        notes.append("no :path")


def request_head(
    exchange: int, head: Head, time_ns: int, started_ns: int, *, length: int = 0, pushed: bool = False
) -> RequestHead:
    value = head.pseudo.get
    """Return the event for a request's head; ``length``: bytes of its header block, frame headers included."""
    return RequestHead(
        exchange=exchange,
        side=Side.REQUEST,
        time_ns=time_ns,
        method=value(b":method", b""),
        target=value(b":path", b""),
        version=VERSION,
        headers=tuple(head.headers),
        started_ns=started_ns,
        scheme=value(b":scheme", b""),
        authority=value(b":authority", b""),
        protocol=value(b":protocol", b""),
        pushed=pushed,
        length=length,
        notes=tuple(head.notes),
    )
