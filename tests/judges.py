"""tshark as a judge of what tlscap reads: what either says of a capture, in the same words, and where the two differ.

tshark runs with an empty home: nobody's preferences and plugins, and none set here.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tlscap.capture import open_capture
from tlscap.export.jsonl import exchange_to_dict
from tlscap.http.bodies import Body, BodyCollector, MessageCollector
from tlscap.http.events import Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.http.messages import AppMessage
from tlscap.model import Item
from tlscap.synth import parse_pairs

_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = "0", "1", "5", "9"  # frame types of HTTP/2

PREFACE = "preface of HTTP/2"
"""The name of an object that is no body."""

Field = tuple[str, str]
Said = dict[str, str]
"""What is said of one exchange: the name of a fact, and the fact."""


@dataclass
class Testimony:
    """What one witness says of a capture."""

    flows: dict[int, list[Said]] = field(default_factory=dict)
    """By tlscap's number of the connection, the exchanges in the order in which they began."""
    objects: Counter[str] = field(default_factory=Counter)
    """The bodies of complete messages, decoded: what *Export Objects* writes."""
    strays: set[int] = field(default_factory=set)
    """The connections on which there were bytes that belong to no message."""
    framings: dict[int, str] = field(default_factory=dict)
    """``tls-null`` or ``plain``, by connection; tshark says it."""


@dataclass(frozen=True, order=True)
class Difference:
    """A fact of which the two say different things."""

    flow: int
    number: int
    what: str
    tlscap: str
    tshark: str

    @property
    def is_url(self) -> bool:
        return self.what in ("request url", "response answers")

    def __str__(self) -> str:
        return f"#{self.number} {self.what}: {self.tlscap or 'nothing'} | {self.tshark or 'nothing'}"


def differences(ours: Testimony, theirs: Testimony) -> list[Difference]:
    """Return every difference.  Of what only one of them saw, that alone is said."""
    found = []
    for flow in sorted(ours.flows.keys() | theirs.flows.keys()):
        mine, other = ours.flows.get(flow, []), theirs.flows.get(flow, [])
        for index in range(max(len(mine), len(other))):
            one = mine[index] if index < len(mine) else {}
            two = other[index] if index < len(other) else {}
            for what in sorted(one.keys() | two.keys()):
                part = what.partition(" ")[0]
                if part != what and (part in one) != (part in two):
                    continue  # the message itself was seen by one of them only
                if one.get(what, "") != two.get(what, ""):
                    found.append(Difference(flow, index + 1, what, one.get(what, ""), two.get(what, "")))
    return found


def digest(body: bytes) -> str:
    """Return a body's name: its size, and the beginning of its SHA-256."""
    return f"{len(body)} bytes {hashlib.sha256(body).hexdigest()[:16]}" if body else ""


def fields_shown(headers: Iterable[Sequence[str]]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in headers)


# --- tlscap ---


@dataclass
class Read:
    """An exchange as tlscap reads it, with everything in it."""

    line: dict[str, Any]
    """What ``tlscap inspect --json`` prints."""
    bodies: dict[str, Body]
    """What ``tlscap inspect --body`` writes, by whose it is: ``request``, ``response``."""
    messages: list[AppMessage]


def read(items: Iterable[Item]) -> tuple[list[Read], int]:
    """Return the exchanges in the order in which they ended, and how many bytes of HTTP connections were not readable."""
    bodies, messages = BodyCollector(), MessageCollector()
    builder = ExchangeBuilder(bodies, messages)
    found: list[Read] = []

    def keep(exchanges: Iterable[Exchange]) -> None:
        for exchange in exchanges:
            taken = {side.value: body for side in Side if (body := bodies.take(exchange, side))}
            found.append(Read(exchange_to_dict(exchange), taken, messages.take(exchange)[0]))

    time_ns = 0
    for item in items:
        time_ns = item.time_ns
        keep(builder.feed(item))
    keep(builder.finish(time_ns))
    return found, builder.unparsed_bytes


def items_of(path: Path) -> dict[int, list[Item]]:
    """Return the items of a capture, by connection."""
    items: dict[int, list[Item]] = {}
    with open_capture(str(path)) as capture:
        for item in capture.items():
            items.setdefault(item.flow.id, []).append(item)
    return items


def told_by_tlscap(path: Path, *, http2_objects: bool) -> Testimony:
    """Return what tlscap says of a capture; ``http2_objects``: the bodies of HTTP/2 are among those to export."""
    told = Testimony()
    for flow, items in items_of(path).items():
        exchanges, unparsed = read(items)
        if exchanges:
            told.flows[flow] = [_said(one) for one in sorted(exchanges, key=lambda one: int(one.line["number"]))]
        if unparsed:
            told.strays.add(flow)
        for one in exchanges:
            if http2_objects or one.line["protocol"] != "h2":
                whole = (body.data for side, body in one.bodies.items() if (one.line[side] or {}).get("complete"))
                told.objects.update(map(digest, whole))
    del told.objects[""]
    return told


def _said(exchange: Read) -> Said:
    line = exchange.line
    request, response = line["request"], line["response"]
    said: Said = {"interim": ", ".join(map(str, line["interim"]))}
    if request:
        said["request"] = " ".join(filter(None, (request["method"], request["target"], request["version"])))
        said["request url"] = line["url"]
        if line["protocol"] == "h2":
            pseudo = request["method"], request["scheme"], request["authority"], request["target"]
            said["request"] = " ".join(filter(None, pseudo))
    if response:
        words = response["version"], str(response["status"]), response["reason"]
        said["response"] = " ".join(filter(None, words))
        if request and line["protocol"] != "h2":
            said["response answers"] = line["url"]
    for side, message in (("request", request), ("response", response)):
        if message:
            said[f"{side} fields"] = fields_shown(message["headers"])
            said[f"{side} trailers"] = fields_shown(message["trailers"])
            said[f"{side} body"] = digest(exchange.bodies[side].data) if side in exchange.bodies else ""
        texts = (f"{one.kind} {one.data.hex()}" for one in exchange.messages if one.side.value == side)
        said[f"{side} messages"] = ", ".join(texts) if _has_messages(line) else ""
    return {what: text for what, text in said.items() if text}


def _has_messages(line: dict[str, Any]) -> bool:
    """Tell whether an exchange carries what tshark takes apart, too: WebSocket and gRPC."""
    return line["upgraded_to"] == "websocket" or line["grpc"] is not None


# --- tshark ---

_PROTOCOLS = "pkt_comment tcp http http2 websocket data grpc"
_FILTER = "http || http2 || websocket || (tcp.flags.syn == 1 && tcp.flags.ack == 0)"
_OPCODES = {"1": "text", "2": "binary", "8": "close", "9": "ping", "10": "pong"}
_PAYLOADS = [f"websocket.payload.{name}" for name in ("text", "ping", "pong", "close.reason")]


def tshark_version() -> str:
    """Return the version: its first two numbers."""
    done = subprocess.run(["tshark", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"(\d+\.\d+)\.", done.stdout)
    assert version, done.stdout
    return version[1]


def told_by_tshark(path: Path, folder: Path) -> Testimony:
    """Return what tshark says of a capture; ``folder`` is for its home and the files that it exports."""
    objects = folder / f"objects of {path.name}"
    done = subprocess.run(
        ["tshark", "-r", path, "-Y", _FILTER, "-T", "pdml", "-J", _PROTOCOLS, "--export-objects", f"http,{objects}"],
        env={"HOME": str(folder), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = Testimony()
    connections: dict[str, _Connection] = {}
    for packet in ET.fromstring(done.stdout):
        parts = packet.findall("proto")
        tcp = next(part for part in parts if part.get("name") == "tcp")
        stream, source = _show(tcp, "tcp.stream"), _show(tcp, "tcp.srcport")
        if _is_set(tcp, "tcp.flags.syn"):
            facts = dict(parse_pairs(_show(packet, "frame.comment")))
            connections[stream] = _Connection(int(facts["flow"]), client_port=source)
            told.framings[int(facts["flow"])] = facts["framing"]
            continue
        connection = connections[stream]
        connection.packet(
            _show(packet, "num"), Side.REQUEST if source == connection.client_port else Side.RESPONSE, parts
        )
    for connection in connections.values():
        if said := connection.told():
            told.flows[connection.flow] = said
        if connection.has_strays:
            told.strays.add(connection.flow)
    if objects.exists():
        bodies = (file.read_bytes() for file in objects.iterdir())
        told.objects = Counter(PREFACE if body.startswith(b"PRI * HTTP/2") else digest(body) for body in bodies)
        del told.objects[""]
    return told


class _Connection:
    """One TCP stream as tshark sees it."""

    def __init__(self, flow: int, client_port: str) -> None:
        self.flow = flow
        self.client_port = client_port
        self.has_strays = False
        self._exchanges: list[_Seen] = []
        self._latest = _Seen()
        self._requests: list[tuple[str, str]] = []  # of HTTP/1: the packet's number and the URL
        self._answers: list[tuple[tuple[str, str], _Seen]] = []  # which request it answers, and the answer
        self._interim: list[str] = []
        self._streams: dict[str, _Seen] = {}  # of HTTP/2
        self._blocks: dict[tuple[str, Side], _Block] = {}
        self._promised: dict[str, str] = {}
        self._fragmented: dict[Side, str] = {}  # of WebSocket: the kind of a message that is not over

    def packet(self, number: str, side: Side, parts: list[ET.Element]) -> None:
        """Take the protocols of a packet in their order."""
        for index, part in enumerate(parts):
            match part.get("name"):
                case "http":
                    self._http(number, part)
                case "http2":
                    for frame in _all(part, "http2.stream"):
                        self._frame(side, frame)
                case "websocket":
                    self._websocket(side, part, parts[index + 1 :])
                case "grpc":
                    self._latest.messages[side].append(f"message {_bytes(part, 'grpc.message_data').hex()}")

    def told(self) -> list[Said]:
        """Return what is to be said of its exchanges."""
        self._pair()
        return [exchange.told() for exchange in self._exchanges]

    # --- HTTP/1 ---

    def _http(self, number: str, part: ET.Element) -> None:
        if _is_set(part, "http.request"):
            start = " ".join(_text(part, f"http.request.{name}") for name in ("method", "uri", "version"))
            seen = self._latest = _Seen()
            seen.said["request url"] = url = _show(part, "http.request.full_uri")
            seen.http1(Side.REQUEST, start, part)
            self._exchanges.append(seen)
            self._requests.append((number, url))
        elif _is_set(part, "http.response"):
            words = [_text(part, f"http.response.{name}") for name in ("version", "code", "phrase")]
            status = words[1]
            if status[:1] == "1" and status != "101":
                self._interim.append(status)
                return
            seen = _Seen()
            seen.http1(Side.RESPONSE, " ".join(filter(None, words)), part)
            seen.interim, self._interim = self._interim, []
            url = _show(part, "http.response_for.uri") or _show(part, "http.request.full_uri")  # until 4.0, since 4.2
            self._answers.append(((_show(part, "http.request_in"), url), seen))
        else:
            self.has_strays = True

    def _pair(self) -> None:
        """Put answers to requests: in order if there is one for each, else as tshark says and, where it doesn't, in order.

        What tshark says is noted in any case.
        """
        waiting = dict(zip(self._exchanges, self._requests, strict=False))
        in_order = len(self._answers) == len(self._requests)
        for wanted, answer in self._answers:
            named = None if in_order else next((one for one, asked in waiting.items() if asked == wanted), None)
            exchange = named or next(iter(waiting), None)
            if exchange is None:
                self._exchanges.append(exchange := _Seen())
            waiting.pop(exchange, None)
            exchange.answer(answer, answers=wanted[1] if wanted in self._requests else "")

    # --- WebSocket ---

    def _websocket(self, side: Side, part: ET.Element, following: list[ET.Element]) -> None:
        opcode = _show(part, "websocket.opcode")
        kind = self._fragmented.pop(side, "continuation") if opcode == "0" else _OPCODES.get(opcode, "unknown")
        if not _is_set(part, "websocket.fin"):
            self._fragmented[side] = kind
            return
        payload = _bytes(part, *_PAYLOADS)
        if kind == "binary":
            ends = (index for index, other in enumerate(following) if other.get("name") == "websocket")
            payload = b"".join(_bytes(other, "data.data") for other in following[: next(ends, None)])
        self._latest.messages[side].append(f"{kind} {payload.hex()}")

    # --- HTTP/2 ---

    def _frame(self, side: Side, frame: ET.Element) -> None:
        kind, stream = _show(frame, "http2.type"), _show(frame, "http2.streamid")
        if stream in self._streams:
            self._latest = self._streams[stream]
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            if kind == _PUSH_PROMISE:
                self._promised[stream] = _show(frame, "http2.push_promise.promised_stream_id")
            block = self._blocks.setdefault((stream, side), _Block())
            block.url = block.url or _show(frame, "http2.request.full_uri")
            for header in _all(frame, "http2.header"):
                name, value = (_text(header, f"http2.header.{part}") for part in ("name", "value"))
                block.headers.append((name, value))
            if _is_set(frame, "http2.flags.eh"):
                self._block(stream, side, self._blocks.pop((stream, side)))
        if stream in self._streams:
            self._streams[stream].data(side, frame, is_data=kind == _DATA)
        elif kind == _DATA:
            self.has_strays = True

    def _block(self, stream: str, side: Side, block: _Block) -> None:
        """Take a whole header block: a request, an answer, or trailers."""
        pseudo = {name: value for name, value in block.headers if name[:1] == ":"}
        headers = [(name, value) for name, value in block.headers if name[:1] != ":"]
        if ":method" in pseudo:
            stream, side = self._promised.pop(stream, stream), Side.REQUEST
        if stream not in self._streams:
            self._streams[stream] = self._latest = _Seen()
            self._exchanges.append(self._latest)
        seen = self._streams[stream]
        status = pseudo.get(":status", "")
        if ":method" in pseudo:
            names = (":method", ":protocol", ":scheme", ":authority", ":path")
            start = " ".join(pseudo[name] for name in names if name in pseudo)
            seen.head(side, start, headers)
            seen.said["request url"] = block.url
        elif status[:1] == "1":
            seen.interim.append(status)
        elif status:
            seen.head(side, f"HTTP/2 {status}", headers)
        else:
            seen.trailers[side] = headers


@dataclass
class _Block:
    """A header block under way."""

    headers: list[Field] = field(default_factory=list)
    url: str = ""


class _Seen:
    """What tshark says of an exchange."""

    def __init__(self) -> None:
        self.said: Said = {}
        self.interim: list[str] = []
        self.trailers: dict[Side, list[Field]] = {}
        self.messages: dict[Side, list[str]] = {side: [] for side in Side}
        self.bodies: dict[Side, bytes] = {}
        self._whole: set[Side] = set()

    def head(self, side: Side, start: str, headers: list[Field]) -> None:
        """Take a start line, or what takes its place, and the fields."""
        self.said[side.value] = start
        self.said[f"{side.value} fields"] = fields_shown(headers)

    def http1(self, side: Side, start: str, part: ET.Element) -> None:
        """Take an HTTP/1 message."""
        self.head(side, start, [_line(line) for line in _all_bytes(part, f"http.{side.value}.line")])
        trailers = _bytes(part, "http.chunked_trailer_part")
        self.trailers[side] = [_line(line) for line in trailers.splitlines()]
        self.bodies[side] = _bytes(part, "http.file_data")

    def data(self, side: Side, frame: ET.Element, *, is_data: bool) -> None:
        """Take what a frame of HTTP/2 has of a body: a piece, or with the last one the whole."""
        whole = _bytes(frame, "http2.body.reassembled.data")
        if whole:
            self._whole.add(side)
            # Where there is a content coding, the frame's data are what was decoded.
            self.bodies[side] = _all_bytes(frame, "http2.data.data")[-1]
        elif is_data and side not in self._whole:
            self.bodies[side] = self.bodies.get(side, b"") + _bytes(frame, "http2.data.data")

    def answer(self, answer: _Seen, *, answers: str) -> None:
        """Take an HTTP/1 response; ``answers`` is the URL that it is said to answer."""
        self.said |= answer.said | {"response answers": answers}
        self.interim = answer.interim
        self.trailers |= answer.trailers
        self.bodies |= answer.bodies

    def told(self) -> Said:
        """Return it as `told_by_tlscap` would."""
        said = dict(self.said)
        for side in Side:
            said[f"{side.value} trailers"] = fields_shown(self.trailers.get(side, ()))
            said[f"{side.value} body"] = digest(self.bodies.get(side, b""))
            said[f"{side.value} messages"] = ", ".join(self.messages[side])
        said["interim"] = ", ".join(self.interim)
        return {what: text for what, text in said.items() if text}


def _line(line: bytes) -> Field:
    name, _, value = line.decode("latin-1").partition(":")
    return name, value.strip(" \t\r\n")


def _all(part: ET.Element, name: str) -> Iterator[ET.Element]:
    return (found for found in part.iter("field") if found.get("name") == name)


def _show(part: ET.Element, name: str) -> str:
    """Return what a field says; empty when it is not there."""
    return next((found.get("show", "") for found in _all(part, name)), "")


def _is_set(part: ET.Element, name: str) -> bool:
    return _show(part, name) in ("1", "True")  # the latter since Wireshark 4.2


def _all_bytes(part: ET.Element, name: str) -> list[bytes]:
    return [bytes.fromhex(found.get("value", "")) for found in _all(part, name)]


def _text(part: ET.Element, name: str) -> str:
    """Return the bytes of a field as text; those that are not ASCII as they are in Latin-1."""
    return _bytes(part, name).decode("latin-1")


def _bytes(part: ET.Element, *names: str) -> bytes:
    """Return the bytes of the first of these fields that is there."""
    return next((found for name in names for found in _all_bytes(part, name)), b"")
