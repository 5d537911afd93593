#!/usr/bin/env python3
"""Fuzzes what reads untrusted bytes, guided by coverage (atheris, not among the test dependencies: pip install atheris).

    fuzz.py [TARGET] [libFuzzer options, such as -max_total_time=3600 CORPUS]

Targets: ``exchanges`` (both observers, all message decoders, content codings: any bytes, splits and gaps), ``sidecar``,
``pcapng``, ``filter``.  Without one, the first.

What is looked for: any exception but those that are documented, time beyond libFuzzer's -timeout, memory beyond
its -rss_limit_mb, and bytes that the observers do not account for.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["tlscap", "hpack"]):
    from tlscap.decode import decode
    from tlscap.errors import FormatError
    from tlscap.filters import FilterError, compile_filter
    from tlscap.flows import FlowTable
    from tlscap.http.bodies import BodyCollector
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
    from tlscap.http.exchanges import Exchange, ExchangeBuilder
    from tlscap.http.http1 import Http1Connection
    from tlscap.http.http2 import Http2Connection
    from tlscap.http.messages import AppMessage
    from tlscap.model import Data, Direction, Flow, FlowClosed, Gap, GapReason, HalfClosed, Item, Process, Role
    from tlscap.pcapng_reader import read_items
    from tlscap.sidecar import SidecarReader


class Messages:
    """A sink that looks at nothing."""

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        assert message.length >= 0


def accounted(event: AnyEvent) -> int:
    """Return how many bytes of its side an event stands for."""
    match event:
        case RequestHead() | ResponseHead() | BodyGap() | TunnelGap() | Unparsed() | ControlFrame():
            return event.length
        case BodyData() | TunnelData():
            return len(event.data)
        case MessageEnd():
            return event.framing_length
        case _:
            return 0


def operations(data: bytes) -> list[tuple[int, bytes | int]]:
    """Cut the input: a byte says what is next (which side, data, gap or end) and how long it is; the rest is data."""
    provider = atheris.FuzzedDataProvider(data)
    found: list[tuple[int, bytes | int]] = []
    while provider.remaining_bytes() and len(found) < 64:
        code = provider.ConsumeIntInRange(0, 15)
        if code < 10:
            found.append((code & 1, provider.ConsumeBytes(provider.ConsumeIntInRange(1, 400))))
        elif code < 14:
            found.append((code & 1, provider.ConsumeIntInRange(1, 70_000)))
        else:
            found.append((code & 1, 0))
    return found


def fuzz_exchanges(data: bytes) -> None:
    """Both observers alone, with their accounting, and everything above them together."""
    if len(data) < 3:
        return
    steps = operations(data[2:])
    for connection in (Http1Connection(), Http2Connection()):
        fed, said = dict.fromkeys(Side, 0), dict.fromkeys(Side, 0)
        ended: set[Side] = set()
        for number, (which, what) in enumerate(steps):
            side = Side.RESPONSE if which else Side.REQUEST
            if side in ended:
                continue
            if isinstance(what, bytes):
                events = connection.feed(side, what, number)
                fed[side] += len(what)
            elif what:
                events = connection.gap(side, what, GapReason.RING_FULL, number)
                fed[side] += what
            else:
                ended.add(side)
                events = connection.finish(side, number)
            for event in events:
                said[event.side] += accounted(event)
        for side in Side:
            if side not in ended:
                for event in connection.finish(side, 99):
                    said[event.side] += accounted(event)
        assert fed == said, (fed, said)
    _build(data[0], data[1], steps)


def _build(role: int, alpn: int, steps: list[tuple[int, bytes | int]]) -> None:
    names = ("", "h2", "http/1.1", "mqtt")
    flow = Flow(1, Process(1), 0, role=Role(role % 3), alpn=names[alpn % 4])
    bodies = BodyCollector(limit=4096)
    builder = ExchangeBuilder(bodies, Messages())
    offsets = [0, 0]
    closed: set[Direction] = set()
    done: list[Exchange] = []
    for number, (which, what) in enumerate(steps):
        direction = Direction(which)
        if direction in closed:
            continue
        item: Item
        if isinstance(what, bytes):
            item = Data(flow, direction, offsets[which], what, number)
            offsets[which] += len(what)
        elif what:
            item = Gap(flow, direction, offsets[which], what, GapReason.SNAPLEN, number)
            offsets[which] += what
        else:
            item = HalfClosed(flow, direction, number)
            closed.add(direction)
        done += builder.feed(item)
    done += builder.feed(FlowClosed(flow, 99))
    done += builder.finish(100)
    assert len(done) == builder.exchange_count
    for exchange in done:
        for side in Side:
            bodies.take(exchange, side)


def fuzz_sidecar(data: bytes) -> None:
    """A whole file, down to its items."""
    table = FlowTable()
    try:
        for frame in SidecarReader(io.BytesIO(data)).frames():
            for event in decode(frame):
                list(table.feed(event))
    except FormatError:
        pass


def fuzz_pcapng(data: bytes) -> None:
    """The same for a pcapng."""
    try:
        for _ in read_items(io.BytesIO(data)):
            pass
    except FormatError:
        pass


def fuzz_filter(data: bytes) -> None:
    """Any text is a filter or a clear error."""
    with contextlib.suppress(FilterError):
        compile_filter(data.decode("utf-8", "replace"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "exchanges": fuzz_exchanges,
    "sidecar": fuzz_sidecar,
    "pcapng": fuzz_pcapng,
    "filter": fuzz_filter,
}


def main() -> None:
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in TARGETS else next(iter(TARGETS))
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
