"""From a capture's items to HTTP exchanges: a request, its response, and everything known about the pair.

`ExchangeBuilder` takes the items of a whole capture, many flows interleaved, and hands out exchanges in the order
in which they end.  It keeps what is still open and nothing else: bodies pass by, and a `BodySink` may look.

Ids count from 1 in the order in which request heads became complete (response heads, where no request was seen).
They depend on nothing but the items, so a second pass over the same file finds the same exchange by its id.

Each flow speaks one protocol, chosen when its first bytes come (`tlscap.http.protocols`).  A connection that nothing
understands is counted as an `OtherStream`.  What leaves HTTP on the way (WebSocket, a tunnel) stays with the exchange that
asked for it, which is over when its tunnel is; an upgrade to HTTP/2 goes on as HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, assert_never

from tlscap.http.decoding import MessageReader, content_codings
from tlscap.http.events import (
    BLANK_LINE,
    AnyEvent,
    BodyData,
    BodyGap,
    ControlFrame,
    Header,
    MessageEnd,
    RequestHead,
    ResponseHead,
    Side,
    Trailers,
    TunnelData,
    TunnelEnd,
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.http.http1 import Http1Connection, clear_start
from tlscap.http.http2 import Http2Connection
from tlscap.http.messages import AppMessage, MessageDecoder, field_values, tunnel_decoders
from tlscap.http.protocols import Observer, ProtocolChooser, server_of
from tlscap.model import (
    Data,
    Direction,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    HalfClosed,
    Item,
    Role,
)

HeadT = TypeVar("HeadT", RequestHead, ResponseHead)

DROPPED: Final = "connection dropped without close_notify"
"""What ended a message when the library freed the connection before the peer said that it was done."""

_COUNTED_ONLY: Final = 1 << 10
"""Bytes kept of a tunnel's message when nobody asked for messages: enough to count them."""

_EARLY_LIMIT: Final = 16
"""Items that wait for the question that they answer."""

_COUNTED_KINDS: Final = frozenset({"text", "binary", "continuation"})


@dataclass(slots=True)
class Message(Generic[HeadT]):
    """A request or a response, without its body."""

    head: HeadT
    first_ns: int
    last_ns: int
    """When its last byte passed, of those that passed so far."""
    body_size: int = 0
    """Bytes of the body as transferred: without chunk framing, with content codings, without missing bytes."""
    gap_bytes: int = 0
    complete: bool = False
    trailers: tuple[Header, ...] = ()

    @property
    def headers(self) -> tuple[Header, ...]:
        """The head's fields."""
        return self.head.headers

    def values(self, name: bytes) -> list[bytes]:
        """Return every value of a field; ``name`` in lower case."""
        return field_values(self.head.headers, name)

    @property
    def encodings(self) -> str:
        """What was done to the content, in order: content codings, then transfer codings other than chunked."""
        return content_codings(self.head.headers)


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its response, either of which may be missing."""

    id: int
    flow: Flow
    started_ns: int
    """When its first byte passed, of those that were seen."""
    number: int = 1
    """Which exchange of its connection it is, from 1, in the order in which they began."""
    url: str = ""
    """Empty when the request was not seen."""
    request: Message[RequestHead] | None = None
    response: Message[ResponseHead] | None = None
    interim: list[int] = field(default_factory=list)
    """The 1xx statuses that came before the response."""
    upgraded_to: str = ""
    """What the connection, or this stream of it, speaks after this exchange, when that is not HTTP/1."""
    tunnel: dict[Side, int] = field(default_factory=dict)
    """Bytes that passed then, by whose they were; empty when nothing was upgraded."""
    message_counts: dict[Side, int] = field(default_factory=dict)
    """WebSocket messages that passed then."""
    problems: list[str] = field(default_factory=list)
    """What is odd or missing, in words for people."""

    def message(self, side: Side) -> Message[RequestHead] | Message[ResponseHead] | None:
        """Return the request or the response, if it was seen."""
        if side is Side.REQUEST:
            return self.request
        return self.response

    @property
    def protocol(self) -> str:
        """``http/1.1``, ``http/1.0``, ``http/0.9`` or ``h2``: the older of what request and response say."""
        versions = [message.head.version for message in (self.request, self.response) if message]
        version = min(versions, default=b"HTTP/1.1").decode("latin-1").lower()
        return "h2" if version == "http/2" else version

    @property
    def duration_ns(self) -> int | None:
        """From the request's first byte to the response's last, or ``None`` when one was not seen."""
        return self.response.last_ns - self.request.first_ns if self.request and self.response else None

    @property
    def wait_ns(self) -> int | None:
        """From the request's last byte to the response's first.  Negative when the answer did not wait for all of it."""
        return self.response.first_ns - self.request.last_ns if self.request and self.response else None

    @property
    def handshake_ns(self) -> int | None:
        """How long the TLS handshake took that this exchange had to wait for; ``None`` on a reused connection."""
        flow = self.flow
        if self.number > 1 or not flow.handshake_start_ns or not flow.handshake_end_ns:
            return None
        return flow.handshake_end_ns - flow.handshake_start_ns

    @property
    def complete(self) -> bool:
        """Whether every byte of both messages was seen."""
        return bool(self.request and self.request.complete and self.response and self.response.complete)


@dataclass(slots=True)
class OtherStream:
    """A connection whose bytes no observer reads."""

    flow: Flow
    protocol: str
    """What ALPN or the first bytes said, or ``unknown``."""
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes, stored or missing, by `Direction`."""


class BodySink(Protocol):
    """Gets every piece of every body as it passes; ``exchange`` already has that message's head."""

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Take one piece."""
        ...


class MessageSink(Protocol):
    """Gets every message within bodies and tunnels (`tlscap.http.messages`) as it ends."""

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        """Take one message."""
        ...


class EventSink(Protocol):
    """Gets everything that was observed, in order: for those who show whole conversations."""

    def on_event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        """Take an event, after it was folded into its exchange; ``has_messages``: of a body that a `MessageSink` gets in messages."""
        ...

    def on_unread(self, item: Data | Gap, side: Side) -> None:
        """Take bytes of a connection that no observer reads."""
        ...


class ExchangeBuilder:
    """Makes exchanges from the items of one capture."""

    def __init__(
        self,
        body_sink: BodySink | None = None,
        message_sink: MessageSink | None = None,
        event_sink: EventSink | None = None,
    ) -> None:
        self._body_sink = body_sink
        self._message_sink = message_sink
        self._event_sink = event_sink
        self._conversations: dict[int, _Conversation] = {}
        self._others: list[OtherStream] = []
        self.exchange_count = 0
        """Exchanges begun so far: the highest id."""
        self.flow_count = 0
        """Flows on which bytes passed."""
        self._unparsed = 0

    @property
    def unparsed_bytes(self) -> int:
        """Bytes on HTTP connections, present or missing, that could not be read as HTTP."""
        return self._unparsed + sum(talk.unparsed for talk in self._conversations.values() if talk.spoke_http)

    def feed(self, item: Item) -> list[Exchange]:
        """Take the next item; return the exchanges that it completed."""
        match item:
            case Data() | Gap():
                conversation = self._conversations.get(item.flow.id)
                if conversation is None:
                    conversation = self._conversations[item.flow.id] = _Conversation(item.flow)
                    self.flow_count += 1
                done = self._apply(conversation, conversation.take(item))
                if self._event_sink:
                    self._show_unread(conversation, conversation.unread(item))
                return done
            case HalfClosed():
                conversation = self._conversations.get(item.flow.id)
                return self._apply(conversation, conversation.half_close(item)) if conversation else []
            case FlowClosed():
                conversation = self._conversations.pop(item.flow.id, None)
                return self._close(conversation, item.time_ns, DROPPED) if conversation else []
            case FlowOpened() | FlowUpdated():
                return []
            case _:
                assert_never(item)

    def finish(self, time_ns: int) -> list[Exchange]:
        """Take the end of the capture; return the exchanges that are still open, as far as they got."""
        exchanges = []
        while self._conversations:
            _, conversation = self._conversations.popitem()
            exchanges += self._close(conversation, time_ns, "recording ended")
        return sorted(exchanges, key=lambda exchange: exchange.id)

    def others(self) -> list[OtherStream]:
        """Return the connections that speak something that is not decoded."""
        still_open = [other for talk in self._conversations.values() if (other := talk.other())]
        return sorted(self._others + still_open, key=lambda other: other.flow.id)

    def _close(self, conversation: _Conversation, time_ns: int, why: str) -> list[Exchange]:
        if self._event_sink:
            self._show_unread(conversation, conversation.undecided)
        done = self._apply(conversation, conversation.close(time_ns, why))
        for exchange in conversation.open.values():
            if not exchange.response:
                exchange.problems.append("no response")
            done.append(exchange)
        conversation.open.clear()
        if other := conversation.other():
            self._others.append(other)
        self._unparsed += conversation.unparsed if conversation.spoke_http else 0
        return done

    def _apply(self, conversation: _Conversation, events: Iterable[AnyEvent]) -> list[Exchange]:
        """Fold events into exchanges; return those that are over, in the order in which they ended."""
        done: dict[int, Exchange] = {}
        self._fold(conversation, events, done)
        return list(done.values())

    def _show_unread(self, conversation: _Conversation, items: Iterable[Data | Gap]) -> None:
        for item in items:
            if self._event_sink:
                self._event_sink.on_unread(item, conversation.side(item.direction))

    def _fold(self, conversation: _Conversation, events: Iterable[AnyEvent], done: dict[int, Exchange]) -> None:
        for event in events:
            exchange = self._fold_one(conversation, event, done)
            if self._event_sink:
                has_messages = (event.exchange, event.side) in conversation.readers
                self._event_sink.on_event(conversation.flow, exchange, event, has_messages=has_messages)

    def _fold_one(self, conversation: _Conversation, event: AnyEvent, done: dict[int, Exchange]) -> Exchange | None:
        """Fold one event; return its exchange, if it has one."""
        exchange = conversation.open.get(event.exchange)
        match event:
            case BodyData():
                if exchange:
                    self._on_body(conversation, exchange, event, event.data)
            case MessageEnd():
                if exchange:
                    self._on_message_end(conversation, exchange, event)
                    if conversation.message_over(exchange, event):
                        done[event.exchange] = conversation.open.pop(event.exchange)
            case RequestHead():
                exchange = self._begin(conversation, event)
                exchange.request = Message(event, event.started_ns, event.time_ns)
                exchange.url = request_url(conversation.flow, conversation.requests_go, event)
                exchange.problems += [f"request: {note}" for note in event.notes]
                self._look_for_messages(conversation, event)
            case ResponseHead():
                exchange = exchange or self._begin(conversation, event)
                if event.interim:
                    exchange.interim.append(event.status)
                    return exchange
                exchange.response = Message(event, event.started_ns, event.time_ns)
                if not exchange.request:
                    exchange.problems.append("request not seen")
                exchange.problems += [f"response: {note}" for note in event.notes]
                self._look_for_messages(conversation, event)
            case BodyGap():
                if exchange:
                    self._on_body(conversation, exchange, event, event)
            case Trailers():
                if exchange and (message := exchange.message(event.side)):
                    message.trailers = event.headers
            case Upgraded():
                if exchange := exchange or done.pop(event.exchange, None):
                    self._on_upgrade(conversation, exchange, event)
            case TunnelData() | TunnelGap():
                if conversation.http2:
                    self._fold(conversation, conversation.within(event), done)
                elif exchange:
                    self._on_tunnel(conversation, exchange, event)
            case TunnelEnd():
                if exchange and not conversation.http2 and self._on_tunnel_end(conversation, exchange, event):
                    done[event.exchange] = conversation.open.pop(event.exchange)
            case ControlFrame():
                pass
            case Unparsed():
                # What was on its way when a stream was reset is no surprise either.
                if event.why != BLANK_LINE and not event.why.startswith("stream already "):
                    conversation.unparsed += event.length
            case _:
                assert_never(event)
        return exchange

    def _begin(self, conversation: _Conversation, head: RequestHead | ResponseHead) -> Exchange:
        self.exchange_count += 1
        conversation.exchange_count += 1
        exchange = Exchange(self.exchange_count, conversation.flow, head.started_ns, conversation.exchange_count)
        conversation.open[head.exchange] = exchange
        conversation.spoke_http = True
        return exchange

    # --- Bodies ---

    def _on_body(
        self, conversation: _Conversation, exchange: Exchange, event: BodyData | BodyGap, piece: bytes | BodyGap
    ) -> None:
        message = exchange.message(event.side)
        if message is None:  # a body without a head: an observer's mistake, not worth the capture
            return
        message.last_ns = event.time_ns
        if isinstance(event, BodyData):
            message.body_size += len(event.data)
        else:
            message.gap_bytes += event.length
            _add_problem(exchange, f"{event.side.value}: bytes missing ({event.reason.value})")
        if self._body_sink:
            self._body_sink.on_body(exchange, event.side, piece)
        if reader := conversation.readers.get((event.exchange, event.side)):
            if isinstance(event, BodyData):
                messages = reader.feed(event.data, event.time_ns)
            else:
                messages = reader.gap(event.length, event.time_ns)
            self._tell(exchange, messages)

    def _look_for_messages(self, conversation: _Conversation, head: RequestHead | ResponseHead) -> None:
        if self._message_sink and (reader := MessageReader.of(head.side, head.headers)):
            conversation.readers[head.exchange, head.side] = reader

    def _on_message_end(self, conversation: _Conversation, exchange: Exchange, event: MessageEnd) -> None:
        if conversation.readers and (reader := conversation.readers.pop((event.exchange, event.side), None)):
            self._tell(exchange, reader.finish(event.time_ns, why="" if event.complete else event.why))

    def _tell(self, exchange: Exchange, messages: list[AppMessage]) -> None:
        if self._message_sink:
            for message in messages:
                self._message_sink.on_message(exchange, message)

    # --- After HTTP ---

    def _on_upgrade(self, conversation: _Conversation, exchange: Exchange, event: Upgraded) -> None:
        conversation.open[event.exchange] = exchange
        exchange.upgraded_to = event.protocol
        request, response = exchange.request, exchange.response
        if event.protocol == "h2c" and request:
            if response:  # 101: the answer itself comes in HTTP/2
                exchange.interim.append(response.head.status)
                exchange.response = None
                conversation.go_on_as_http2(event.exchange, request.head.method)
            return
        if event.exchange not in conversation.tunnels:
            exchange.tunnel = dict.fromkeys(Side, 0)
            limit = {} if self._message_sink else {"limit": _COUNTED_ONLY}
            decoders = tunnel_decoders(
                event.protocol, request.headers if request else (), response.headers if response else (), **limit
            )
            if decoders:
                exchange.message_counts = dict.fromkeys(Side, 0)
            conversation.tunnels[event.exchange] = dict(zip(Side, decoders or (None, None), strict=True))

    def _on_tunnel(self, conversation: _Conversation, exchange: Exchange, event: TunnelData | TunnelGap) -> None:
        length = len(event.data) if isinstance(event, TunnelData) else event.length
        exchange.tunnel[event.side] = exchange.tunnel.get(event.side, 0) + length
        if isinstance(event, TunnelGap):
            _add_problem(exchange, f"{exchange.upgraded_to}: bytes missing ({event.reason.value})")
        decoder = conversation.tunnels.get(event.exchange, {}).get(event.side)
        if decoder is None:
            return
        if isinstance(event, TunnelData):
            messages = decoder.feed(event.data, event.time_ns)
        else:
            messages = decoder.gap(event.length, event.time_ns)
        self._count_messages(exchange, event.side, messages)

    def _on_tunnel_end(self, conversation: _Conversation, exchange: Exchange, event: TunnelEnd) -> bool:
        """Return whether it was the tunnel's second end."""
        sides = conversation.tunnels.get(event.exchange, {})
        decoder = sides.pop(event.side, None)
        if decoder:
            self._count_messages(exchange, event.side, decoder.finish(event.time_ns, why=event.why))
        if sides:
            return False
        conversation.tunnels.pop(event.exchange, None)
        return True

    def _count_messages(self, exchange: Exchange, side: Side, messages: list[AppMessage]) -> None:
        exchange.message_counts[side] += sum(message.kind in _COUNTED_KINDS for message in messages)
        self._tell(exchange, messages)


class _Conversation:
    """One flow: its protocol, and the exchanges that are open."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.open: dict[int, Exchange] = {}
        self.exchange_count = 0
        self.spoke_http = False
        self.unparsed = 0
        self.readers: dict[tuple[int, Side], MessageReader] = {}
        self.tunnels: dict[int, dict[Side, MessageDecoder | None]] = {}
        """By exchange, what decodes the sides that are not over."""
        self._over: set[tuple[int, Side]] = set()
        self._chooser = ProtocolChooser(flow)
        self._observer: Observer | None = None
        self.http2: Http2Connection | None = None
        """What the tunnel carries, after an upgrade to h2c."""
        self._closed: set[Direction] = set()
        self._early: list[Data | Gap] = []  # answers to nothing that was seen yet
        self._lengths = [0, 0]

    @property
    def undecided(self) -> list[Data | Gap]:
        """Items that wait for the choice of a protocol."""
        return self._chooser.held

    def unread(self, item: Data | Gap) -> list[Data | Gap]:
        """Return what it is certain of, after `take` got this item, that no observer reads it."""
        if self._observer:
            return []
        return self._chooser.forgotten or ([] if self.undecided else [item])

    @property
    def requests_go(self) -> Direction:
        return self._chooser.requests_go

    def take(self, item: Data | Gap) -> list[AnyEvent]:
        """Return what the next bytes mean."""
        self._lengths[item.direction] += len(item.data) if isinstance(item, Data) else item.length
        observer = self._observer
        if observer:
            return self._observe_in_order(observer, item)
        if self._chooser.protocol:
            self._chooser.forgotten = []
            return []
        observer = self._observer = self._chooser.take(item)
        events: list[AnyEvent] = []
        if observer:
            for held in self._chooser.held:
                events += self._observe_in_order(observer, held)
            self._chooser.held.clear()
        return events

    def half_close(self, item: HalfClosed) -> Iterator[AnyEvent]:
        """Yield what the orderly end of one direction means."""
        if self._observer:
            yield from self._flush(self._observer)
            self._closed.add(item.direction)
            yield from self._finish(self._observer, self.side(item.direction), item.time_ns, "")

    def close(self, time_ns: int, why: str) -> Iterator[AnyEvent]:
        """Yield what the end of the rest means.  What was written is whole even if no close_notify was."""
        if self._observer:
            yield from self._flush(self._observer)
        for direction in (self.requests_go, self.requests_go.opposite):
            if self._observer and direction not in self._closed:
                whole = direction is Direction.OUTBOUND and why == DROPPED
                yield from self._finish(self._observer, self.side(direction), time_ns, "" if whole else why)

    def within(self, event: TunnelData | TunnelGap) -> list[AnyEvent]:
        """Return what a tunnel's bytes mean when it carries HTTP/2."""
        if self.http2 is None:
            return []
        if isinstance(event, TunnelData):
            return self.http2.feed(event.side, event.data, event.time_ns)
        return self.http2.gap(event.side, event.length, event.reason, event.time_ns)

    def go_on_as_http2(self, exchange: int, method: bytes) -> None:
        """What the tunnel carries is HTTP/2, beginning with the answer to this exchange (RFC 7540, 3.2)."""
        self._over.add((exchange, Side.REQUEST))
        self.http2 = Http2Connection(upgraded_exchange=exchange, upgraded_method=method)

    def message_over(self, exchange: Exchange, end: MessageEnd) -> bool:
        """Note the end of a message; return whether it was also the end of the exchange."""
        message = exchange.message(end.side)
        if message:
            message.complete = end.complete
            message.last_ns = max(message.last_ns, end.time_ns)
            if not end.complete and not message.gap_bytes:
                exchange.problems.append(f"{end.side.value} cut short: {end.why}")
        else:
            exchange.problems.append(end.why)
        if exchange.request and (end.exchange, end.side.opposite) not in self._over:
            self._over.add((end.exchange, end.side))
            return False
        self._over.discard((end.exchange, end.side.opposite))
        return True

    def other(self) -> OtherStream | None:
        """Return the flow when nothing of it was understood."""
        if self.spoke_http or not any(self._lengths):
            return None
        # HTTP/1.1 is also what is tried when nothing is known.
        name = self._chooser.guess() or self._chooser.protocol.replace("http/1.1", "")
        return OtherStream(self.flow, name or "unknown", self._lengths)

    def side(self, direction: Direction) -> Side:
        return Side.REQUEST if direction is self.requests_go else Side.RESPONSE

    def _observe_in_order(self, observer: Observer, item: Data | Gap) -> list[AnyEvent]:
        """Have an item observed, an answer after its question.

        When one thread of a client writes and another reads, the answer may be read before the call that wrote the question has
        returned and told of it.  Outbound items carry the time at which their call began: it tells.
        """
        early = self._early
        if item.direction is self.requests_go:
            if not early:
                return self._observe(observer, item)
            if item.time_ns <= early[0].time_ns:
                events = self._observe(observer, item)
                return events + self._flush(observer)
            return self._flush(observer) + self._observe(observer, item)
        if not early and not self._is_early(observer, item):
            return self._observe(observer, item)
        early.append(item)
        return self._flush(observer) if len(early) > _EARLY_LIMIT else []

    def _is_early(self, observer: Observer, item: Data | Gap) -> bool:
        """Tell whether an item begins an answer to a question that was not seen."""
        if self.flow.role is not Role.CLIENT or not isinstance(item, Data):
            return False
        if isinstance(observer, Http2Connection):
            return observer.answers_ahead(item.data)
        return (
            isinstance(observer, Http1Connection)
            and observer.idle
            and clear_start(item.data, Side.RESPONSE) is not False
        )

    def _flush(self, observer: Observer) -> list[AnyEvent]:
        """Have what waited for its question observed."""
        early, self._early = self._early, []
        return [event for item in early for event in self._observe(observer, item)]

    def _observe(self, observer: Observer, item: Data | Gap) -> list[AnyEvent]:
        side = self.side(item.direction)
        if isinstance(item, Data):
            return observer.feed(side, item.data, item.time_ns)
        return observer.gap(side, item.length, item.reason, item.time_ns)

    def _finish(self, observer: Observer, side: Side, time_ns: int, why: str) -> Iterator[AnyEvent]:
        yield from observer.finish(side, time_ns, why=why)
        if self.http2:
            yield from self.http2.finish(side, time_ns, why=why)


def request_url(flow: Flow, requests_go: Direction, head: RequestHead) -> str:
    """Return the URL that a request asks for (RFC 9112, 3.3); for CONNECT the ``host:port`` it names.

    The authority is the target's own, else HTTP/2's, else the Host field's, else the name in the TLS handshake, else the address.
    """
    target = head.target.decode("latin-1")
    authority = head.authority.decode("latin-1")
    if head.method == b"CONNECT" and not head.protocol:
        return target or authority
    if "://" in target.partition("?")[0]:
        return target
    server = server_of(flow, requests_go)
    host = authority or next((value for name, value in head.headers if name.lower() == b"host"), b"").decode("latin-1")
    if not host:
        host = flow.sni or (f"[{server.address}]" if server and ":" in server.address else "")
        host = host or (server.address if server else "unknown")
        if server and server.port != (80 if flow.plaintext else 443):
            host += f":{server.port}"
    if target == "*":  # asterisk-form: the server as a whole
        target = ""
    elif not target.startswith("/"):
        target = "/" + target
    scheme = head.scheme.decode("latin-1") or ("http" if flow.plaintext else "https")
    return f"{scheme}://{host}{target}"


def _add_problem(exchange: Exchange, problem: str) -> None:
    if problem not in exchange.problems:
        exchange.problems.append(problem)
