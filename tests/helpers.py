"""What several test modules need: flows and items made by hand, and the drip feeder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tlscap.http.events import (
    AnyEvent,
    BodyData,
    BodyGap,
    ControlFrame,
    MessageEnd,
    RequestHead,
    ResponseHead,
    Side,
    TunnelData,
    TunnelGap,
    Unparsed,
)
from tlscap.http.http1 import Http1Connection
from tlscap.http.protocols import Observer
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Process,
    Role,
)

START_NS = 1_795_197_600_123_456_789
"""2026-11-20T18:00:00.123456789Z."""

REQUEST = Side.REQUEST
RESPONSE = Side.RESPONSE
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Step = tuple[Side, "bytes | int"]
"""What passed on one side: bytes, or how many are missing."""


def make_flow(number: int = 1, **changes: Any) -> Flow:
    """Return a client's flow to example.org:443."""
    process = Process(pid=4711, comm="curl", exe="/usr/bin/curl", cmdline=("curl", "https://example.org/"), uid=1000)
    values: dict[str, Any] = {
        "process": process,
        "opened_ns": START_NS,
        "local": Endpoint("10.0.0.1", 40000 + number),
        "remote": Endpoint("93.184.216.34", 443),
        "role": Role.CLIENT,
        "sni": "example.org",
    }
    return Flow(number, **(values | changes))


class Wire:
    """Makes the items of one flow; each takes a millisecond."""

    def __init__(self, flow: Flow | None = None, start_ns: int = START_NS) -> None:
        self.flow = flow or make_flow()
        self.time_ns = start_ns
        self.offsets = [0, 0]

    def out(self, data: bytes) -> Data:
        return self._data(Direction.OUTBOUND, data)

    def into(self, data: bytes) -> Data:
        return self._data(Direction.INBOUND, data)

    def gap(self, direction: Direction, length: int, reason: GapReason = GapReason.RING_FULL) -> Gap:
        offset = self._advance(direction, length)
        return Gap(self.flow, direction, offset, length, reason, self.time_ns)

    def half_closed(self, direction: Direction) -> HalfClosed:
        self._advance(direction, 0)
        return HalfClosed(self.flow, direction, self.time_ns)

    def closed(self) -> FlowClosed:
        self._advance(Direction.OUTBOUND, 0)
        return FlowClosed(self.flow, self.time_ns)

    def _data(self, direction: Direction, data: bytes) -> Data:
        offset = self._advance(direction, len(data))
        return Data(self.flow, direction, offset, data, self.time_ns)

    def _advance(self, direction: Direction, length: int) -> int:
        self.time_ns += 1_000_000
        offset = self.offsets[direction]
        self.offsets[direction] += length
        return offset


def simple_exchange(body: bytes = b"hello", *headers: bytes, flow: Flow | None = None) -> list[Item]:
    """Return the items of GET / and its answer."""
    wire = Wire(flow)
    head = b"".join(b"%s\r\n" % header for header in (b"Content-Length: %d" % len(body), *headers))
    return [wire.out(GET), wire.into(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)]


# --- Driving an observer ---


def observe(
    steps: Iterable[Step], *, finish: bool = True, make: Callable[..., Observer] = Http1Connection, **options: Any
) -> list[AnyEvent]:
    """Return everything that a fresh connection says about these steps, times left out."""
    connection = make(**options)
    events: list[AnyEvent] = []
    for side, what in steps:
        if isinstance(what, int):
            events += connection.gap(side, what, GapReason.RING_FULL, 0)
        else:
            events += connection.feed(side, what, 0)
    if finish:
        events += connection.finish(REQUEST, 0)
        events += connection.finish(RESPONSE, 0)
    return events


def merged(events: Iterable[AnyEvent]) -> list[AnyEvent]:
    """Join neighbours that only the way the bytes were cut has separated."""
    result: list[AnyEvent] = []
    for event in events:
        before = result[-1] if result else None
        if before is None or _rest(before) != _rest(event):
            result.append(event)
            continue
        match before, event:
            case BodyData(), BodyData():
                result[-1] = replace(before, data=before.data + event.data)
            case TunnelData(), TunnelData():
                result[-1] = replace(before, data=before.data + event.data)
            case BodyGap(), BodyGap():
                result[-1] = replace(before, length=before.length + event.length)
            case TunnelGap(), TunnelGap():
                result[-1] = replace(before, length=before.length + event.length)
            case (Unparsed(), Unparsed()) if bool(before.data) == bool(event.data):
                result[-1] = replace(before, data=before.data + event.data, length=before.length + event.length)
            case _:
                result.append(event)
    return result


def _rest(event: AnyEvent) -> dict[str, Any]:
    """Return what must be equal for two events to be joined."""
    joined = {"data"} if isinstance(event, BodyData | TunnelData) else {"length"}
    if isinstance(event, Unparsed):
        joined = {"data", "length"}
    rest = {item.name: getattr(event, item.name) for item in fields(event) if item.name not in joined}
    return rest | {"kind": type(event)}


def cut(steps: Sequence[Step], size: int) -> list[Step]:
    """Return the same steps, no data longer than ``size`` bytes and no gap either."""
    result: list[Step] = []
    for side, what in steps:
        if isinstance(what, int):
            result += [(side, min(size, what - start)) for start in range(0, what, size)]
        else:
            result += [(side, what[start : start + size]) for start in range(0, len(what), size)]
    return result


def drips(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield the same steps byte by byte, in small pieces, and cut in two at every point of every step."""
    yield cut(steps, 1)
    yield cut(steps, 3)
    for index, (side, what) in enumerate(steps):
        for point in range(1, what if isinstance(what, int) else len(what)):
            parts: list[Step] = (
                [(side, point), (side, what - point)]
                if isinstance(what, int)
                else [(side, what[:point]), (side, what[point:])]
            )
            yield [*steps[:index], *parts, *steps[index + 1 :]]


def drip(steps: Sequence[Step]) -> list[AnyEvent]:
    """Return the merged events of ``steps``, after checking that every way to cut them gives the same."""
    whole = merged(observe(steps))
    for pieces in drips(steps):
        assert merged(observe(pieces)) == whole, pieces
    return whole


def accounted(events: Iterable[AnyEvent]) -> dict[Side, int]:
    """Return how many bytes of each side the events stand for."""
    lengths = {REQUEST: 0, RESPONSE: 0}
    for event in events:
        match event:
            case BodyData() | TunnelData():
                length = len(event.data)
            case RequestHead() | ResponseHead() | BodyGap() | TunnelGap() | Unparsed() | ControlFrame():
                length = event.length
            case MessageEnd():
                length = event.framing_length
            case _:
                length = 0
        lengths[event.side] += length
    return lengths


def passed(steps: Iterable[Step]) -> dict[Side, int]:
    """Return how many bytes of each side passed."""
    lengths = {REQUEST: 0, RESPONSE: 0}
    for side, what in steps:
        lengths[side] += what if isinstance(what, int) else len(what)
    return lengths


# --- What exchanges look like, in few words ---


@dataclass(slots=True)
class Seen:
    """One message as the events tell it."""

    head: RequestHead | ResponseHead | None = None
    body: bytes = b""
    missing: int = 0
    end: MessageEnd | None = None


def seen(events: Iterable[AnyEvent], side: Side) -> list[Seen]:
    """Return one side's messages, in order; interim responses have no end."""
    messages: list[Seen] = []
    for event in events:
        if event.side is not side:
            continue
        match event:
            case RequestHead() | ResponseHead():
                messages.append(Seen(event))
            case BodyData():
                messages[-1].body += event.data
            case BodyGap():
                messages[-1].missing += event.length
            case MessageEnd():
                if messages and messages[-1].head and messages[-1].head.exchange == event.exchange:
                    messages[-1].end = event
                else:
                    messages.append(Seen(end=event))
            case _:
                pass
    return messages
