"""A capture, read whole, as what replay needs: each exchange with its bodies, its messages and its times.

Everything is held in memory, so that a replay serves at the speed of memory and never writes a secret anywhere; `load` stops with an
error before it holds more than it was allowed to, whatever the file claims.

A connection that was recorded at both its ends is replayed once: as its client saw it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from tlscap.capture import Capture, open_capture
from tlscap.errors import TlscapError
from tlscap.filters import Filter, compile_filter
from tlscap.http.bodies import BodyCollector
from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import AnyEvent, BodyData, BodyGap, Header, RequestHead, ResponseHead, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder, Message
from tlscap.http.messages import AppMessage
from tlscap.model import Data, Endpoint, Flow, Gap, GapReason, Role

MEMORY_LIMIT: Final = 512 << 20
"""Bytes that `load` holds, unless told otherwise."""

DECODED_LIMIT: Final = 64 << 20
"""Most bytes that a body is decoded to."""

_EXCHANGE_WEIGHT: Final = 4096  # bytes of memory for an exchange without its bodies and fields
_PIECE_WEIGHT: Final = 160
_FIELD_WEIGHT: Final = 150


class Piece(NamedTuple):
    """Bytes of a body that passed together."""

    data: bytes
    time_ns: int
    other_bytes: int
    """How many bytes of the other side's body had passed before: an answer that began before its question ended."""


class Hole(NamedTuple):
    """Bytes of a body that passed but are not stored."""

    offset: int
    """How many bytes of the body, those of other holes not counted, come before it."""
    length: int
    reason: GapReason
    time_ns: int


class Interim(NamedTuple):
    """A 1xx answer before the real one."""

    status: int
    reason: bytes
    headers: tuple[Header, ...]
    time_ns: int


class TunnelMessage(NamedTuple):
    """A WebSocket message, decompressed; in the order of a conversation."""

    side: Side
    kind: str
    """``text``, ``binary``, ``ping``, ``pong`` or ``close``."""
    data: bytes
    """Of a close frame the reason."""
    code: int
    """Of a close frame; 1005 when it has none."""
    time_ns: int


@dataclass(slots=True)
class RecordedMessage:
    """What a request and a response have in common."""

    headers: tuple[Header, ...]
    """As sent: order, case, bytes.  Without HTTP/2's pseudo-fields."""
    version: bytes
    """``HTTP/1.1``, ``HTTP/2``."""
    started_ns: int
    ended_ns: int
    encodings: str
    """Content codings, then transfer codings other than chunked, in the order in which they were applied."""
    pieces: list[Piece] = field(default_factory=list)
    trailers: tuple[Header, ...] = ()
    missing: int = 0
    """Bytes of the body that passed but are not stored."""
    holes: list[Hole] = field(default_factory=list)
    """Where they are missing."""
    complete: bool = True
    """Whether every byte of it was seen."""

    @property
    def body(self) -> bytes:
        """The body as transferred: without framing, with its content codings."""
        return self.pieces[0].data if len(self.pieces) == 1 else b"".join(piece.data for piece in self.pieces)

    def values(self, name: bytes) -> list[bytes]:
        """Return every value of a field; ``name`` in lower case."""
        return [value for key, value in self.headers if key.lower() == name]

    def decoded(self, limit: int = DECODED_LIMIT) -> bytes:
        """Return the body with its codings undone.

        Raises `ContentError`, a `ValueError`, when it can't be decoded, is cut short, or is longer than ``limit`` bytes.
        """
        if not self.encodings:
            return self.body
        return decoded(self.body, self.encodings, limit)


@dataclass(slots=True)
class RecordedRequest(RecordedMessage):
    """What a client asked."""

    method: bytes = b""
    target: bytes = b""
    """As the request line or ``:path`` has it: mostly a path with its query."""
    scheme: str = ""
    """``https``, or ``http`` for what was taken over from plaintext."""
    authority: bytes = b""
    """``example.org`` or ``example.org:8443``: ``:authority``, Host, or that of an absolute target."""
    protocol: bytes = b""
    """HTTP/2's ``:protocol`` of an extended CONNECT."""
    pushed: bool = False
    """HTTP/2: promised by the server rather than sent by the client."""


@dataclass(slots=True)
class RecordedResponse(RecordedMessage):
    """What the server answered."""

    status: int = 0
    reason: bytes = b""
    interim: list[Interim] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class RecordedExchange:
    """A request, its response, and what followed on their connection when that became something else."""

    id: int
    """As ``tlscap inspect`` shows it."""
    number: int
    """Which exchange of its connection it is, from 1."""
    flow: Flow
    url: str
    protocol: str
    """``http/1.0``, ``http/1.1``, ``h2``."""
    request: RecordedRequest
    response: RecordedResponse | None
    complete: bool
    problems: tuple[str, ...]
    upgraded_to: str = ""
    """``websocket``, or whatever else the tunnel spoke."""
    messages: list[TunnelMessage] = field(default_factory=list)
    """Of a WebSocket."""

    @property
    def name(self) -> str:
        """How it is called in messages for people."""
        return f"{self.request.method.decode('latin-1')} {self.url or self.request.target.decode('latin-1')}"

    @property
    def hostname(self) -> str:
        """The host that was asked, without a port, in lower case."""
        try:
            return (urlsplit(self.url).hostname or "") if self.url else ""
        except ValueError:
            return ""


@dataclass(slots=True)
class Recording:
    """The exchanges of a capture, in the order in which they began."""

    path: str
    exchanges: list[RecordedExchange]
    truncated: str | None
    """Where and why the file ends early, if it does."""
    left_out: int
    """Exchanges that were recorded a second time, at the other end of their connection."""
    headless: int
    """Answers whose request was not seen: nothing can be done with them."""
    others: int = 0
    """Connections that speak no HTTP."""
    unparsed: int = 0
    """Bytes on HTTP connections, present or missing, that are no HTTP."""

    @property
    def incomplete(self) -> list[RecordedExchange]:
        """Those of which bytes are missing."""
        return [exchange for exchange in self.exchanges if not exchange.complete]

    @property
    def names(self) -> list[str]:
        """The hosts that were asked, most frequent first."""
        count: dict[str, int] = {}
        for exchange in self.exchanges:
            if name := exchange.hostname:
                count[name] = count.get(name, 0) + 1
        return sorted(count, key=lambda name: -count[name])


def load(path: str, wanted: str | Filter = "", *, memory: int = MEMORY_LIMIT) -> Recording:
    """Read a capture: a sidecar or a pcapng that tlscap wrote.

    ``wanted`` is a filter (docs/filters.md).  Raises `tlscap.errors.FormatError` and `OutputError` as `open_capture` does, and
    `TlscapError` when the exchanges would take more than ``memory`` bytes.
    """
    with open_capture(path) as capture:
        return load_from(capture, wanted, memory=memory)


def load_from(capture: Capture, wanted: str | Filter = "", *, memory: int = MEMORY_LIMIT) -> Recording:
    """Read a capture that is open already; see `load`.  It may be in memory: ``Capture(name, io.BytesIO(data))``."""
    chosen = compile_filter(wanted) if isinstance(wanted, str) else wanted
    return _Loader(capture, chosen, memory).run()


def decoded(body: bytes, encodings: str, limit: int = DECODED_LIMIT) -> bytes:
    """Undo content codings.  Raises `ContentError`, a `ValueError`."""
    decoder = ContentDecoder(encodings, output_limit=limit)
    data = b"".join(decoder.feed(body))
    if not decoder.finish():
        raise ContentError(f"{encodings}: ends too early")
    return data


class _Loader:
    """Collects what passes.  The sink of an `ExchangeBuilder` in all three ways."""

    def __init__(self, capture: Capture, wanted: Filter, memory: int) -> None:
        self._capture = capture
        self._wanted = wanted
        self._memory = memory
        self._left = memory
        self._pieces: dict[int, dict[Side, list[Piece]]] = {}
        self._passed: dict[int, dict[Side, int]] = {}
        self._holes: dict[int, dict[Side, list[Hole]]] = {}
        self._interim: dict[int, list[Interim]] = {}
        self._messages: dict[int, list[TunnelMessage]] = {}
        self._weights: dict[int, int] = {}

    def run(self) -> Recording:
        wanted = self._wanted
        searched = BodyCollector(limit=16 << 20, chosen=lambda _, side: side in wanted.needs_bodies)
        self._searched = searched if wanted.needs_bodies else None
        builder = ExchangeBuilder(self, self, self)
        found: list[RecordedExchange] = []
        headless = 0

        def take(exchange: Exchange) -> None:
            nonlocal headless
            if not wanted.matches(exchange, searched):
                self._drop(exchange)
            elif exchange.request is None:
                headless += 1
                self._drop(exchange)
            else:
                found.append(self._recorded(exchange, exchange.request))
            searched.forget(exchange)

        time_ns = 0
        for item in self._capture.items():
            time_ns = item.time_ns
            for exchange in builder.feed(item):
                take(exchange)
        for exchange in builder.finish(time_ns):
            take(exchange)
        found.sort(key=lambda exchange: exchange.id)
        kept = list(_once(found))
        return Recording(
            self._capture.path,
            kept,
            self._capture.truncated,
            len(found) - len(kept),
            headless,
            len(builder.others()),
            builder.unparsed_bytes,
        )

    # --- Sinks ---

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """See `tlscap.http.exchanges.BodySink`."""
        if self._searched:
            self._searched.on_body(exchange, side, piece)

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        """See `tlscap.http.exchanges.MessageSink`."""
        if exchange.upgraded_to != "websocket":
            return
        self._take(exchange.id, len(message.data) + _PIECE_WEIGHT)
        code = message.name.split()[0] if message.kind == "close" and message.name else ""
        self._messages.setdefault(exchange.id, []).append(
            TunnelMessage(
                message.side, message.kind, message.data, int(code) if code.isdecimal() else 1005, message.time_ns
            )
        )

    def on_event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        """See `tlscap.http.exchanges.EventSink`."""
        if exchange is None:
            return
        match event:
            case BodyData():
                self._take(exchange.id, len(event.data) + _PIECE_WEIGHT)
                passed = self._passed.setdefault(exchange.id, dict.fromkeys(Side, 0))
                passed[event.side] += len(event.data)
                pieces = self._pieces.setdefault(exchange.id, {side: [] for side in Side})
                pieces[event.side].append(Piece(event.data, event.time_ns, passed[event.side.opposite]))
            case BodyGap():
                self._take(exchange.id, _PIECE_WEIGHT)
                offset = self._passed.get(exchange.id, {}).get(event.side, 0)
                holes = self._holes.setdefault(exchange.id, {side: [] for side in Side})
                holes[event.side].append(Hole(offset, event.length, event.reason, event.time_ns))
            case ResponseHead() if event.interim:
                self._take(exchange.id, _weight(event.headers))
                self._interim.setdefault(exchange.id, []).append(
                    Interim(event.status, event.reason, event.headers, event.time_ns)
                )

    def on_unread(self, item: Data | Gap, side: Side) -> None:
        """See `tlscap.http.exchanges.EventSink`: bytes that are no HTTP can't be replayed."""

    # --- Memory ---

    def _take(self, exchange_id: int, size: int) -> None:
        self._left -= size
        self._weights[exchange_id] = self._weights.get(exchange_id, 0) + size
        if self._left < 0:
            raise TlscapError(
                f"{self._capture.path}: its exchanges take more than {_amount(self._memory)} of memory",
                hint="choose fewer with a filter, or allow more with --memory",
            )

    def _drop(self, exchange: Exchange) -> None:
        self._left += self._weights.pop(exchange.id, 0)
        self._pieces.pop(exchange.id, None)
        self._passed.pop(exchange.id, None)
        self._holes.pop(exchange.id, None)
        self._interim.pop(exchange.id, None)
        self._messages.pop(exchange.id, None)

    def _recorded(self, exchange: Exchange, request: Message[RequestHead]) -> RecordedExchange:
        response = exchange.response
        weight = sum(_weight(message.headers) + _weight(message.trailers) for message in (request, response) if message)
        self._take(exchange.id, _EXCHANGE_WEIGHT + weight)
        self._weights.pop(exchange.id, None)
        self._passed.pop(exchange.id, None)
        pieces = self._pieces.pop(exchange.id, {})
        holes = self._holes.pop(exchange.id, {})
        head = request.head
        scheme, authority = _origin(exchange, head)
        return RecordedExchange(
            id=exchange.id,
            number=exchange.number,
            flow=exchange.flow,
            url=exchange.url,
            protocol=exchange.protocol,
            request=RecordedRequest(
                **_common(request, pieces.get(Side.REQUEST, []), holes.get(Side.REQUEST, [])),
                method=head.method,
                target=head.target,
                scheme=scheme,
                authority=authority,
                protocol=head.protocol,
                pushed=head.pushed,
            ),
            response=RecordedResponse(
                **_common(response, pieces.get(Side.RESPONSE, []), holes.get(Side.RESPONSE, [])),
                status=response.head.status,
                reason=response.head.reason,
                interim=self._interim.pop(exchange.id, []),
            )
            if response
            else None,
            complete=exchange.complete,
            problems=tuple(exchange.problems),
            upgraded_to=exchange.upgraded_to,
            messages=self._messages.pop(exchange.id, []),
        )


def _common(
    message: Message[RequestHead] | Message[ResponseHead], pieces: list[Piece], holes: list[Hole]
) -> dict[str, Any]:
    return {
        "headers": message.headers,
        "version": message.head.version,
        "started_ns": message.first_ns,
        "ended_ns": message.last_ns,
        "encodings": message.encodings,
        "pieces": pieces,
        "trailers": message.trailers,
        "missing": message.gap_bytes,
        "holes": holes,
        "complete": message.complete,
    }


def _amount(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size:,} bytes"


def _weight(headers: tuple[Header, ...]) -> int:
    return sum(len(name) + len(value) + _FIELD_WEIGHT for name, value in headers)


def _origin(exchange: Exchange, head: RequestHead) -> tuple[str, bytes]:
    """Return the scheme and the authority that were asked."""
    try:
        split = urlsplit(exchange.url)
        scheme, authority = split.scheme, split.netloc
    except ValueError:
        scheme, authority = "", ""
    host = head.authority or next((value for name, value in head.headers if name.lower() == b"host"), b"")
    return scheme or ("http" if exchange.flow.plaintext else "https"), host or authority.encode("latin-1", "replace")


def _once(exchanges: list[RecordedExchange]) -> Iterator[RecordedExchange]:
    """Leave out what servers recorded of connections whose clients were recorded, too."""
    clients: dict[tuple[Endpoint, Endpoint], list[Flow]] = {}
    for flow in {exchange.flow for exchange in exchanges}:
        if flow.role is not Role.SERVER and flow.local and flow.remote:
            clients.setdefault((flow.remote, flow.local), []).append(flow)
    for exchange in exchanges:
        flow = exchange.flow
        if flow.role is Role.SERVER and flow.local and flow.remote:
            others = clients.get((flow.local, flow.remote), ())
            if any(_overlap(flow, other) for other in others):
                continue
        yield exchange


def _overlap(one: Flow, other: Flow) -> bool:
    """Whether two connections with the same addresses existed at the same time: ports are used again."""
    return (not one.closed_ns or other.opened_ns <= one.closed_ns) and (
        not other.closed_ns or one.opened_ns <= other.closed_ns
    )
