"""Finds what scrubbing would have taken out, in everything that a capture holds: also what is no HTTP, and what has no request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tlscap.capture import Capture, open_capture
from tlscap.http.events import AnyEvent, BodyData, ResponseHead, Side, TunnelData, Unparsed
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Data, Flow, Gap
from tlscap.replay.recording import MEMORY_LIMIT, RecordedExchange, load
from tlscap.scrub.edits import Edit
from tlscap.scrub.finder import Finder, Place
from tlscap.scrub.rules import Rules
from tlscap.scrub.walk import Walker

_SHOWN: Final = 3
_LONG: Final = 7  # characters of a value from which so many are shown: of a shorter one they would be most of it
_RAW_LIMIT: Final = 64 << 20  # bytes that are no HTTP, of a whole capture, that are looked at together


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A value that seems to be a secret."""

    exchange: int
    """0: it is in none."""
    name: str
    """Of the exchange, or of the connection: for people."""
    place: str
    rule: str
    shown: str
    """The beginning of the value."""
    length: int

    def to_dict(self) -> dict[str, Any]:
        """Return what ``tlscap scrub --check --json`` prints."""
        return {
            "exchange": self.exchange or None,
            "name": self.name,
            "place": self.place,
            "rule": self.rule,
            "value": self.shown,
            "length": self.length,
        }


class Checker:
    """Looks for secrets."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._finder = Finder(rules or Rules())
        self._found: list[Suspicion] = []
        self._exchange = 0
        self._name = ""
        self._values: set[str] = set()
        """What was found in this exchange: it may stand in its path, too."""
        self.unopened = 0
        """Bodies and messages that could not be looked into."""

    def file(self, path: str, *, memory: int = MEMORY_LIMIT) -> list[Suspicion]:
        """Return what seems secret in a capture.  Raises as `tlscap.replay.recording.load` does."""
        found = self.exchanges(load(path, memory=memory).exchanges)
        self._found = []
        with open_capture(path) as capture:
            for name, text, place in _others(capture):
                self._exchange, self._name = 0, name
                self._look(text, place)
        return found + self._found

    def exchanges(self, exchanges: Sequence[RecordedExchange]) -> list[Suspicion]:
        """Return what seems secret in exchanges."""
        self._found = []
        walker = Walker(self._look)
        for exchange in exchanges:
            self._exchange, self._name = exchange.id, ""
            self._values.clear()
            begin = len(self._found)
            walker.exchange(exchange)
            name = _name(exchange, self._found[begin:], self._values)
            self._found[begin:] = [replace(one, name=name) for one in self._found[begin:]]
        self.unopened += sum(walker.withheld.values())
        return self._found

    def _look(self, text: bytes, place: Place) -> Sequence[Edit]:
        for one in self._finder.find(text, place):
            value = one.value.decode("utf-8", "replace")
            self._values.add(one.value.decode("latin-1"))
            shown = value[: _SHOWN if len(value) >= _LONG else len(value) // 4] + "…"
            suspicion = Suspicion(self._exchange, self._name, str(place), one.rule, shown, len(one.value))
            if suspicion not in self._found[-50:]:
                self._found.append(suspicion)
        return ()


def _name(exchange: RecordedExchange, found: Sequence[Suspicion], values: Iterable[str]) -> str:
    """Return what an exchange is called without its query, and without its path if that has a secret in it."""
    method = exchange.request.method.decode("latin-1")
    url = exchange.url.partition("?")[0]
    if any(one.place == "request target" for one in found) or any(value in url for value in values):
        return f"{method} {exchange.hostname}"
    return f"{method} {url}"


def _others(capture: Capture) -> list[tuple[str, bytes, Place]]:
    """Return what a capture holds beside exchanges with a request, with a name for people."""
    rest = _Rest()
    builder = ExchangeBuilder(event_sink=rest)
    time_ns = 0
    for item in capture.items():
        time_ns = item.time_ns
        rest.flows[item.flow] = None
        builder.feed(item)
    builder.finish(time_ns)
    texts = [(name, bytes(text), Place(place)) for (name, place), text in rest.texts.items()]
    start = capture.table.start if capture.table else {}
    texts.append(
        ("the recording", "\n".join(f"{key}: {value}" for key, value in start.items()).encode(), Place("first record"))
    )
    for process in {flow.process: None for flow in rest.flows}:
        line = "\0".join(process.cmdline).encode("utf-8", "surrogatepass")
        texts.append((process.label, line, Place("command line")))
    return texts


class _Rest:
    """Collects what no request leads to."""

    def __init__(self) -> None:
        self.flows: dict[Flow, None] = {}
        self.texts: dict[tuple[str, str], bytearray] = {}
        self._left = _RAW_LIMIT

    def on_event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        """See `tlscap.http.exchanges.EventSink`."""
        match event:
            case Unparsed() if event.data:
                self._add(flow, f"bytes that are no HTTP ({event.side.value})", event.data)
            case TunnelData() if exchange and exchange.upgraded_to != "websocket":
                self._add(flow, f"tunnel ({event.side.value})", event.data)
            case BodyData() if exchange and exchange.request is None:
                self._add(flow, "body of an answer without its request", event.data)
            case ResponseHead() if exchange and exchange.request is None:
                head = b"".join(b"%s: %s\r\n" % header for header in event.headers)
                self._add(flow, "head of an answer without its request", head)

    def on_unread(self, item: Data | Gap, side: Side) -> None:
        """See `tlscap.http.exchanges.EventSink`."""
        if isinstance(item, Data):
            self._add(item.flow, f"bytes that are no HTTP ({side.value})", item.data)

    def _add(self, flow: Flow, place: str, data: bytes) -> None:
        data = data[: self._left]
        self._left -= len(data)
        self.texts.setdefault((f"connection {flow.id}", place), bytearray()).extend(data)
