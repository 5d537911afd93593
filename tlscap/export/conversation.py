"""What was said on one connection, for people to read from top to bottom (``tlscap inspect --follow``).

`conversation` yields lines.  Each block of them begins with a line that says whose turn it is and when::

    12 → 18:00:00.123     a request: its head as sent, then its body
    12 ← 18:00:00.150     its response

The arrow points from the client to the server, or back; the number is the exchange's id.  A message is shown when it is
over, as a whole; an interim response at once.  Bodies are decoded: text is shown as it is, JSON with line breaks,
anything else as the beginning of a hex dump.  Holes are shown where they are.  Of bodies and tunnels that consist of messages (WebSocket, server-sent events,
gRPC, ...) the messages are shown, each when it ended.  What is not HTTP is shown as it passed, as text or in hex.

Nothing from the network gets to the terminal as it is: `tlscap.export.table.visible`.  Memory is bounded: of each body and
message the beginning is kept.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import tzinfo
from typing import Final

from tlscap.export.hexdump import hexdump
from tlscap.export.jsonl import client_and_server
from tlscap.export.table import clock_time, human_duration, visible
from tlscap.http.bodies import Body, BodyDraft, Budget, is_text_type, text_of
from tlscap.http.content import ContentDecoder, ContentError
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
    TunnelData,
    TunnelEnd,
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.http.exchanges import Exchange, ExchangeBuilder, Message
from tlscap.http.grpc import grpc_status
from tlscap.http.messages import AppMessage, field_values
from tlscap.http.protobuf import describe_protobuf
from tlscap.model import Data, Flow, FlowClosed, Gap, Item, Role

TEXT_LIMIT: Final = 1 << 16
"""Bytes of one body, message or piece of a stream that are shown, unless told otherwise."""

HEX_LIMIT: Final = 256
"""Bytes of one that are shown in hex."""

_TOTAL_LIMIT: Final = 64 << 20  # of all bodies under way
_DEPTH_MAX: Final = 32  # of JSON that gets line breaks
_REMEMBERED: Final = 1000  # exchanges whose messages were shown instead of their body

_RESET: Final = "\x1b[0m"
_COLORS: Final = {"request": "\x1b[36m", "response": "\x1b[32m", "aside": "\x1b[2m", "problem": "\x1b[31m"}
_ARROWS: Final = {Side.REQUEST: "→", Side.RESPONSE: "←"}

# Frames that tell nothing about what was said.
_SILENT_KINDS: Final = frozenset({"preface", "DATA framing", "WINDOW_UPDATE", "PRIORITY", "PRIORITY_UPDATE"})

# What a valid JSON text consists of, blanks aside.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},:]|[^\s\[\]{},:"]++')
_OPENING: Final = frozenset("[{")
_CLOSING: Final = frozenset("]}")
_JSON_TYPE = re.compile(rb"application/json\b|.*[+/]json\b|text/json\b", re.IGNORECASE)


def find_flow(items: Iterable[Item], exchange_id: int) -> Flow | None:
    """Return the connection of an exchange, or ``None``: there is no such exchange."""
    finder = _Finder(exchange_id)
    builder = ExchangeBuilder(event_sink=finder)
    for item in items:
        builder.feed(item)
        if finder.found:
            return finder.found
    builder.finish(0)
    return finder.found


class _Finder:
    """Remembers the connection on which an exchange begins: an `EventSink`."""

    def __init__(self, exchange_id: int) -> None:
        self.found: Flow | None = None
        self._id = exchange_id

    def on_event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        if exchange and exchange.id == self._id:
            self.found = flow

    def on_unread(self, item: Data | Gap, side: Side) -> None:
        pass


def conversation(
    items: Iterable[Item],
    flow_id: int,
    *,
    exchange_id: int | None = None,
    heads_only: bool = False,
    as_hex: bool = False,
    color: bool = False,
    zone: tzinfo | None = None,
    limit: int = TEXT_LIMIT,
) -> Iterator[str]:
    """Yield what was said on a connection, line by line, from the items of the whole capture.

    With ``exchange_id`` nothing but this exchange is shown.  ``heads_only``: no bodies, no messages, no other bytes.
    ``as_hex``: all of these in hex, and not only their beginning.  Times are shown in ``zone``; ``None``: the machine's
    own.  ``limit`` is how many bytes of each body are shown.
    """
    page = _Page(exchange_id, heads_only=heads_only, as_hex=as_hex, color=color, zone=zone, limit=limit)
    watcher = _Watcher(flow_id, page)
    builder = ExchangeBuilder(message_sink=watcher, event_sink=watcher)
    time_ns = 0
    for item in items:
        time_ns = item.time_ns
        builder.feed(item)
        yield from page.taken()
        if isinstance(item, FlowClosed) and item.flow.id == flow_id:
            return
    builder.finish(time_ns)
    yield from page.taken()


class _Watcher:
    """Tells a page about one flow: an `EventSink` and a `MessageSink`."""

    def __init__(self, flow_id: int, page: _Page) -> None:
        self._flow_id = flow_id
        self._page = page

    def on_event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        if flow.id == self._flow_id:
            self._page.event(flow, exchange, event, has_messages=has_messages)

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        if exchange.flow.id == self._flow_id:
            self._page.message(exchange, message)

    def on_unread(self, item: Data | Gap, side: Side) -> None:
        if item.flow.id == self._flow_id:
            self._page.stream(item, side)


class _Page:
    """Formats what it is told as lines, which wait until they are `taken`."""

    def __init__(
        self,
        exchange_id: int | None,
        *,
        heads_only: bool,
        as_hex: bool,
        color: bool,
        zone: tzinfo | None,
        limit: int,
    ) -> None:
        self._only = exchange_id
        self._heads_only = heads_only
        self._as_hex = as_hex
        self._color = color
        self._zone = zone
        self._limit = limit
        self._budget = Budget(_TOTAL_LIMIT)
        self._lines: list[str] = []
        self._introduced = False
        self._drafts: dict[tuple[int, Side], BodyDraft] = {}
        self._shown_heads: OrderedDict[tuple[int, Side], None] = OrderedDict()  # of messages that consist of messages
        self._offsets = {Side.REQUEST: 0, Side.RESPONSE: 0}  # in what is no HTTP

    def taken(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    # --- What comes in ---

    def event(self, flow: Flow, exchange: Exchange | None, event: AnyEvent, *, has_messages: bool) -> None:
        """Take an event.  ``has_messages``: it is of a body that consists of messages."""
        if self._only is not None and (exchange is None or exchange.id != self._only):
            return
        match event:
            case ResponseHead() if event.interim and exchange:
                self._introduce(flow)
                self._title(exchange.id, event.side, event.started_ns)
                self._response_head(event)
            case RequestHead() | ResponseHead() if exchange and has_messages and not self._heads_only:
                self._head_at_once(exchange, event.side)
            case BodyData() if exchange and not self._heads_only:
                self._draft(exchange, event.side).add(event.data)
            case BodyGap() if exchange and not self._heads_only:
                self._draft(exchange, event.side).gap(event.length, event.reason)
            case MessageEnd() if exchange:
                self._introduce(flow)
                self._message_end(exchange, event)
            case Upgraded() if exchange and event.side is Side.RESPONSE:
                self._title(exchange.id, event.side, event.time_ns, f"{event.protocol} begins")
            case TunnelEnd() if exchange:
                self._title(exchange.id, event.side, event.time_ns, event.why or "closed")
            case TunnelData() if exchange and not exchange.message_counts:
                self._piece(exchange.id, event.side, event.time_ns, event.data)
            case TunnelGap() if exchange and not exchange.message_counts:
                self._missing_piece(exchange.id, event.side, event.time_ns, event.length, event.reason.value)
            case ControlFrame() if event.kind not in _SILENT_KINDS and not self._heads_only:
                self._introduce(flow)
                detail = f" {event.detail}" if event.detail else ""
                self._title(exchange.id if exchange else None, event.side, event.time_ns, event.kind + detail)
            case Unparsed() if event.why != BLANK_LINE:
                self._introduce(flow)
                self._unparsed(event)
            case _:
                pass

    def message(self, exchange: Exchange, message: AppMessage) -> None:
        """Take a message within a body or a tunnel."""
        if (self._only is None or exchange.id == self._only) and not self._heads_only:
            self._introduce(exchange.flow)
            self._app_message(exchange, message)

    def stream(self, item: Data | Gap, side: Side) -> None:
        """Take bytes that nothing understands."""
        if self._only is not None:
            return
        self._introduce(item.flow)
        if isinstance(item, Data):
            self._piece(None, side, item.time_ns, item.data)
        else:
            self._missing_piece(None, side, item.time_ns, item.length, item.reason.value)

    # --- HTTP ---

    def _draft(self, exchange: Exchange, side: Side) -> BodyDraft:
        key = exchange.id, side
        draft = self._drafts.get(key)
        if draft is None:
            message = exchange.message(side)
            encodings = message.encodings if message else ""
            limit = 0 if key in self._shown_heads else self._limit
            draft = self._drafts[key] = BodyDraft(encodings, limit=limit, budget=self._budget)
        return draft

    def _head_at_once(self, exchange: Exchange, side: Side) -> None:
        message = exchange.message(side)
        if message and _is_decodable(message.encodings):
            self._introduce(exchange.flow)
            self._head(exchange, side, message)
            self._shown_heads[exchange.id, side] = None
            if len(self._shown_heads) > _REMEMBERED:
                self._shown_heads.popitem(last=False)

    def _message_end(self, exchange: Exchange, event: MessageEnd) -> None:
        side = event.side
        draft = self._drafts.pop((exchange.id, side), None)
        body = draft.done(complete=event.complete) if draft else None
        message = exchange.message(side)
        if message is None:
            self._title(exchange.id, side, event.time_ns, event.why, role="problem")
            return
        was_shown = (exchange.id, side) in self._shown_heads
        if was_shown:
            del self._shown_heads[exchange.id, side]
            self._title(exchange.id, side, event.time_ns, "end" if event.complete else event.why)
            if body and body.note:
                self._add(f"! {body.note}", "problem")
        else:
            self._head(exchange, side, message)
            if body:
                self._add("")
                self._body(body, next(iter(message.values(b"content-type")), b""), side.value)
        self._fields(message.trailers, side.value)
        if side is Side.RESPONSE and (status := grpc_status(message.headers, message.trailers)):
            self._add(f"gRPC status: {status.name}{f': {status.message}' if status.message else ''}", "aside")
        if not (event.complete or was_shown):
            self._add(f"! {event.why}", "problem")

    def _head(self, exchange: Exchange, side: Side, message: Message[RequestHead] | Message[ResponseHead]) -> None:
        head = message.head
        took = ""
        if isinstance(head, ResponseHead) and exchange.duration_ns is not None:
            took = f"after {human_duration(exchange.duration_ns)}"
        self._title(exchange.id, side, message.first_ns, took)
        if isinstance(head, RequestHead):
            self._request_head(head)
        else:
            self._response_head(head)

    def _request_head(self, head: RequestHead) -> None:
        if head.pushed:
            self._add("promised by the server", "aside")
        if head.version == b"HTTP/2":
            names = (b":method", b":scheme", b":authority", b":path", b":protocol")
            values = (head.method, head.scheme, head.authority, head.target, head.protocol)
            pseudo = tuple((name, value) for name, value in zip(names, values, strict=True) if value)
            self._fields(pseudo + head.headers, "request")
        else:
            version = b"" if head.version == b"HTTP/0.9" else b" " + head.version
            self._add(_text(head.method + b" " + head.target + version), "request")
            self._fields(head.headers, "request")
        self._notes(head.notes)

    def _response_head(self, head: ResponseHead) -> None:
        if head.version == b"HTTP/2":
            self._add(f":status: {head.status}", "response")
        elif head.version != b"HTTP/0.9":
            self._add(f"{_text(head.version)} {head.status:03d} {_text(head.reason)}".rstrip(), "response")
        self._fields(head.headers, "response")
        self._notes(head.notes)

    def _fields(self, fields: tuple[Header, ...], role: str) -> None:
        for name, value in fields:
            self._add(_text(name + b": " + value), role)

    def _notes(self, notes: Iterable[str]) -> None:
        for note in notes:
            self._add(f"! {note}", "problem")

    # --- Contents ---

    def _body(self, body: Body, content_type: bytes, role: str) -> None:
        if body.note:
            self._add(f"! {body.note}{'; as transferred:' if body.encoded else ''}", "problem")
        content_type = b"" if body.encoded else content_type
        whole = not body.gaps and not body.truncated
        start = 0
        for gap in body.gaps:
            if gap.offset > len(body.data):
                break
            self._content(body.data[start : gap.offset], content_type, role, start, whole=False)
            self._add(f"… {gap.length} bytes missing ({gap.reason.value}) …", "problem")
            start = gap.offset
        beyond = body.size - len(body.data)
        self._content(body.data[start:], content_type, role, start, whole=whole, beyond=beyond)
        if missing := sum(gap.length for gap in body.gaps if gap.offset > len(body.data)):
            self._add(f"… {missing} bytes missing later on …", "problem")

    def _content(
        self, data: bytes, content_type: bytes, role: str, offset: int = 0, *, whole: bool, beyond: int = 0
    ) -> None:
        """Show bytes of a content as what they are.

        ``whole``: they are all of it.  ``offset`` is where they begin in it; ``beyond`` is how many more there are.
        """
        shown = len(data)
        text = None if self._as_hex else text_of(data, content_type, cut=not whole)
        if not (whole or beyond or self._as_hex) and (text is not None or is_text_type(content_type)):
            text = _text_at_hole(data, text)
        if text is None:
            shown = shown if self._as_hex else min(shown, HEX_LIMIT)
            lines: Iterable[str] = hexdump(data[:shown], offset)
        else:
            lines = _text_lines(text, pretty=whole and (_JSON_TYPE.match(content_type) or text[:1] in _OPENING))
        for line in lines:
            self._add(line, role)
        total = len(data) + beyond
        if shown < total:
            self._add(f"… {total - shown} more of {total} bytes", "aside")

    def _app_message(self, exchange: Exchange, message: AppMessage) -> None:
        side = message.side
        self._title(exchange.id, side, message.time_ns, _message_title(message))
        self._fields(message.headers, side.value)
        data = message.data[: self._limit]
        whole = message.complete and len(data) == len(message.data)
        shown = None
        if _is_grpc(exchange, message) and not self._as_hex:
            shown = describe_protobuf(data, limit=self._limit, cut=not whole)
        if shown:
            for line in shown.split("\n"):
                self._add(line, side.value)
        else:
            content_type = next(iter(field_values(message.headers, b"content-type")), b"")
            content_type = content_type or _TYPES.get(message.kind, b"")
            self._content(data, content_type, side.value, whole=whole, beyond=len(message.data) - len(data))
        if message.missing:
            self._add(f"… {message.missing} bytes missing …", "problem")
        self._notes(message.notes)

    # --- What is no HTTP ---

    def _unparsed(self, event: Unparsed) -> None:
        if event.data:
            self._piece(None, event.side, event.time_ns, event.data)
        else:
            self._missing_piece(None, event.side, event.time_ns, event.length, event.why.removeprefix("missing: "))

    def _piece(self, exchange_id: int | None, side: Side, time_ns: int, data: bytes) -> None:
        offset = self._advance(exchange_id, side, len(data))
        if self._heads_only:
            return
        self._title(exchange_id, side, time_ns, f"{len(data)} bytes")
        shown = data[: self._limit]
        beyond = len(data) - len(shown)
        self._content(shown, b"", side.value, offset, whole=not beyond, beyond=beyond)

    def _missing_piece(self, exchange_id: int | None, side: Side, time_ns: int, length: int, reason: str) -> None:
        self._advance(exchange_id, side, length)
        if not self._heads_only:
            self._title(exchange_id, side, time_ns, f"… {length} bytes missing ({reason}) …", role="problem")

    def _advance(self, exchange_id: int | None, side: Side, length: int) -> int:
        """Return where the next bytes stand in what is no HTTP on this side; tunnels count from where each piece begins."""
        if exchange_id is not None:
            return 0
        self._offsets[side] += length
        return self._offsets[side] - length

    # --- Lines ---

    def _introduce(self, flow: Flow) -> None:
        """Say once whose connection it is."""
        if self._introduced:
            return
        self._introduced = True
        client, server = client_and_server(flow)
        if flow.role is Role.UNKNOWN:
            client, server = flow.local, flow.remote
        names = ", ".join(name for name in (flow.sni, flow.alpn) if name)
        ends = f"{client or 'unknown'} → {server or 'unknown'}"
        whose = f"connection {flow.id} of {flow.process.label}: {ends}"
        self._add(f"{whose}{f' ({names})' if names else ''}", "aside")

    def _title(self, number: int | None, side: Side, time_ns: int, text: str = "", *, role: str = "aside") -> None:
        self._add("")
        moment = clock_time(time_ns, self._zone)
        self._add(f"{'-' if number is None else number} {_ARROWS[side]} {moment}  {text}".rstrip(), role)

    def _add(self, line: str, role: str = "") -> None:
        line = visible(line)
        self._lines.append(f"{_COLORS[role]}{line}{_RESET}" if self._color and role and line else line)


_TYPES: Final = {"text": b"text/plain", "close": b"text/plain", "event": b"text/plain", "comment": b"text/plain"}
"""What messages of these kinds are made of."""


def _message_title(message: AppMessage) -> str:
    words = [message.kind]
    if message.kind == "close":
        words.append(message.name)
    elif message.name not in ("", "message"):  # an event's type, when none is given
        words.append(f'"{message.name}"')
    if message.filename:
        words.append(f'file "{message.filename}"')
    if message.size:
        words.append(f"{message.size} bytes")
    return " ".join(filter(None, words))


def _is_grpc(exchange: Exchange, message: AppMessage) -> bool:
    http = exchange.message(message.side)
    types = http.values(b"content-type") if http else []
    return message.kind == "message" and bool(types) and b"json" not in types[0].lower()


def _is_decodable(encodings: str) -> bool:
    try:
        ContentDecoder(encodings)
    except ContentError:
        return False
    return True


def _text(data: bytes) -> str:
    """Return a field as text: UTF-8, where it is that; other bytes as escapes, as nobody knows their charset."""
    return data.decode("utf-8", "backslashreplace")


def _text_at_hole(data: bytes, text: str | None) -> str:
    """Return the text of bytes next to a hole, which may cut characters in two."""
    parts = data.decode("utf-8", "replace")
    return parts if text is None or parts.startswith(text) else text  # else it is no UTF-8


def _text_lines(text: str, *, pretty: object) -> Iterable[str]:
    """Return the lines of a text; ``pretty``: with line breaks if it is JSON."""
    lines = _pretty_json(text) if pretty else None
    if lines is not None:
        return lines
    return (line.removesuffix("\r").expandtabs() for line in text.removesuffix("\n").split("\n")) if text else ()


def _pretty_json(text: str) -> Iterator[str] | None:
    """Return the lines of a JSON text with line breaks, every token as it stands in the text; ``None``: it is none."""
    try:
        # Numbers are not looked at, however long they are.
        json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    depth = deepest = 0
    for match in _JSON_TOKEN.finditer(text):
        depth += (match[0] in _OPENING) - (match[0] in _CLOSING)
        deepest = max(deepest, depth)
    return _json_lines(text) if deepest <= _DEPTH_MAX else None


def _json_lines(text: str) -> Iterator[str]:
    line = before = ""
    depth = 0
    for match in _JSON_TOKEN.finditer(text):
        word = match[0]
        depth -= word in _CLOSING
        is_empty = word in _CLOSING and before in _OPENING
        if (before in _OPENING or before == "," or word in _CLOSING) and not is_empty:
            yield line
            line = "  " * depth
        line += ": " if word == ":" else word
        depth += word in _OPENING
        before = word
    yield line
