"""Shows every text of an exchange to somebody who may change it, and makes an exchange of the result that fits together.

Texts are shown as they mean something: bodies without their content codings, gRPC's messages each for itself and decompressed,
protobuf's strings each for itself.  What can't be opened is not shown, and withheld: a hole takes its place.
The lengths that depend on what was changed are made to fit here, from protobuf's up to Content-Length.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.decoding import content_codings
from tlscap.http.events import Header, Side
from tlscap.http.messages import parameters
from tlscap.http.protobuf import protobuf_fields
from tlscap.model import Flow, GapReason, Process
from tlscap.replay.recording import (
    DECODED_LIMIT,
    Hole,
    Interim,
    Piece,
    RecordedExchange,
    RecordedMessage,
    RecordedRequest,
    RecordedResponse,
    TunnelMessage,
)
from tlscap.rewrite.steps import declared_length, with_length
from tlscap.scrub.coding import encoded
from tlscap.scrub.edits import Edit, Moves, apply
from tlscap.scrub.finder import COMMAND_LINE, Place

Look = Callable[[bytes, Place], Sequence[Edit]]
"""Sees a text; says what is to be changed in it, in order and without overlaps."""

_MessageT = TypeVar("_MessageT", RecordedRequest, RecordedResponse)

_DELIMITED, _GROUP = 2, 3  # wire types of protobuf
_DEPTH_MAX: Final = 16
_GRPC_TYPES: Final = (b"application/grpc", b"application/connect+")
_PROTOBUF_TYPES: Final = frozenset(
    (b"application/proto", b"application/protobuf", b"application/x-protobuf", b"application/vnd.google.protobuf")
)
_FORM_TYPE: Final = b"application/x-www-form-urlencoded"
_URL_FIELDS: Final = frozenset(("referer", "location", "content-location"))
_DIGESTS: Final = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5", "sha": "sha1"}
_CHECKSUMS = re.compile(
    r"x-amz-checksum-.*|x-amz-content-sha256|x-goog-hash|x-ms-content-crc64|content-crc32c?|x-content-sha256"
)
_TOO_LARGE: Final = f"bodies too large to look into: more than {DECODED_LIMIT >> 20} MiB"
_UNDECODABLE: Final = "bodies that can't be decoded"
_PLAIN = re.compile(rb"[\x20-\x7e\x80-\xff]*")


class Walker:
    """Goes through exchanges.  One for a whole capture: connections and processes keep their identity."""

    def __init__(
        self, look: Look, again: Callable[[bytes], Sequence[Edit]] | None = None, *, keep_undecodable: bool = False
    ) -> None:
        """``again`` sees messages that were taken for protobuf as a whole, after their texts: they may have been something else."""
        self._look = look
        self._again = again
        self._keep_undecodable = keep_undecodable
        self._flows: dict[Flow, Flow] = {}
        self._processes: dict[Process, Process] = {}
        self.withheld: Counter[str] = Counter()
        """Bodies and messages that could not be opened, by the reason."""
        self.decoded: int = 0
        """Bodies that were changed and can't be encoded as they were."""
        self.changed_bodies: dict[int, set[Side]] = {}

    def exchange(self, exchange: RecordedExchange) -> RecordedExchange:
        """Return the exchange as it is to be."""
        target = self._text(exchange.request.target, Place("request target", is_form=True))
        request, sent = self._message(exchange.request, Side.REQUEST, exchange)
        request.target = target
        request.authority = self._text(request.authority, Place("request authority"))
        request.method = self._text(request.method, Place("request method"))
        response = None
        if exchange.response:
            response, received = self._message(exchange.response, Side.RESPONSE, exchange)
            response.reason = self._text(response.reason, Place("response reason"))
            response.interim = [self._interim(one) for one in response.interim]
            _follow(request, received)
            _follow(response, sent)
        url = self._text(exchange.url.encode("latin-1", "replace"), Place("request target", is_form=True))
        return replace(
            exchange,
            flow=self._flow(exchange.flow),
            request=request,
            response=response,
            url=url.decode("latin-1"),
            problems=tuple(self._str(one, Place("problem")) for one in exchange.problems),
            complete=request.complete and bool(response and response.complete),
            messages=[self._tunnel_message(one, exchange) for one in exchange.messages],
        )

    # --- Texts ---

    def _text(self, text: bytes, place: Place) -> bytes:
        return apply(text, self._look(text, place)) if text else text

    def _str(self, text: str, place: Place) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        return self._text(raw, place).decode("utf-8", "surrogatepass")

    def _headers(self, headers: Sequence[Header], kind: str) -> tuple[Header, ...]:
        return tuple(
            (self._text(name, Place(f"{kind} name")), self._field(name, value, kind)) for name, value in headers
        )

    def _field(self, name: bytes, value: bytes, kind: str) -> bytes:
        place = Place(kind, name.decode("latin-1").strip().lower(), is_header=True)
        return self._text(value, place._replace(is_form=place.name in _URL_FIELDS))

    def _interim(self, interim: Interim) -> Interim:
        return interim._replace(
            headers=self._headers(interim.headers, "response header"),
            reason=self._text(interim.reason, Place("response reason")),
        )

    def _tunnel_message(self, message: TunnelMessage, exchange: RecordedExchange) -> TunnelMessage:
        damaged = any(text.startswith("websocket: bytes missing") for text in exchange.problems)
        if damaged and not self._keep_undecodable and (message.kind != "text" or not _is_utf8(message.data)):
            # It may be compressed, and what that refers to is lost.
            if message.data:
                self.withheld["WebSocket messages after a loss"] += 1
            return message._replace(data=b"")
        if len(message.data) > DECODED_LIMIT and not self._keep_undecodable:
            self.withheld[f"WebSocket messages too large to look into: more than {DECODED_LIMIT >> 20} MiB"] += 1
            return message._replace(data=b"")
        place = Place(f"WebSocket {message.kind}", is_json=message.data[:1] in b"{[" and bool(message.data))
        if message.kind == "binary" and (changed := self._whole_protobuf(message.data, place)) is not None:
            return message._replace(data=changed)
        return message._replace(data=self._text(message.data, place))

    # --- Connections and processes ---

    def _flow(self, flow: Flow) -> Flow:
        if flow not in self._flows:
            self._flows[flow] = replace(
                flow,
                process=self._process(flow.process),
                sni=self._str(flow.sni, Place("SNI")),
                alpn=self._str(flow.alpn, Place("ALPN")),
            )
        return self._flows[flow]

    def _process(self, process: Process) -> Process:
        if process not in self._processes:
            words = self._str("\0".join(process.cmdline), Place(COMMAND_LINE)).split("\0")
            place = Place("process")
            self._processes[process] = replace(
                process,
                comm=self._str(process.comm, place),
                exe=self._str(process.exe, place),
                cmdline=tuple(words) if process.cmdline else (),
                libraries=tuple(replace(one, path=self._str(one.path, place)) for one in process.libraries),
            )
        return self._processes[process]

    # --- Messages ---

    def _message(self, message: _MessageT, side: Side, exchange: RecordedExchange) -> tuple[_MessageT, Moves]:
        """Return a message, and where the bytes of its body stand now."""
        kind = side.value
        old = message.body
        new, moves = self._body(message, side)
        changed = dataclasses.replace(
            message,
            headers=self._headers(message.headers, f"{kind} header"),
            trailers=self._headers(message.trailers, f"{kind} trailer"),
            pieces=list(message.pieces),
            holes=list(message.holes),
        )
        if isinstance(changed, RecordedResponse):
            changed.interim = list(changed.interim)
        if new is None:
            length = len(old)
            changed.pieces = []
            # What was missing was so before; all of it is one hole now.
            changed.holes = [Hole(0, length + message.missing, GapReason.WITHHELD, message.pieces[-1].time_ns)]
            changed.missing += length
            changed.complete = False
        elif new != old:
            self.changed_bodies.setdefault(exchange.id, set()).add(side)
            changed.pieces = _cut(message.pieces, new, moves)
            changed.holes = [hole._replace(offset=moves(hole.offset)) for hole in message.holes]
            if (declared := declared_length(changed.headers)) is not None:
                changed.headers = with_length(changed.headers, max(0, declared + len(new) - len(old)))
            changed.headers = _with_digests(changed.headers, new)
            changed.trailers = _with_digests(changed.trailers, new)
            if (
                message.encodings
                and content_codings(changed.headers)
                and new is not old
                and not self._is_coded(message, new)
            ):
                self.decoded += 1
                changed.headers = tuple(field for field in changed.headers if field[0].lower() != b"content-encoding")
                changed.encodings = content_codings(changed.headers)
        return changed, moves

    def _is_coded(self, message: RecordedMessage, new: bytes) -> bool:
        try:
            decoder = ContentDecoder(message.encodings, output_limit=DECODED_LIMIT)
            for _ in decoder.feed(new):
                pass
            return decoder.finish()
        except ContentError:
            return False

    def _body(self, message: RecordedMessage, side: Side) -> tuple[bytes | None, Moves]:
        """Return the body as it is to be transferred; ``None``: it is withheld."""
        old = message.body
        whole = Moves([0, len(old)], [0, len(old)])
        if not old:
            return old, whole
        place, kind = _body_place(message, side)
        if len(old) > DECODED_LIMIT:
            return self._unopened(old, _TOO_LARGE), whole
        if not message.encodings:
            if not message.complete:
                place = place._replace(cuts=(*(hole.offset for hole in message.holes), len(old)))
            return self._content(old, message, place, kind)
        if not message.complete:
            return self._unopened(old, "bodies with a content coding that are incomplete"), whole
        decoder = None
        try:
            decoder = ContentDecoder(message.encodings, output_limit=DECODED_LIMIT)
            plain = b"".join(decoder.feed(old))
            why = "" if decoder.finish() else _UNDECODABLE
        except ContentError:
            why = _TOO_LARGE if decoder and decoder.output_length > DECODED_LIMIT else _UNDECODABLE
        if why:
            return self._unopened(old, why), whole
        content, _ = self._content(plain, message, place, kind)
        # Around what was decoded there may be more: comments of gzip, what follows its end.
        hidden = self._look(old, Place(f"{side.value} body, around its coding"))
        if content == plain and not hidden:
            return old, whole
        new_body = encoded(content, message.encodings)
        if new_body is None:
            new_body = content
        return new_body, Moves([0, len(old)], [0, len(new_body)])

    def _unopened(self, body: bytes, why: str) -> bytes | None:
        if self._keep_undecodable:
            return body
        self.withheld[why] += 1
        return None

    def _content(self, text: bytes, message: RecordedMessage, place: Place, kind: bytes) -> tuple[bytes, Moves]:
        if kind.startswith(b"application/grpc-web-text"):
            try:
                plain = b"".join(binascii.a2b_base64(part) for part in re.findall(rb"[^=]+=*", text))
            except binascii.Error:
                plain = b""
            if plain:
                changed, _ = self._frames(plain, message, place._replace(cuts=(len(plain),) if place.cuts else ()))
                new = text if changed == plain else base64.b64encode(changed)
                return new, Moves([0, len(text)], [0, len(new)])
        if kind.startswith(_GRPC_TYPES):
            return self._frames(text, message, place)
        if kind in _PROTOBUF_TYPES and (new_message := self._whole_protobuf(text, place)) is not None:
            return new_message, Moves([0, len(text)], [0, len(new_message)])
        edits = self._look(text, place)
        return apply(text, edits), Moves.of(len(text), edits)

    # --- gRPC (PROTOCOL-HTTP2.md, "Length-Prefixed-Message"), also in Connect's streams ---

    def _frames(self, body: bytes, message: RecordedMessage, place: Place) -> tuple[bytes, Moves]:
        names = message.values(b"grpc-encoding") or message.values(b"connect-content-encoding")
        coding = names[0].decode("latin-1").strip().lower() if names else ""
        parts: list[bytes] = []
        moves = Moves([0], [0])
        at = size = 0
        while len(body) - at >= 5:
            flags = body[at]
            end = at + 5 + int.from_bytes(body[at + 1 : at + 5], "big")
            if end > len(body):
                break
            new = self._frame(body[at + 5 : end], coding if flags & 1 else "", _part(place, at + 5, end))
            parts.append(bytes([flags]) + len(new).to_bytes(4, "big") + new)
            at = end
            size += len(parts[-1])
            moves.add(at, size)
        if at < len(body):  # the beginning of a message whose rest is not there
            rest = (
                b""
                if body[at] & 1 and not self._keep_undecodable
                else self._text(body[at:], _part(place, at, len(body)))
            )
            parts.append(rest)
            moves.add(len(body), size + len(rest))
        return b"".join(parts), moves

    def _frame(self, data: bytes, coding: str, place: Place) -> bytes:
        plain = data
        if coding:
            try:
                decoder = ContentDecoder(coding, output_limit=DECODED_LIMIT)
                plain = b"".join(decoder.feed(data))
                whole = decoder.finish()
            except ContentError:
                whole = False
            if not whole:
                if self._keep_undecodable:
                    return data
                self.withheld["gRPC messages that can't be decompressed"] += 1
                return encoded(b"", coding) or b""
        new = self._whole_protobuf(plain, place)
        new = self._text(plain, place) if new is None else new
        if new == plain:
            return data
        return (encoded(new, coding) or b"") if coding else new

    # --- Protobuf (protobuf.dev, "Encoding"), without a schema ---

    def _whole_protobuf(self, data: bytes, place: Place) -> bytes | None:
        """Return a message with its strings changed, and what is beside them; ``None``: it is none."""
        new = self._protobuf(data, place)
        return apply(new, self._again(new)) if new and self._again else new

    def _protobuf(self, data: bytes, place: Place, depth: int = 0) -> bytes | None:
        """Return a message with its strings changed; ``None``: it is none."""
        if depth >= _DEPTH_MAX or (fields := protobuf_fields(data)) is None:
            return None
        parts: list[bytes] = []
        changed = False
        for one in fields:
            tag = _varint(one.number << 3 | one.wire_type)
            if isinstance(one.value, int):
                size = {1: 8, 5: 4}.get(one.wire_type)
                parts.append(tag + (one.value.to_bytes(size, "little") if size else _varint(one.value)))
                continue
            new = self._delimited(one.value, place, depth, is_group=one.wire_type == _GROUP)
            changed |= new != one.value
            if one.wire_type == _GROUP:
                parts.append(tag + new + _varint(one.number << 3 | _GROUP + 1))
            else:
                parts.append(tag + _varint(len(new)) + new)
        return b"".join(parts) if changed else data

    def _delimited(self, value: bytes, place: Place, depth: int, *, is_group: bool) -> bytes:
        edits = [] if is_group else self._look(value, place)
        if not is_group and not edits and _PLAIN.fullmatch(value):
            return value
        nested = self._protobuf(value, place, depth + 1) if value else None
        return apply(value, edits) if nested is None or nested == value else nested


def _part(place: Place, start: int, end: int) -> Place:
    """Return the place of a part of a text."""
    return place._replace(cuts=tuple(cut - start for cut in place.cuts if start <= cut <= end))


def _body_place(message: RecordedMessage, side: Side) -> tuple[Place, bytes]:
    values = message.values(b"content-type")
    kind = parameters(values[0])[0].lower() if values else b""
    begin = message.pieces[0].data.lstrip()[:1] if message.pieces and not message.encodings else b""
    is_json = b"json" in kind or (begin in (b"{", b"[") and not kind.startswith(b"application/grpc"))
    return Place(f"{side.value} body", is_form=kind == _FORM_TYPE, is_json=is_json), kind


def _cut(pieces: Sequence[Piece], body: bytes, moves: Moves) -> list[Piece]:
    """Return a body in pieces that passed when those did that they were."""
    cut: list[Piece] = []
    passed = begin = 0
    for number, piece in enumerate(pieces, 1):
        passed += len(piece.data)
        end = len(body) if number == len(pieces) else max(begin, moves(passed))
        if end > begin:
            cut.append(piece._replace(data=body[begin:end]))
        begin = end
    return cut


def _follow(message: RecordedMessage, moves: Moves) -> None:
    """Have pieces say how much of the other body passes before them now."""
    message.pieces = [piece._replace(other_bytes=moves(piece.other_bytes)) for piece in message.pieces]


def _with_digests(headers: Sequence[Header], body: bytes) -> tuple[Header, ...]:
    """Return fields whose digests are those of the body; what can't be computed again is left out."""
    kept: list[Header] = []
    for name, value in headers:
        match name.lower():
            case b"content-md5":
                kept.append((name, base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest())))
            case b"digest":  # RFC 3230
                kept += [(name, text)] if (text := _digests(value, body, b"%s=%s")) else []
            case b"content-digest" | b"repr-digest":  # RFC 9530
                kept += [(name, text)] if (text := _digests(value, body, b"%s=:%s:")) else []
            case _ if not _CHECKSUMS.fullmatch(name.decode("latin-1").lower()):
                kept.append((name, value))
    return tuple(kept)


def _digests(value: bytes, body: bytes, form: bytes) -> bytes:
    names = [part.partition(b"=")[0].strip() for part in value.split(b",")]
    known = [(name, _DIGESTS[key]) for name in names if (key := name.decode("latin-1").lower()) in _DIGESTS]
    digests = ((name, hashlib.new(kind, body, usedforsecurity=False).digest()) for name, kind in known)
    return b", ".join(form % (name, base64.b64encode(digest)) for name, digest in digests)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
