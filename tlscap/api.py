"""Captures for programs: ``tlscap.open(path)``.

::

    import tlscap

    with tlscap.open("NAME.tlscap.zst") as capture:
        for exchange in capture.exchanges("host:api.example.com status:5xx"):
            print(exchange.started, exchange.method, exchange.url, exchange.status)
            print(exchange.response.json())

Either file of a recording will do, the sidecar or the pcapng.  A capture is read from its beginning by every iteration, so iterations may
be nested and repeated; memory is bounded by the connections that are open at a time.  Bodies are not kept: asking for one
reads that connection again.

Malformed traffic is never an exception.  What is missing is said: `Exchange.complete`, `Exchange.problems`, `Message.complete`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tlscap.capture import open_capture
from tlscap.filters import Filter, compile_filter
from tlscap.http import exchanges as core
from tlscap.http.bodies import Body, BodyCollector
from tlscap.http.events import BodyGap, Side
from tlscap.http.messages import AppMessage, parameters
from tlscap.model import Data, Direction, Flow, FlowOpened, Gap, Item, Process

if TYPE_CHECKING:
    from scapy.packet import Packet

BODY_LIMIT: Final = 256 << 20
"""Most bytes of a body that `Message.body` returns; `Message.iter_body` has no such limit."""

_SEARCH_LIMIT: Final = 16 << 20  # of a body that a filter looks at


class Headers(Mapping[str, str]):
    """Header fields in the order in which they were sent.

    As a mapping it is case-insensitive and gives the values of fields of one name joined by ", " (RFC 9110, 5.3).  Bytes are decoded
    as Latin-1, so that ``value.encode("latin-1")`` is what was sent; ``raw`` has them as they were.
    """

    def __init__(self, raw: tuple[tuple[bytes, bytes], ...]) -> None:
        self.raw = raw

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        wanted = name.lower()
        return [value for key, value in self.pairs() if key.lower() == wanted]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield names and values, repeated ones too."""
        for name, value in self.raw:
            yield name.decode("latin-1"), value.decode("latin-1")

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self.pairs()))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self.raw})

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs())!r})"


class Message:
    """A request or a response.  Its body is read when it is asked for."""

    def __init__(self, exchange: Exchange, side: Side, message: core.Message[Any]) -> None:
        self._exchange = exchange
        self._side = side
        self._message = message
        self._body: Body | None = None

    @property
    def headers(self) -> Headers:
        """The fields of its head; HTTP/2's pseudo-fields are not among them."""
        return Headers(self._message.headers)

    @property
    def trailers(self) -> Headers:
        """Fields that came after the body."""
        return Headers(self._message.trailers)

    @property
    def version(self) -> str:
        """``HTTP/1.1`` as sent, ``HTTP/2``."""
        return str(self._message.head.version.decode("latin-1"))

    @property
    def complete(self) -> bool:
        """Whether every byte of it was seen."""
        return self._message.complete

    @property
    def body_size(self) -> int:
        """Bytes of the body as transferred: without framing, with content codings, without missing bytes."""
        return self._message.body_size

    @property
    def missing(self) -> int:
        """Bytes of the body that passed but are not stored."""
        return self._message.gap_bytes

    @property
    def started(self) -> datetime:
        """When its first byte passed (UTC, to the microsecond)."""
        return _moment(self._message.first_ns)

    @property
    def ended(self) -> datetime:
        """When its last byte passed."""
        return _moment(self._message.last_ns)

    @property
    def body(self) -> bytes:
        """The body with content codings undone; with holes, what is around them.

        What can't be decoded is returned as it was transferred (`read_body` tells).  At most `BODY_LIMIT` bytes.
        """
        return self.read_body().data

    def read_body(self, limit: int = BODY_LIMIT) -> Body:
        """Read the first ``limit`` bytes of the body; says what is missing, and whether it could be decoded."""
        if self._body is None or (self._body.truncated and len(self._body.data) < limit):
            collector = BodyCollector(limit=limit, total_limit=2 * limit, chosen=lambda _, side: side is self._side)
            again = self._exchange.read_again(collector)
            body = collector.take(again, self._side) if again else None
            self._body = body or Body(b"", 0, 0, complete=False)
        return replace(self._body, data=self._body.data[:limit])

    def iter_body(self, *, raw: bool = False) -> Iterator[bytes]:
        """Yield the body piece by piece, however long it is; ``raw``: as transferred.

        Ends at a hole that the content coding can't bridge.  Raises `tlscap.http.content.ContentError`, a `ValueError`, for a coding that
        is corrupt or not known.
        """
        from tlscap.http.content import ContentDecoder  # noqa: PLC0415 - for this alone

        decoder = ContentDecoder("" if raw else self._message.encodings)
        for piece in self._exchange.body_pieces(self._side):
            if isinstance(piece, BodyGap):
                if decoder.encodings:
                    return
                continue
            yield from decoder.feed(piece)

    @property
    def text(self) -> str:
        """The body as text, by the charset that its content type names, else UTF-8; what is no such text is replaced."""
        _, options = parameters(self.headers.get("content-type", "").encode("latin-1"))
        charset = options.get(b"charset", b"utf-8").decode("latin-1")
        try:
            return self.body.decode(charset, "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body as JSON.  Raises `ValueError` when it is none."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._exchange!r}>"


class Request(Message):
    """What the client asked."""

    @property
    def method(self) -> str:
        """``GET``, as sent."""
        return str(self._message.head.method.decode("latin-1"))

    @property
    def target(self) -> str:
        """What the request line, or HTTP/2's ``:path``, names."""
        return str(self._message.head.target.decode("latin-1"))


class Response(Message):
    """What the server answered."""

    @property
    def status(self) -> int:
        """0 for an HTTP/0.9 reply, which has none."""
        return int(self._message.head.status)

    @property
    def reason(self) -> str:
        """The words beside the status; HTTP/2 has none."""
        return str(self._message.head.reason.decode("latin-1"))


class Exchange:
    """A request and its response; either may be missing."""

    def __init__(self, capture: Capture, exchange: core.Exchange) -> None:
        self._capture = capture
        self.core = exchange
        """The same as the observers see it, in bytes and nanoseconds."""
        self.request = Request(self, Side.REQUEST, exchange.request) if exchange.request else None
        self.response = Response(self, Side.RESPONSE, exchange.response) if exchange.response else None

    @property
    def id(self) -> int:
        """From 1, in the order of the requests; ``tlscap inspect`` shows the same."""
        return self.core.id

    @property
    def url(self) -> str:
        """Empty when the request was not seen."""
        return self.core.url

    @property
    def method(self) -> str:
        """The request's; empty when it was not seen."""
        return self.request.method if self.request else ""

    @property
    def status(self) -> int | None:
        """The response's; ``None`` when there was none."""
        return self.response.status if self.response else None

    @property
    def protocol(self) -> str:
        """``http/1.1``, ``http/1.0``, ``http/0.9`` or ``h2``."""
        return self.core.protocol

    @property
    def started(self) -> datetime:
        """When its first byte passed (UTC, to the microsecond; `core` has nanoseconds)."""
        return _moment(self.core.started_ns)

    @property
    def duration(self) -> float | None:
        """Seconds from the request's first byte to the response's last."""
        return None if self.core.duration_ns is None else self.core.duration_ns / 1e9

    @property
    def complete(self) -> bool:
        """Whether every byte of both messages was seen."""
        return self.core.complete

    @property
    def problems(self) -> list[str]:
        """What is odd or missing, in words for people."""
        return list(self.core.problems)

    @property
    def flow(self) -> Flow:
        """The connection."""
        return self.core.flow

    @property
    def process(self) -> Process:
        """Who made it."""
        return self.core.flow.process

    def messages(self) -> Iterator[AppMessage]:
        """Yield the messages within: WebSocket, gRPC, server-sent events, parts of a form, JSON lines; in the order in which they ended."""
        sink = _Messages(self.core.number)
        for _ in self._capture.replay(self.flow.id, message_sink=sink):
            yield from sink.taken()
        yield from sink.taken()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``tlscap inspect --json`` prints (docs/exchange.schema.json)."""
        from tlscap.export.jsonl import exchange_to_dict  # noqa: PLC0415 - for this alone

        return exchange_to_dict(self.core)

    def read_again(self, sink: core.BodySink) -> core.Exchange | None:
        """Have a sink see the bodies of this exchange's connection, up to its end."""
        for done in self._capture.replay(self.flow.id, body_sink=sink):
            if done and done.number == self.core.number:
                return done
        return None

    def body_pieces(self, side: Side) -> Iterator[bytes | BodyGap]:
        """Yield what a sink sees of one body."""
        pieces = _Pieces(self.core.number, side)
        for done in self._capture.replay(self.flow.id, body_sink=pieces):
            yield from pieces.taken()
            if done and done.number == self.core.number:
                return

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.method or '?'} {self.url or '?'} {self.status}>"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a connection as one call moved them; ``missing`` counts those that passed here but are not stored."""

    direction: Direction
    time_ns: int
    offset: int
    data: bytes
    missing: int = 0


class Capture:
    """A capture.  See this module's documentation.

    The file is open while it is iterated; using the capture in a ``with`` statement is a habit, not a need.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.truncated: str | None = None
        """Where and why the file ends early; known after an iteration to the end."""
        open_capture(path).close()

    def exchanges(self, wanted: str | Filter | Callable[[Exchange], bool] = "") -> Iterator[Exchange]:
        """Yield HTTP exchanges in the order in which they ended.

        ``wanted`` is a filter (docs/filters.md) or a function.  Raises `tlscap.filters.FilterError` for a filter that can't be understood.
        """
        if not isinstance(wanted, str | Filter):
            return (exchange for exchange in self._exchanges(compile_filter("")) if wanted(exchange))
        return self._exchanges(compile_filter(wanted) if isinstance(wanted, str) else wanted)

    def _exchanges(self, wanted: Filter) -> Iterator[Exchange]:
        bodies = None
        if wanted.needs_bodies:
            bodies = BodyCollector(limit=_SEARCH_LIMIT, chosen=lambda _, side: side in wanted.needs_bodies)
        builder = core.ExchangeBuilder(bodies)
        time_ns = 0
        for item in self.events():
            time_ns = item.time_ns
            for exchange in builder.feed(item):
                if wanted.matches(exchange, bodies):
                    yield Exchange(self, exchange)
                if bodies:
                    bodies.forget(exchange)
        for exchange in builder.finish(time_ns):
            if wanted.matches(exchange, bodies):
                yield Exchange(self, exchange)

    def __iter__(self) -> Iterator[Exchange]:
        return self.exchanges()

    def events(self) -> Iterator[Item]:
        """Yield everything that happened, in order: `tlscap.model.Data`, `tlscap.model.Gap`, ...

        Raises `tlscap.errors.FormatError` for a damaged file, after everything before the damage.
        """
        with open_capture(self.path) as file:
            yield from file.items()
            self.truncated = file.truncated

    def flows(self) -> Iterator[Flow]:
        """Yield connections, each when it is first seen; what is learned later (names, addresses) is added to them."""
        for item in self.events():
            if isinstance(item, FlowOpened):
                yield item.flow

    def stream(self, flow: Flow | int) -> Iterator[Piece]:
        """Yield what passed on a connection, both directions, in the order of time."""
        wanted = flow if isinstance(flow, int) else flow.id
        for item in self.events():
            if isinstance(item, Data) and item.flow.id == wanted:
                yield Piece(item.direction, item.time_ns, item.offset, item.data)
            elif isinstance(item, Gap) and item.flow.id == wanted:
                yield Piece(item.direction, item.time_ns, item.offset, b"", item.length)

    def packets(self) -> Iterator[Packet]:
        """Yield the packets of the pcapng as scapy packets, with their times and comments."""
        from tlscap.export.scapy_packets import packets  # noqa: PLC0415 - scapy takes a second to import

        with open_capture(self.path) as file:
            yield from packets(file.stream, is_sidecar=file.is_sidecar)

    def replay(
        self, flow_id: int, *, body_sink: core.BodySink | None = None, message_sink: core.MessageSink | None = None
    ) -> Iterator[core.Exchange | None]:
        """Read one connection again: yield its exchanges as they end, and ``None`` after every item without one."""
        builder = core.ExchangeBuilder(body_sink, message_sink)
        time_ns = 0
        for item in self.events():
            if item.flow.id == flow_id:
                time_ns = item.time_ns
                yield from builder.feed(item) or (None,)
        yield from builder.finish(time_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""


def open(path: str) -> Capture:  # noqa: A001 - read as tlscap.open
    """Open a capture: a sidecar (``NAME.tlscap.zst``) or a pcapng that tlscap wrote.

    Raises `tlscap.errors.OutputError` when it can't be opened, `tlscap.errors.FormatError` when it is something else.
    """
    return Capture(path)


class _Pieces:
    """A `BodySink` that hands on one body."""

    def __init__(self, number: int, side: Side) -> None:
        self._wanted = number, side
        self._pieces: list[bytes | BodyGap] = []

    def on_body(self, exchange: core.Exchange, side: Side, piece: bytes | BodyGap) -> None:
        if (exchange.number, side) == self._wanted:
            self._pieces.append(piece)

    def taken(self) -> list[bytes | BodyGap]:
        pieces, self._pieces = self._pieces, []
        return pieces


class _Messages:
    """A `MessageSink` that hands on those of one exchange."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._messages: list[AppMessage] = []

    def on_message(self, exchange: core.Exchange, message: AppMessage) -> None:
        if exchange.number == self._number:
            self._messages.append(message)

    def taken(self) -> list[AppMessage]:
        messages, self._messages = self._messages, []
        return messages


def _moment(time_ns: int) -> datetime:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
