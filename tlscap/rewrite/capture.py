"""Exchanges to a sidecar: connections with their exchanges, interleaved as their times say."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tlscap import decode
from tlscap.model import Flow
from tlscap.replay.recording import RecordedExchange
from tlscap.rewrite.http1 import Http1Writer
from tlscap.rewrite.http2 import Http2Writer
from tlscap.rewrite.records import FlowRecords, Processes
from tlscap.rewrite.steps import Step
from tlscap.sidecar import FRAME_SIZE, SidecarWriter, Sink

TOOL: Final = "tlscap"
"""Without a version: what is written depends on the exchanges alone."""


@dataclass(slots=True)
class Written:
    """What became of the exchanges that were to be written."""

    exchanges: int = 0
    flows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Exchanges that can't be written, by the reason in words for people."""
    inflated: int = 0
    """WebSockets whose messages were compressed and no longer are; their handshakes don't say so either."""


def write_capture(
    exchanges: Sequence[RecordedExchange], stream: Sink, *, origin: str, level: int = 9, **facts: Any
) -> Written:
    """Write a sidecar.

    ``exchanges`` are in the order in which they began, as a `Recording` has them, and are numbered anew from 1.  ``origin`` goes
    into the file's first record and says what was done to the data (``scrubbed``, ``fixture``, ``imported from a HAR file``),
    with other ``facts`` that JSON can tell.  ``level`` is zstd's.

    A tunnel that is no WebSocket can't be written: its bytes are not in a recording.  Raises `OSError`, and `ValueError` for
    a connection that speaks HTTP/1 and HTTP/2 without an upgrade.
    """
    written = Written()
    kept = []
    for exchange in exchanges:
        if exchange.upgraded_to not in ("", "websocket", "h2c"):
            written.left_out[f"tunnels of {exchange.upgraded_to}"] += 1
        elif exchange.upgraded_to == "h2c" and not exchange.response:
            written.left_out["requests for h2c without an answer"] += 1
        else:
            kept.append(exchange)
            answered = exchange.response.values(b"sec-websocket-extensions") if exchange.response else []
            written.inflated += exchange.upgraded_to == "websocket" and any(
                b"deflate" in one.lower() for one in answered
            )
    flows: dict[Flow, list[RecordedExchange]] = {}
    for exchange in kept:
        flows.setdefault(exchange.flow, []).append(exchange)
    written.exchanges, written.flows = len(kept), len(flows)
    plan = _Plan(kept, flows)
    writer = SidecarWriter(stream, level=level)
    records: list[bytes] = [_start(plan.begins_ns, origin, facts)]
    size = 0
    for record in plan.records():
        records.append(record)
        size += len(record)
        if size >= FRAME_SIZE:
            writer.write(b"".join(records))
            records, size = [], 0
    records.append(decode.note(decode.RECORD_END, {"counters": {}, "stopped": origin}, time_ns=plan.last_ns))
    writer.write(b"".join(records))
    writer.close()
    return written


def _start(time_ns: int, origin: str, facts: dict[str, Any]) -> bytes:
    # The monotonic clock of such a file is the wall clock.
    body = {"tool": TOOL, "origin": origin, **facts, "framing": "auto", "snaplen": 0}
    return decode.note(decode.RECORD_START, body | {"wall_ns": time_ns, "monotonic_ns": time_ns}, time_ns=time_ns)


_Write = Callable[[], Iterator[bytes]]


class _Plan:
    """All steps of all connections, and what each waits for."""

    def __init__(self, exchanges: list[RecordedExchange], flows: dict[Flow, list[RecordedExchange]]) -> None:
        self._processes = Processes()
        self._writes: dict[Step, _Write] = {}
        self.last_ns = 0
        known: Step | None = None
        """The step with which the latest question became known: they keep their order over all connections."""
        talks = {flow: _Talk(flow, of_flow, number) for number, (flow, of_flow) in enumerate(flows.items(), 1)}
        for exchange in exchanges:
            known = talks[exchange.flow].add(exchange, known)
        for talk in talks.values():
            self._add(talk)
        self.begins_ns = min((talk.records.opened_ns for talk in talks.values()), default=0)

    def _add(self, talk: _Talk) -> None:
        records, flow, steps = talk.records, talk.flow, talk.steps
        first = min((step.time_ns for step in steps), default=flow.opened_ns)
        records.opened_ns = min(flow.opened_ns or first, first)
        opening = Step(records.opened_ns, steps[0].side, ())

        def open_flow() -> Iterator[bytes]:
            yield from self._processes.introduce(flow.process, records.opened_ns)
            yield from records.opening()

        self._writes[opening] = open_flow
        for step in steps:
            step.after.append(opening)
            self._writes[step] = _bound(records, step)
        last = max(step.time_ns for step in steps)
        closing = Step(flow.closed_ns or last, steps[0].side, (), list(steps))
        self._writes[closing] = lambda: iter([records.closing(closing.time_ns)])
        self.last_ns = max(self.last_ns, closing.time_ns)

    def records(self) -> Iterator[bytes]:
        """Yield the records: by time, but nothing before what it waits for."""
        waits = {step: len(step.after) for step in self._writes}
        followers: dict[Step, list[Step]] = {}
        for step in self._writes:
            for earlier in step.after:
                followers.setdefault(earlier, []).append(step)
        numbers = {step: number for number, step in enumerate(self._writes)}
        ready = [(step.time_ns, numbers[step], step) for step, count in waits.items() if not count]
        heapq.heapify(ready)
        while ready:
            _, _, step = heapq.heappop(ready)
            yield from self._writes[step]()
            for follower in followers.pop(step, ()):
                waits[follower] -= 1
                if not waits[follower]:
                    heapq.heappush(ready, (follower.time_ns, numbers[follower], follower))


def _bound(records: FlowRecords, step: Step) -> _Write:
    return lambda: records.passing(step)


class _Talk:
    """One connection while it is made of its exchanges."""

    def __init__(self, flow: Flow, exchanges: list[RecordedExchange], number: int) -> None:
        self.flow = flow
        self.steps: list[Step] = []
        self.records = FlowRecords(flow, number, flow.opened_ns)
        self._exchanges = exchanges
        self._http1 = Http1Writer(self.steps)
        self._http2: Http2Writer | None = None

    def add(self, exchange: RecordedExchange, after: Step | None) -> Step:
        """Add the next exchange; return the step with which its question became known."""
        if exchange.request.version == b"HTTP/2":
            if self._http2 is None:
                if self.steps:
                    raise ValueError("a connection speaks HTTP/1 and HTTP/2")
                self._http2 = Http2Writer(self.steps, self._exchanges)
            return self._http2.add(exchange, after=after)
        if self._http2:
            raise ValueError("a connection speaks HTTP/2 and HTTP/1")
        asked = self._http1.add(exchange, last=exchange is self._exchanges[-1], after=after)
        if exchange.upgraded_to == "h2c":
            self._http2 = Http2Writer(self.steps, self._exchanges, self._http1.lanes)
            self._http2.answer_upgrade(exchange, asked)
        return asked
