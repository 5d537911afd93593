"""Fixtures: captures that are kept beside tests, and reviewed like code.

`normalised` takes out what would differ in the next recording of the same thing and means nothing: clock times, process numbers,
ports, addresses in memory.  `summary` is the text that people compare: a block for each exchange.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from tlscap.export.table import visible
from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import Header, Side
from tlscap.http.messages import parameters
from tlscap.http.protobuf import describe_protobuf
from tlscap.model import Endpoint, Flow, Process, Role, TupleSource
from tlscap.replay.recording import (
    DECODED_LIMIT,
    Interim,
    RecordedExchange,
    RecordedMessage,
    TunnelMessage,
)

EPOCH_NS: Final = 1_577_836_800_000_000_000
"""When every fixture begins: 2020-01-01T00:00:00Z."""

STEP_NS: Final = 1_000_000
"""What times are rounded to: milliseconds."""

_CLIENT: Final = "192.0.2.1"  # RFC 5737
_SERVERS: Final = "198.51.100."
_FIRST_PORT: Final = 49152  # IANA's dynamic ports
_HTTPS: Final = 443

_SUFFIX: Final = ".zst"
_LINES: Final = 40
_WIDTH: Final = 200
_BODY_LIMIT: Final = 1 << 20  # of a body that is shown as text
_DULL: Final = frozenset(
    (b"host", b"date", b"connection", b"keep-alive", b"server", b"user-agent", b"accept-encoding", b"accept-language",
     b"content-length", b"transfer-encoding", b"vary", b"age", b"via", b"alt-svc", b"te", b"x-powered-by")
)  # fmt: skip
"""Fields that a summary leaves out: framing, and what says nothing of this exchange."""
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def summary_path(path: str) -> str:
    """Return where the summary of a fixture stands: ``x.tlscap.txt`` beside ``x.tlscap.zst``."""
    return path.removesuffix(_SUFFIX) + ".txt"


# --- What differs from recording to recording ---


def normalised(
    exchanges: Sequence[RecordedExchange], *, keep_times: bool = False, begin_ns: int = EPOCH_NS
) -> list[RecordedExchange]:
    """Return exchanges as a fixture has them.

    Times count from ``begin_ns`` in whole milliseconds (not with ``keep_times``), processes from 1, ports from 49152; addresses are
    those of documentation, a server's port stays.  Of a process its name stays.
    """
    clock = _Clock(exchanges, begin_ns, keep_times=keep_times)
    cast = _Cast(clock)
    return [_exchange(number, exchange, cast, clock) for number, exchange in enumerate(exchanges, 1)]


class _Clock:
    """Times as a fixture has them."""

    def __init__(self, exchanges: Sequence[RecordedExchange], begin_ns: int, *, keep_times: bool) -> None:
        begins = [one.request.started_ns for one in exchanges]
        begins += [time for one in exchanges for time in (one.flow.opened_ns, one.flow.handshake_start_ns) if time]
        self._first = min(begins, default=0)
        self._begin = begin_ns
        self._keep = keep_times

    def __call__(self, time_ns: int) -> int:
        if self._keep or not time_ns:
            return time_ns
        return self._begin + max(0, time_ns - self._first) // STEP_NS * STEP_NS


class _Cast:
    """Who took part, numbered in the order of their appearance."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._processes: dict[Process, Process] = {}
        self._flows: dict[Flow, Flow] = {}
        self._servers: dict[str, str] = {}

    def flow(self, flow: Flow) -> Flow:
        """Return what a fixture says of a connection."""
        if flow not in self._flows:
            number = len(self._flows)
            client = Endpoint(_CLIENT, _FIRST_PORT + number % (65536 - _FIRST_PORT))
            is_server = flow.role is Role.SERVER
            server = self._server(flow.local if is_server else flow.remote)
            self._flows[flow] = replace(
                flow,
                id=number + 1,
                process=self._process(flow.process),
                opened_ns=self._clock(flow.opened_ns),
                local=server if is_server else client,
                remote=client if is_server else server,
                tuple_source=TupleSource.IMPORTED,
                handshake_start_ns=self._clock(flow.handshake_start_ns),
                handshake_end_ns=self._clock(flow.handshake_end_ns),
                closed_ns=self._clock(flow.closed_ns),
                srtt_us=-1,
                ssl=0,
            )
        return self._flows[flow]

    def _server(self, end: Endpoint | None) -> Endpoint:
        address = end.address if end else ""
        number = len(self._servers) % 254 + 1
        return Endpoint(self._servers.setdefault(address, f"{_SERVERS}{number}"), end.port if end else _HTTPS)

    def _process(self, process: Process) -> Process:
        if process not in self._processes:
            number = len(self._processes) + 1
            self._processes[process] = Process(pid=number, start_ns=number, comm=process.comm)
        return self._processes[process]


def _exchange(number: int, exchange: RecordedExchange, cast: _Cast, clock: _Clock) -> RecordedExchange:
    response = exchange.response
    if response:
        interim = [one._replace(time_ns=clock(one.time_ns)) for one in response.interim]
        response = replace(response, interim=interim, **_timed(response, clock))
    return replace(
        exchange,
        id=number,
        flow=cast.flow(exchange.flow),
        request=replace(exchange.request, **_timed(exchange.request, clock)),
        response=response,
        messages=[one._replace(time_ns=clock(one.time_ns)) for one in exchange.messages],
    )


def _timed(message: RecordedMessage, clock: _Clock) -> dict[str, Any]:
    return {
        "started_ns": clock(message.started_ns),
        "ended_ns": clock(message.ended_ns),
        "pieces": [piece._replace(time_ns=clock(piece.time_ns)) for piece in message.pieces],
        "holes": [hole._replace(time_ns=clock(hole.time_ns)) for hole in message.holes],
    }


# --- What people read ---


def summary(exchanges: Sequence[RecordedExchange]) -> str:
    """Return the exchanges as a text that reads well in a diff.

    What is said of one exchange does not depend on the others, but for its number and its time.
    """
    lines = list(_summary(exchanges))
    return "".join(f"{visible(line).rstrip()}\n" for line in lines)


def _summary(exchanges: Sequence[RecordedExchange]) -> Iterator[str]:
    flows: dict[Flow, int] = {}
    begin = min((one.request.started_ns for one in exchanges), default=0)
    for exchange in exchanges:
        flows.setdefault(exchange.flow, len(flows) + 1)
    yield f"# {len(exchanges)} exchange{'s' * (len(exchanges) != 1)} on {len(flows)} connection{'s' * (len(flows) != 1)}"
    for number, exchange in enumerate(exchanges, 1):
        yield ""
        yield ""
        request, response = exchange.request, exchange.response
        yield f"## {number}. {exchange.name}"
        facts = [f"connection {flows[exchange.flow]}", exchange.protocol, exchange.flow.process.comm]
        yield f"{', '.join(fact for fact in facts if fact)}, {_time(request.started_ns - begin)}"
        for problem in exchange.problems:
            yield f"! {problem}"
        yield ""
        yield f"> {request.method.decode('latin-1')} {request.target.decode('latin-1')}"
        yield from _message(">", request)
        if response is None:
            yield ""
            yield "< no response"
            continue
        for interim in response.interim:
            yield from _interim(interim, begin)
        yield ""
        reason = f" {response.reason.decode('latin-1')}" if response.reason else ""
        yield f"< {response.status}{reason}  {_time(response.started_ns - begin)}"
        yield from _message("<", response)
        if exchange.messages:
            yield ""
        for message in exchange.messages:
            yield from _tunnel_message(message, begin)


def _time(time_ns: int) -> str:
    return f"+{time_ns / 1e9:.3f} s"


def _interim(interim: Interim, begin: int) -> Iterator[str]:
    yield ""
    yield f"< {interim.status} {interim.reason.decode('latin-1')}  {_time(interim.time_ns - begin)}"
    yield from _fields("<", interim.headers)


def _fields(mark: str, headers: Sequence[Header]) -> Iterator[str]:
    for name, value in headers:
        if name.lower() not in _DULL:
            yield f"{mark} {name.decode('latin-1').lower()}: {_cut(value.decode('utf-8', 'backslashreplace'))}"


def _message(mark: str, message: RecordedMessage) -> Iterator[str]:
    yield from _fields(mark, message.headers)
    if message.body or message.missing:
        yield mark
        for line in _body(message):
            yield f"{mark} {line}"
    if message.trailers:
        yield mark
        yield f"{mark} (trailers)"
        yield from _fields(mark, message.trailers)


def _body(message: RecordedMessage) -> Iterator[str]:
    if message.missing:
        yield f"({message.missing:,} bytes are missing)"
    if not message.body:
        return
    values = message.values(b"content-type")
    kind = parameters(values[0])[0].decode("latin-1").lower() if values else ""
    try:
        data = message.decoded()
    except ContentError as error:
        yield f"({error})"
        yield _described(message.body, kind)
        return
    if kind.startswith(("application/grpc", "application/connect+")) and not kind.startswith(
        "application/grpc-web-text"
    ):
        yield from _grpc(data, message)
    else:
        yield from _content(data, kind)


def _content(data: bytes, kind: str) -> Iterator[str]:
    """Yield what bytes say: as JSON, as names and values, as text, or only how many they are."""
    text = _text(data)
    if text is None:
        if "proto" in kind and (described := describe_protobuf(data)) is not None:
            yield from _shortened(described.splitlines(), data)
        else:
            yield _described(data, kind)
    elif kind == "application/x-www-form-urlencoded":
        yield from _shortened(text.replace("&", "\n& ").splitlines(), data)
    elif "json" in kind or text.lstrip()[:1] in ("{", "["):
        yield from _shortened(_json(text), data)
    else:
        yield from _shortened(text.splitlines(), data)


def _json(text: str) -> list[str]:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False).splitlines()
    except (ValueError, RecursionError):
        return text.splitlines()


def _text(data: bytes) -> str | None:
    if len(data) > _BODY_LIMIT:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROLS.search(text) else text


def _shortened(lines: list[str], data: bytes) -> Iterator[str]:
    yield from map(_cut, lines[:_LINES])
    if len(lines) > _LINES or any(len(line) > _WIDTH for line in lines[:_LINES]):
        more = f"{len(lines) - _LINES:,} more lines, " if len(lines) > _LINES else ""
        yield f"… {more}{_digest(data)}"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[:_WIDTH] + "…"


def _described(data: bytes, kind: str) -> str:
    return f"({', '.join(part for part in (kind, _digest(data)) if part)})"


def _digest(data: bytes) -> str:
    return f"{len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}"


def _grpc(data: bytes, message: RecordedMessage) -> Iterator[str]:
    """Yield gRPC's messages: a length before each of them."""
    names = message.values(b"grpc-encoding") or message.values(b"connect-content-encoding")
    coding = names[0].decode("latin-1").strip() if names else ""
    at = number = 0
    while len(data) - at >= 5:
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        payload = data[at + 5 : end]
        number += 1
        if number > _LINES:
            break
        if data[at] & 1:
            payload = _decompressed(payload, coding)
        described = describe_protobuf(payload)
        yield f"(message {number}, {len(payload):,} bytes)"
        yield from _shortened(described.splitlines(), payload) if described is not None else _content(payload, "")
        at = end
    if at < len(data):
        yield f"… {_digest(data[at:])}"


def _decompressed(payload: bytes, coding: str) -> bytes:
    try:
        return b"".join(ContentDecoder(coding, output_limit=DECODED_LIMIT).feed(payload))
    except ContentError:
        return payload


def _tunnel_message(message: TunnelMessage, begin: int) -> Iterator[str]:
    mark = ">" if message.side is Side.REQUEST else "<"
    code = f" {message.code}" if message.kind == "close" else ""
    lines = list(_content(message.data, "")) if message.data else []
    yield f"{mark} [{message.kind}{code}]  {_time(message.time_ns - begin)}"
    for line in lines:
        yield f"{mark}   {line}"
