"""From a capture's items to HTTP exchanges: a request, its response, and everything known about the pair.

`ExchangeBuilder` takes the items of a whole capture, many flows interleaved, and hands out exchanges in the order
in which they end.  It keeps what is still open and nothing else: bodies pass by, and a `BodySink` may look.

Ids count from 1 in the order in which request heads became complete (response heads, where no request was seen).
They depend on nothing but the items, so a second pass over the same file finds the same exchange by its id.

Each flow speaks one protocol, chosen when its first bytes come: by ALPN, else by those bytes.  `OBSERVERS` maps
protocols to what understands them; a connection without an observer, or on which nothing was
understood, is counted as an `OtherStream`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, assert_never

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
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.http.http1 import Http1Connection, clear_start
from tlscap.model import (
    Data,
    Direction,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Role,
)

HeadT = TypeVar("HeadT", RequestHead, ResponseHead)

DROPPED: Final = "connection dropped without close_notify"
"""What ended a message when the library freed the connection before the peer said that it was done."""

_H2_PREFACE: Final = b"PRI * HTTP/2"  # RFC 9113, 3.4: enough of it to be sure
_H2_SETTINGS: Final = (
    b"\x04\x00\x00\x00\x00\x00"  # type, flags and stream of the server's first frame, after its length
)
_UNDECIDED_LIMIT: Final = 1 << 13  # bytes of a flow that wait for its role and protocol to become clear


class Observer(Protocol):
    """What understands a protocol.  See `tlscap.http.events` for what it says."""

    def feed(self, side: Side, data: bytes, time_ns: int) -> list[AnyEvent]:
        """Take the next bytes of one side."""
        ...

    def gap(self, side: Side, length: int, reason: GapReason, time_ns: int) -> list[AnyEvent]:
        """Take the news that the next bytes of one side are missing."""
        ...

    def finish(self, side: Side, time_ns: int, *, why: str = "") -> list[AnyEvent]:
        """Take the end of one side; ``why`` is empty for an orderly one."""
        ...


OBSERVERS: Final[dict[str, Callable[[], Observer]]] = {
    "http/0.9": Http1Connection,  # the names that IANA registered for ALPN
    "http/1.0": Http1Connection,
    "http/1.1": Http1Connection,
}


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
        return [value for key, value in self.head.headers if key.lower().rstrip() == name]

    @property
    def encodings(self) -> str:
        """What was done to the content, in order: content codings, then transfer codings other than chunked."""
        values = self.values(b"content-encoding") + self.values(b"transfer-encoding")
        names = (name.strip().lower() for name in b",".join(values).decode("latin-1").split(","))
        return ", ".join(name for name in names if name not in ("", "chunked", "identity"))


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
    """What the connection speaks after this exchange, when that is not HTTP."""
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
        return min(versions, default=b"http/1.1").decode("latin-1").lower()

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
    """A connection, or the rest of one after an upgrade, whose bytes no observer reads."""

    flow: Flow
    protocol: str
    """What ALPN, the first bytes or the upgrade said, or ``unknown``."""
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes, stored or missing, by `Direction`."""


class BodySink(Protocol):
    """Gets every piece of every body as it passes; ``exchange`` already has that message's head."""

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Take one piece."""
        ...


class ExchangeBuilder:
    """Makes exchanges from the items of one capture."""

    def __init__(self, body_sink: BodySink | None = None) -> None:
        self._body_sink = body_sink
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
                return self._apply(conversation, conversation.take(item))
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
        """Return the connections that speak, or came to speak, something that is not decoded."""
        still_open = [other for conversation in self._conversations.values() for other in conversation.others()]
        return sorted(self._others + still_open, key=lambda other: other.flow.id)

    def _close(self, conversation: _Conversation, time_ns: int, why: str) -> list[Exchange]:
        done = self._apply(conversation, conversation.close(time_ns, why))
        for exchange in conversation.open.values():
            if not exchange.response:
                exchange.problems.append("no response")
            done.append(exchange)
        conversation.open.clear()
        self._others += conversation.others()
        self._unparsed += conversation.unparsed if conversation.spoke_http else 0
        return done

    def _apply(self, conversation: _Conversation, events: Iterator[AnyEvent]) -> list[Exchange]:
        done: dict[int, Exchange] = {}
        for event in events:
            exchange = conversation.open.get(event.exchange)
            match event:
                case BodyData():
                    if exchange:
                        message = _message(exchange, event.side)
                        message.body_size += len(event.data)
                        message.last_ns = event.time_ns
                        if self._body_sink:
                            self._body_sink.on_body(exchange, event.side, event.data)
                case RequestHead():
                    exchange = self._begin(conversation, event)
                    exchange.request = Message(event, event.started_ns, event.time_ns)
                    exchange.url = request_url(conversation.flow, conversation.requests_go, event)
                    exchange.problems += [f"request: {note}" for note in event.notes]
                case ResponseHead():
                    exchange = exchange or self._begin(conversation, event)
                    if event.interim:
                        exchange.interim.append(event.status)
                        continue
                    exchange.response = Message(event, event.started_ns, event.time_ns)
                    if not exchange.request:
                        exchange.problems.append("request not seen")
                    exchange.problems += [f"response: {note}" for note in event.notes]
                case BodyGap():
                    if exchange:
                        message = _message(exchange, event.side)
                        message.gap_bytes += event.length
                        message.last_ns = event.time_ns
                        _add_problem(exchange, f"{event.side.value}: bytes missing ({event.reason.value})")
                        if self._body_sink:
                            self._body_sink.on_body(exchange, event.side, event)
                case Trailers():
                    if exchange:
                        _message(exchange, event.side).trailers = event.headers
                case MessageEnd():
                    if exchange and conversation.message_over(exchange, event):
                        done[event.exchange] = conversation.open.pop(event.exchange)
                case Upgraded():
                    if exchange := exchange or done.get(event.exchange):
                        exchange.upgraded_to = event.protocol
                    conversation.upgraded(event.protocol)
                case TunnelData():
                    conversation.tunnelled(event.side, len(event.data))
                case TunnelGap():
                    conversation.tunnelled(event.side, event.length)
                case ControlFrame():
                    pass
                case Unparsed():
                    if event.why != BLANK_LINE:
                        conversation.unparsed += event.length
                case _:
                    assert_never(event)
        return list(done.values())

    def _begin(self, conversation: _Conversation, head: RequestHead | ResponseHead) -> Exchange:
        self.exchange_count += 1
        conversation.exchange_count += 1
        exchange = Exchange(self.exchange_count, conversation.flow, head.started_ns, conversation.exchange_count)
        conversation.open[head.exchange] = exchange
        conversation.spoke_http = True
        return exchange


class _Conversation:
    """One flow: its protocol, and the exchanges that are open."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.requests_go = Direction.OUTBOUND
        self.open: dict[int, Exchange] = {}
        self.exchange_count = 0
        self.spoke_http = False
        self.unparsed = 0
        self._over: set[tuple[int, Side]] = set()
        self._protocol = ""  # empty: not decided
        self._observer: Observer | None = None
        self._undecided: list[Data | Gap] = []
        self._closed: set[Direction] = set()
        self._lengths = [0, 0]
        self._tunnel: OtherStream | None = None

    def take(self, item: Data | Gap) -> Iterator[AnyEvent]:
        """Yield what the next bytes mean."""
        self._lengths[item.direction] += len(item.data) if isinstance(item, Data) else item.length
        if self._observer:
            yield from self._observe(self._observer, item)
        elif not self._protocol:
            self._undecided.append(item)
            observer = self._decide()
            if observer:
                for undecided in self._undecided:
                    yield from self._observe(observer, undecided)
                self._undecided.clear()

    def half_close(self, item: HalfClosed) -> Iterator[AnyEvent]:
        """Yield what the orderly end of one direction means."""
        if self._observer:
            self._closed.add(item.direction)
            yield from self._observer.finish(self._side(item.direction), item.time_ns)

    def close(self, time_ns: int, why: str) -> Iterator[AnyEvent]:
        """Yield what the end of the rest means.  What was written is whole even if no close_notify was."""
        for direction in (self.requests_go, self.requests_go.opposite):
            if self._observer and direction not in self._closed:
                whole = direction is Direction.OUTBOUND and why == DROPPED
                yield from self._observer.finish(self._side(direction), time_ns, why="" if whole else why)

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

    def upgraded(self, protocol: str) -> None:
        """Note that what follows is not HTTP."""
        self._tunnel = self._tunnel or OtherStream(self.flow, protocol)

    def tunnelled(self, side: Side, length: int) -> None:
        """Count bytes after an upgrade."""
        if self._tunnel:
            direction = self.requests_go if side is Side.REQUEST else self.requests_go.opposite
            self._tunnel.lengths[direction] += length

    def others(self) -> list[OtherStream]:
        """Return what of this flow was not decoded."""
        if self._tunnel:
            return [self._tunnel]
        if self.spoke_http or not any(self._lengths):
            return []
        return [OtherStream(self.flow, "unknown" if self._observer else self._protocol or "unknown", self._lengths)]

    def _side(self, direction: Direction) -> Side:
        return Side.REQUEST if direction is self.requests_go else Side.RESPONSE

    def _observe(self, observer: Observer, item: Data | Gap) -> list[AnyEvent]:
        side = self._side(item.direction)
        if isinstance(item, Data):
            return observer.feed(side, item.data, item.time_ns)
        return observer.gap(side, item.length, item.reason, item.time_ns)

    # --- Which protocol, and who asks whom? ---

    def _decide(self) -> Observer | None:
        """Choose protocol and direction, if what is known suffices; return the observer, if there is one now."""
        flow = self.flow
        known = flow.role is not Role.UNKNOWN
        if known:
            self.requests_go = Direction.OUTBOUND if flow.role is Role.CLIENT else Direction.INBOUND
        if flow.alpn and (known or flow.alpn not in OBSERVERS):
            return self._settle(flow.alpn)
        begins = self._begins()
        verdicts = {direction: _is_h2(begin) for direction, begin in begins.items()}
        for direction, is_h2 in verdicts.items():
            if is_h2:
                if not known:
                    asks = begins[direction].startswith(_H2_PREFACE)
                    self.requests_go = direction if asks else direction.opposite
                return self._settle("h2")
        if not known:
            return self._decide_by_start_lines(begins)
        return None if set(verdicts.values()) == {None} else self._settle("http/1.1")

    def _decide_by_start_lines(self, begins: dict[Direction, bytes]) -> Observer | None:
        """Find out who asks; forget the bytes that can't become a start line."""
        hopeful = False
        for direction, begin in begins.items():
            for side in Side:
                clear = clear_start(begin, side)
                if clear:
                    self.requests_go = direction if side is Side.REQUEST else direction.opposite
                    return self._settle(self.flow.alpn or "http/1.1")
                hopeful |= clear is None
            hopeful |= not self.flow.alpn and _is_h2(begin) is None
        if not hopeful or sum(len(begin) for begin in begins.values()) > _UNDECIDED_LIMIT:
            self._undecided.clear()
        return None

    def _settle(self, protocol: str) -> Observer | None:
        self._protocol = protocol
        make = OBSERVERS.get(protocol)
        if make:
            self._observer = make()
        else:
            self._undecided.clear()
        return self._observer

    def _begins(self) -> dict[Direction, bytes]:
        """Return the first bytes of each direction that waits for a decision."""
        begins: dict[Direction, bytes] = {}
        broken: set[Direction] = set()
        for item in self._undecided:
            if isinstance(item, Gap):
                broken.add(item.direction)
            elif item.direction not in broken:
                begins[item.direction] = begins.get(item.direction, b"") + item.data
        return begins


def request_url(flow: Flow, requests_go: Direction, head: RequestHead) -> str:
    """Return the URL that a request asks for (RFC 9112, 3.3); for CONNECT the ``host:port`` it names.

    The authority is the target's own, else the Host field's, else the name in the TLS handshake, else the address.
    """
    target = head.target.decode("latin-1")
    if head.method == b"CONNECT" or "://" in target.partition("?")[0]:
        return target
    server = flow.remote if requests_go is Direction.OUTBOUND else flow.local
    host = next((value for name, value in head.headers if name.lower() == b"host"), b"").decode("latin-1")
    if not host:
        host = flow.sni or (f"[{server.address}]" if server and ":" in server.address else "")
        host = host or (server.address if server else "unknown")
        if server and server.port != 443:
            host += f":{server.port}"
    if target == "*":  # asterisk-form: the server as a whole
        target = ""
    elif not target.startswith("/"):
        target = "/" + target
    return f"https://{host}{target}"


def _is_h2(begin: bytes) -> bool | None:
    """Tell whether a direction's first bytes are HTTP/2, the client's or the server's; ``None``: they may become it."""
    if begin.startswith(_H2_PREFACE):
        return True
    if _H2_PREFACE.startswith(begin):
        return None
    if begin[0] != 0:  # the length of a first SETTINGS frame: far below 64 KiB
        return False
    return begin[3:9] == _H2_SETTINGS if len(begin) >= 9 else None


def _message(exchange: Exchange, side: Side) -> Message[RequestHead] | Message[ResponseHead]:
    message = exchange.message(side)
    assert message, "a body has a head"  # noqa: S101
    return message


def _add_problem(exchange: Exchange, problem: str) -> None:
    if problem not in exchange.problems:
        exchange.problems.append(problem)
