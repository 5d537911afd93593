"""WebSocket messages (RFC 6455), compressed ones too (permessage-deflate, RFC 7692).

Each direction of a connection has its own `WebSocketDecoder`.  Compressed messages may refer to the last 32 KiB of
those before them ("context takeover"), so one that was lost can make later ones unreadable.  A message is decoded by
an inflater that begins with as much history as is certain: a reference beyond it is an error, hence whatever decodes
is right.  After a loss, messages that refer to nothing lost are decoded, the others are given as transferred.

The window sizes that were negotiated need no attention: the largest window reads what smaller ones wrote.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from tlscap.http.content import PIECE, RATIO_FLOOR, RATIO_LIMIT, ContentError
from tlscap.http.events import Header, Side
from tlscap.http.messages import MESSAGE_LIMIT, AppMessage, Draft, FramedDecoder, field_values

_CONTINUATION: Final = 0x0
_CLOSE: Final = 0x8
_DATA_KINDS: Final = {_CONTINUATION: "continuation", 0x1: "text", 0x2: "binary"}
_CONTROL_KINDS: Final = {_CLOSE: "close", 0x9: "ping", 0xA: "pong"}
_RSV1: Final = 4
_CONTROL_MAX: Final = 125  # RFC 6455, 5.5
_LENGTH_MAX: Final = (1 << 63) - 1  # RFC 6455, 5.2: the most significant bit must be 0
_MASK_BLOCK: Final = 1 << 14  # larger integers fall out of the cache: a third of the speed

_WINDOW: Final = 1 << 15
_INPUT_SLICE: Final = 1 << 12  # zlib copies what it did not use with every final block
_FINAL_BLOCKS_MAX: Final = 1000
_SYNC: Final = b"\x00\x00\xff\xff"  # what senders cut off (RFC 7692, 7.2.1)
_FINAL_BLOCK: Final = b"\x01\x00\x00\xff\xff"  # stored, empty, the last: accepted at the end of a block only

_CLOSE_CODES: Final = {  # RFC 6455, 7.4.1, and the registry it founded
    1000: "normal",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no status",
    1006: "abnormal",
    1007: "invalid payload",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
    1015: "TLS handshake failed",
}
_CODES_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """What was negotiated for permessage-deflate (RFC 7692, 7.1)."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


@dataclass(frozen=True, slots=True)
class Extensions:
    """What the server agreed to use."""

    deflate: Deflate | None = None
    unknown: tuple[str, ...] = ()
    """Names of the others."""


def negotiated(response_headers: tuple[Header, ...]) -> Extensions:
    """Read Sec-WebSocket-Extensions of the answer (RFC 6455, 9.1).  Values that make no sense count as left out."""
    deflate: Deflate | None = None
    unknown: list[str] = []
    for text in b",".join(field_values(response_headers, b"sec-websocket-extensions")).decode("latin-1").split(","):
        name, *options = (part.strip().lower() for part in text.split(";"))
        if name == "permessage-deflate" and deflate is None:
            values = {key.strip(): value.strip().strip('"') for key, _, value in (o.partition("=") for o in options)}
            deflate = Deflate(
                server_no_context_takeover="server_no_context_takeover" in values,
                client_no_context_takeover="client_no_context_takeover" in values,
                server_max_window_bits=_window_bits(values.get("server_max_window_bits", "")),
                client_max_window_bits=_window_bits(values.get("client_max_window_bits", "")),
            )
        elif name:
            unknown.append(name)
    return Extensions(deflate, tuple(unknown))


def _window_bits(value: str) -> int:
    return int(value) if value in ("8", "9", "10", "11", "12", "13", "14") else 15


def unmask(data: bytes, key: bytes) -> bytes:
    """XOR ``data`` with the four bytes of ``key``, again and again (RFC 6455, 5.3)."""
    length = len(data)
    if length <= _MASK_BLOCK:
        pattern = (key * (length // 4 + 1))[:length]
        return (int.from_bytes(data, "little") ^ int.from_bytes(pattern, "little")).to_bytes(length, "little")
    return b"".join(unmask(data[start : start + _MASK_BLOCK], key) for start in range(0, length, _MASK_BLOCK))


@dataclass(frozen=True, slots=True)
class _Header:
    """A frame's header (RFC 6455, 5.2)."""

    fin: bool
    rsv: int
    opcode: int
    key: bytes
    """Empty: not masked."""
    length: int
    """Of the payload."""
    size: int
    """Of the header itself."""
    shortest: bool
    """Whether the length is written in the shortest form."""


def _parse_header(data: bytes, pos: int = 0) -> _Header | None:
    """Read the header at ``pos``; ``None``: there is only a part of it."""
    have = len(data) - pos
    if have < 2:
        return None
    length = data[pos + 1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    masked = data[pos + 1] & 0x80
    size = 2 + extended + (4 if masked else 0)
    if have < size:
        return None
    if extended:
        length = int.from_bytes(data[pos + 2 : pos + 2 + extended], "big")
    return _Header(
        fin=bool(data[pos] & 0x80),
        rsv=data[pos] >> 4 & 7,
        opcode=data[pos] & 15,
        key=data[pos + size - 4 : pos + size] if masked else b"",
        length=length,
        size=size,
        shortest=length >= {0: 0, 2: 126, 8: 1 << 16}[extended],
    )


class WebSocketDecoder(FramedDecoder):
    """One direction of a WebSocket connection.  See `tlscap.http.messages.MessageDecoder`."""

    _HEADER_MAX = 14

    def __init__(self, side: Side, extensions: Extensions | None = None, *, limit: int = MESSAGE_LIMIT) -> None:
        super().__init__(side, limit)
        extensions = extensions or Extensions()
        deflate = extensions.deflate
        self._deflate = deflate is not None
        self._takeover = deflate is not None and not (
            deflate.client_no_context_takeover if side is Side.REQUEST else deflate.server_no_context_takeover
        )
        self._unknown = extensions.unknown
        self._message: Draft | None = None  # of data; its frames may have control frames between them
        self._inflater: _Inflater | None = None  # of that message
        self._history = b""  # decoded bytes before the next message: the last of them, up to the window's size
        self._history_broken = False  # something before the history is not known
        self._closed = False
        self._fin = True  # of the frame whose payload passes
        self._key = b""

    # --- Frames ---

    def _begin(self, head: bytes, started_ns: int) -> int:
        header = _parse_header(head)
        if header is None:
            return 0
        if header.length > _LENGTH_MAX or not (self._steady or self._usual(header)):
            return -1
        if header.opcode in _DATA_KINDS:
            frame = self._data_frame(header, started_ns)
        else:
            frame = Draft(_CONTROL_KINDS.get(header.opcode, "unknown"), self._side, started_ns, self._limit)
            if header.opcode not in _CONTROL_KINDS:
                frame.name = f"opcode {header.opcode:#x}"
                frame.note("reserved opcode")
            if header.opcode >= _CLOSE and header.length > _CONTROL_MAX:
                frame.note(f"control frame longer than {_CONTROL_MAX} bytes")
            if header.opcode >= _CLOSE and not header.fin:
                frame.note("fragmented control frame")
        self._note_oddities(frame, header)
        frame.length += header.size
        self._frame = frame
        self._left = header.length
        self._fin = header.fin
        self._key = header.key
        return header.size

    def _data_frame(self, header: _Header, started_ns: int) -> Draft:
        """Return the message that a data frame begins or goes on with."""
        if header.opcode == _CONTINUATION and self._message:
            return self._message
        if self._message:
            self._message.cut("another message began inside of it")
            self._end_message(self._message)
        self._inflater = None
        if self._deflate and header.opcode != _CONTINUATION and header.rsv & _RSV1:
            broken = self._history_broken and len(self._history) < _WINDOW
            self._inflater = _Inflater(self._history, broken=broken)
        self._message = Draft(
            _DATA_KINDS[header.opcode],
            self._side,
            started_ns,
            self._limit,
            coding=self._inflater,
            decode_all=self._takeover,
        )
        if header.opcode == _CONTINUATION:
            self._message.cut("its beginning was not seen")
            if self._deflate:
                self._message.note("may be compressed")
        return self._message

    def _note_oddities(self, frame: Draft, header: _Header) -> None:
        compressible = self._deflate and header.opcode in (0x1, 0x2)
        odd = header.rsv & ~_RSV1 if compressible else header.rsv
        if odd:
            names = ", ".join(f"RSV{number}" for number in (1, 2, 3) if odd & (8 >> number))
            frame.note(f"reserved bits set: {names}")
            if self._unknown:
                frame.note(f"extensions not understood: {', '.join(self._unknown):.200}")
        if bool(header.key) is not (self._side is Side.REQUEST):
            frame.note("server's frame is masked" if header.key else "client's frame is not masked")  # RFC 6455, 5.1
        if not header.shortest:
            frame.note("length not in its shortest form")
        if self._closed:
            frame.note("after a close frame")

    def _payload(self, data: bytes) -> bytes:
        if not self._key:
            return data
        plain = unmask(data, self._key)
        self._skipped(len(data))
        return plain

    def _skipped(self, length: int) -> None:
        turn = length % 4
        self._key = self._key[turn:] + self._key[:turn]

    def _end(self, frame: Draft) -> None:
        if frame is self._message:
            if self._fin:
                self._end_message(frame)
        elif frame.kind == "close":
            self._closed = True
            self._messages.append(_close(frame, self._time_ns))
        else:
            self._emit(frame)

    # --- Messages ---

    def _end_message(self, draft: Draft) -> None:
        message = draft.done(self._time_ns)
        if draft.kind == "text" and not (draft.raw or draft.missing):
            whole = draft.complete and draft.kept_all and (draft.whole or not self._inflater)
            if not _is_utf8(message.data, whole=whole):
                message = replace(message, notes=(*message.notes, "not UTF-8"))
        self._messages.append(message)
        if self._takeover:
            if self._inflater and draft.whole:
                self._history = self._inflater.history()
            elif self._inflater or draft.kind == "continuation":
                self._break_history()
        self._message = self._inflater = None

    def _abandon(self, why: str) -> None:
        if self._frame and self._frame is not self._message:
            self._frame.cut(why)
            self._emit(self._frame)
        if self._message:
            self._message.cut(why)
            self._end_message(self._message)
        self._break_history()

    def _break_history(self) -> None:
        self._history = b""
        self._history_broken = True

    # --- Out of step ---

    def _usual(self, header: _Header) -> bool:
        """Tell whether a header is like those that every real implementation sends."""
        if header.opcode in _CONTROL_KINDS:
            fits = header.fin and header.length <= _CONTROL_MAX and not header.rsv
        else:
            allowed = _RSV1 if self._deflate and header.opcode != _CONTINUATION else 0
            fits = header.opcode in _DATA_KINDS and not header.rsv & ~allowed
        return (
            fits and header.shortest and header.length >> 32 == 0 and bool(header.key) is (self._side is Side.REQUEST)
        )

    def _fits(self, data: bytes) -> bool:
        pos = 0
        frames = 0
        header = None
        while pos < len(data):
            header = _parse_header(data, pos)
            if header is None:  # cut off: its first byte with no payload must fit
                begin = _parse_header(
                    data[pos : pos + 1] + (b"\x80" if self._side is Side.REQUEST else b"\0") + bytes(4)
                )
                return frames > 0 and begin is not None and self._usual(begin)
            if not self._usual(header):
                return False
            frames += 1
            pos += header.size + header.length
        # One frame that goes on after these bytes: its header was written alone, or it is a large one.
        assert header, "data is not empty"  # noqa: S101
        return pos == len(data) or frames > 1 or header.size == len(data) or header.length > _CONTROL_MAX


def _close(draft: Draft, time_ns: int) -> AppMessage:
    """Return a close frame's message: its code as the name, its reason as the data (RFC 6455, 5.5.1)."""
    message = draft.done(time_ns)
    notes = list(message.notes)
    code = int.from_bytes(message.data[:2], "big")
    reason = message.data[2:]
    if len(message.data) < 2 or message.missing:
        if message.size == 1 and message.complete:
            notes.append("close frame of one byte")
        return replace(message, notes=tuple(notes))
    if code < 1000 or code in _CODES_NEVER_SENT or code >= 5000:
        notes.append(f"code {code} must not be sent")
    if not _is_utf8(reason, whole=message.complete):
        notes.append("not UTF-8")
    name = f"{code} {_CLOSE_CODES.get(code, '')}".rstrip()
    return replace(message, data=reason, name=name, notes=tuple(notes))


def _is_utf8(data: bytes, *, whole: bool) -> bool:
    """Tell whether ``data`` is UTF-8; unless it is whole its last character may be cut."""
    try:
        codecs.utf_8_decode(data, "strict", whole)
    except UnicodeDecodeError:
        return False
    return True


class _Inflater:
    """Decompresses one message.  ``broken``: what its history begins with is not known."""

    def __init__(self, history: bytes, *, broken: bool) -> None:
        self._past = bytearray(history)
        self._broken = broken
        self._stream = zlib.decompressobj(-15, zdict=history)
        self._final_blocks = 0
        self._input_length = 0
        self._output_length = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` decodes to, in pieces of at most ``PIECE`` bytes."""
        for start in range(0, len(data), _INPUT_SLICE):
            piece = data[start : start + _INPUT_SLICE]
            self._input_length += len(piece)
            while piece:
                if self._stream.eof:
                    self._next_stream()
                yield from self._inflate(piece)
                piece = self._stream.unused_data

    def finish(self) -> bool:
        """Return whether the message ended where a block does (RFC 7692, 7.2.2).

        After a final block (7.2.3.4) to which the sender added nothing, the stream takes no notice of what it gets here.
        """
        try:
            return not self._stream.decompress(_SYNC + _FINAL_BLOCK, PIECE) and self._stream.eof
        except zlib.error:
            return False

    def history(self) -> bytes:
        """Return what the next message may refer to."""
        return bytes(self._past[-_WINDOW:])

    def _next_stream(self) -> None:
        """Go on after a final block: zlib takes it for the end of everything."""
        self._final_blocks += 1
        if self._final_blocks > _FINAL_BLOCKS_MAX:
            raise ContentError("deflate: too many final blocks")
        self._stream = zlib.decompressobj(-15, zdict=self.history())

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._stream.decompress(data, PIECE)
            except zlib.error as error:
                raise ContentError(
                    "compressed, and its history is missing" if self._broken else f"deflate: {error}"
                ) from None
            if piece:
                self._count(piece)
                yield piece
            data = self._stream.unconsumed_tail
            if self._stream.eof or (not data and len(piece) < PIECE):
                return

    def _count(self, piece: bytes) -> None:
        self._output_length += len(piece)
        # Beyond the limit of a message it goes on only for the history, which is not worth any price.
        if self._output_length > RATIO_FLOOR and self._output_length > RATIO_LIMIT * self._input_length:
            raise ContentError(f"{self._input_length} bytes decode to more than {RATIO_LIMIT} times as much: a bomb")
        self._past += piece
        if len(self._past) > 4 * _WINDOW:
            del self._past[:-_WINDOW]
