"""A passive observer of HTTP/2 (RFC 9113).

It watches both sides of one connection and says what passed.  It is no endpoint: nothing is refused or
answered, flow control is ignored, and malformed traffic is never an exception.

Strategy.  Each side has a reader.  A reader is always in one *state*, a method that looks at ``data[pos:]``, consumes
some of it, emits events, perhaps changes the state, and returns the new position.  The contents of DATA frames
pass through as slices of what was fed; other frames are held until they are whole, as far as they are not
too long to be held, in which case they are counted.  Held bytes are looked at again when as many came as are needed,
so feeding byte by byte costs linear time.

In step, how the bytes were cut does not matter.  A hole inside of one frame leaves the reader in step, as the frame's
header said where the next one begins.  A reader that lost its step (a hole over a frame header, a connection joined in
the middle) finds it again only where an *item begins* with a frame header that could not be stricter, followed by more of
them as far as the item goes; and for some frames to come it stays wary.

What a hole can hide.  Frames of any stream may have been in it.  So every message that was open on that side, or could have
begun, has a hole in an unknown place: when it ends it is incomplete.  Each reader counts how often it found its step again
(``epoch``), and each message remembers the count at its head, which makes that a comparison.  What HPACK still knows
after a loss, `tlscap.http.hpack_state` says; how messages begin and end, `tlscap.http.http2_streams`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tlscap.http.events import (
    AnyEvent,
    BodyData,
    BodyGap,
    ControlFrame,
    ResponseHead,
    Side,
    Trailers,
    TunnelData,
    TunnelGap,
    Unparsed,
)
from tlscap.http.hpack_state import FieldSection, HeaderDecoder
from tlscap.http.http2_frames import (
    BLOCK_KINDS,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    EXACT_LENGTH,
    FRAME,
    FRAME_LENGTH,
    GOAWAY,
    HEADERS,
    LEAST_LENGTH,
    LIKELY_FLAGS,
    LIKELY_LENGTH,
    LIKELY_SETTINGS,
    ON_EITHER,
    ON_NO_STREAM,
    ONE_SIDED,
    PADDED,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_MASK,
    WITH_PRIORITY,
    detail,
    frame_name,
    shown,
)
from tlscap.http.http2_streams import (
    ENDED,
    IDLE,
    MISSING,
    NOT_FROM_START,
    OPEN,
    REQUEST_PSEUDO,
    RESPONSE_PSEUDO,
    TUNNEL,
    VERSION,
    Half,
    Head,
    Stream,
    Streams,
    request_head,
    split_fields,
)
from tlscap.model import GapReason

HEAD_LIMIT: Final = 1 << 20
"""Longest header block that is kept, its frame headers included, and the most bytes of fields that one may decode to."""

CONTROL_LIMIT: Final = 1 << 14
"""Longest payload of any other frame that is kept: the largest that a peer must accept unasked (RFC 9113, 4.2)."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_ZEROS: Final = bytes(5)  # an empty DATA frame that ends nothing, or any row of zeros
_WARY_FRAMES: Final = 8  # so many frame headers must be likely after the step was found again

_JOINED: Final = "joined mid-stream"


@dataclass(slots=True)
class _Block:
    """A header block under way: HEADERS or PUSH_PROMISE, and the CONTINUATION frames that follow."""

    kind: int
    flags: int
    """Of its first frame."""
    stream_id: int
    started_ns: int
    frames: list[bytes]
    """Its frames; none when it is too long."""
    length: int = 0
    """Of its frames."""
    too_long: bool = False

    @property
    def ends_stream(self) -> bool:
        return self.kind == HEADERS and bool(self.flags & END_STREAM)

    def fragments(self) -> tuple[bytes, bytes] | None:
        """Return what PUSH_PROMISE has in front of its block, and the block; ``None`` when a frame contradicts itself."""
        frame = self.frames[0]
        begin, stop = FRAME_LENGTH, len(frame)
        if self.flags & PADDED:
            stop -= frame[begin] if begin < stop else 1
            begin += 1
        promised = begin
        if self.kind == PUSH_PROMISE:
            begin += 4
        elif self.flags & WITH_PRIORITY:
            begin += 5
        if begin > stop:
            return None
        parts = [frame[begin:stop], *(frame[FRAME_LENGTH:] for frame in self.frames[1:])]
        return frame[promised:begin], b"".join(parts)


@dataclass(slots=True)
class _Control:
    """A frame that belongs to no message."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    """At most `CONTROL_LIMIT` bytes of it."""
    length: int
    """Of the frame, header included, as far as it passed."""

    @property
    def name(self) -> str:
        return frame_name(self.kind)


class Http2Connection:
    """Both sides of one HTTP/2 connection.  Feed each side's bytes in the order they passed.

    Every method returns the events that became certain; an event of one side may be caused by bytes of the other
    (a reset ends both messages of its stream).

    ``upgraded_exchange``: the connection was HTTP/1.1 before (h2c, RFC 7540, 3.2), and the request that asked for the upgrade
    had this number there and the method ``upgraded_method``; it is answered on stream 1, and the next request's number is one
    higher.
    """

    def __init__(
        self, *, head_limit: int = HEAD_LIMIT, upgraded_exchange: int = 0, upgraded_method: bytes = b""
    ) -> None:
        self._streams = Streams()
        self._requests = _RequestReader(self._streams, Side.REQUEST, head_limit)
        self._responses = _ResponseReader(self._streams, Side.RESPONSE, head_limit)
        self._streams.losses = {Side.REQUEST: self._requests, Side.RESPONSE: self._responses}
        if upgraded_exchange:
            self._streams.begin_upgraded(upgraded_exchange, upgraded_method)

    def feed(self, side: Side, data: bytes, time_ns: int) -> list[AnyEvent]:
        """Take the next bytes of one side."""
        self._streams.now = time_ns
        self._reader(side).feed(data)
        return self._taken()

    def gap(self, side: Side, length: int, reason: GapReason, time_ns: int) -> list[AnyEvent]:
        """Take the news that the next ``length`` bytes of one side are missing."""
        self._streams.now = time_ns
        self._reader(side).gap(length, reason)
        return self._taken()

    def finish(self, side: Side, time_ns: int, *, why: str = "") -> list[AnyEvent]:
        """Take the end of one side.

        ``why`` is empty when the side was closed in an orderly way.  Otherwise it says why nothing follows (the recording
        ended, say).  Either way, what is open was cut short.
        """
        self._streams.now = time_ns
        self._reader(side).finish(why)
        return self._taken()

    def answers_ahead(self, data: bytes) -> bool:
        """Tell whether the server's next bytes begin an answer on a stream that the client, as far as was fed, did not open.

        Only said where both sides are understood so far: what was missed would be waited for in vain.
        """
        return self._responses.at_frame and self._responses.names_above(data, self._requests.newest)

    def _reader(self, side: Side) -> _RequestReader | _ResponseReader:
        return self._requests if side is Side.REQUEST else self._responses

    def _taken(self) -> list[AnyEvent]:
        events = self._streams.events
        self._streams.events = []
        return events


class _Reader(ABC):
    """One side: the frames, and what both kinds of messages share."""

    def __init__(self, streams: Streams, side: Side, head_limit: int) -> None:
        self._streams = streams
        self._side = side
        self._head_limit = head_limit
        self._headers = HeaderDecoder(head_limit)
        self._in_step: Final = self._frames  # one object, so that the state can be compared by identity
        self._state: Callable[[bytes, int], int] = self._start
        self._held = bytearray()
        self._need = 0  # held bytes are looked at again when they are so many
        self._seam = 0  # how much of the bytes at hand was held before
        self._held_ns = 0  # when the first of them passed
        # Losses.
        self.epoch = 0
        """How often the step was found again."""
        self._lost_why = ""
        self._heads_lost = False  # heads may have gone by unseen, of streams that are not known
        self._wary = 0  # frame headers that still have to be likely
        # The frame under way.
        self._left = 0  # bytes of it to come, padding aside
        self._padding = 0  # bytes of padding after them
        self._half = Half(0, ENDED)  # what the content of a DATA frame belongs to
        self._ending: Stream | None = None  # what ends with it
        self._unread_why = ""
        self._block: _Block | None = None
        self._last_of_block = False  # of a block that is only counted
        self._control: _Control | None = None  # one that is too long to be kept

    def missed(self, half: Half) -> bool:
        """Tell whether bytes of this message may have gone by unseen, in an unknown place."""
        return half.epoch != self.epoch or self._state == self._lost

    # --- Inputs ---

    def feed(self, data: bytes) -> None:
        self._seam = 0
        if self._held:
            held = self._held
            seam = len(held)
            held += data
            if len(held) < self._need:
                return
            data = bytes(held)
            held.clear()
            self._seam = seam
        pos = 0
        end = len(data)
        while pos < end:
            pos = self._state(data, pos)

    def gap(self, length: int, reason: GapReason) -> None:
        if length <= 0:
            return
        if self._state == self._content:
            length = self._content_gap(length, reason)
        else:
            self._lose_frame()
            if self._state == self._unread:
                missing = min(length, self._left)
                self._unparsed_gap(missing, reason)
                self._unread_over(missing)
                length -= missing
        if length:
            self._lose_step(MISSING)
            self._unparsed_gap(length, reason)

    def finish(self, why: str) -> None:
        self._drop_unit(why or "connection closed")
        self._streams.finish(self._side, why)
        self._lose_step(why or "connection closed")

    def _hold(self, data: bytes, pos: int, need: int) -> int:
        """Keep the rest until ``need`` bytes are there."""
        if pos >= self._seam:
            self._held_ns = self._streams.now
        self._held += data[pos:]
        self._need = need
        return len(data)

    # --- In and out of step ---

    @abstractmethod
    def _start(self, data: bytes, pos: int) -> int:
        """Take the first bytes of the side."""
        ...

    def _lost(self, data: bytes, pos: int) -> int:
        if pos not in (0, self._seam):
            self._unparsed(data[pos:], self._lost_why)
            return len(data)
        clear = self._clear_start(data, pos)
        if clear:
            return pos
        if clear is None:
            return self._hold(data, pos, len(data) - pos + 1)
        # What was held belongs to an earlier item; this one may be the start that was hoped for.
        reached = self._seam if pos < self._seam else len(data)
        self._unparsed(data[pos:reached], self._lost_why)
        return reached

    def _clear_start(self, data: bytes, pos: int) -> bool | None:
        """Get in step if frames begin here; return whether they do.  ``None``: that can't be told yet."""
        end = len(data)
        if end - pos < FRAME_LENGTH:
            likely = data[pos] <= LIKELY_LENGTH >> 16 and (end - pos < 4 or data[pos + 3] in LIKELY_FLAGS)
            return None if likely else False
        if data.startswith(_ZEROS, pos):
            return False
        reached = pos
        while end - reached >= FRAME_LENGTH:
            high, low, kind, flags, stream_id = FRAME.unpack_from(data, reached)
            length = high << 16 | low
            if not self._likely(length, kind, flags, stream_id):
                return False
            reached += FRAME_LENGTH + length
        self.epoch += 1
        self._wary = _WARY_FRAMES
        self._state = self._in_step
        return True

    def _likely(self, length: int, kind: int, flags: int, stream_id: int) -> bool:
        """Tell whether these are the contents of a frame header, and not something else that looks a little like it."""
        allowed = LIKELY_FLAGS.get(kind)
        if allowed is None or flags & ~allowed or ONE_SIDED.get(kind, self._side) is not self._side:
            return False
        if stream_id == 0:
            placed = kind in ON_NO_STREAM or kind in ON_EITHER
        elif stream_id % 2 or self._streams.find(stream_id):  # hardly anyone pushes any more
            placed = stream_id <= STREAM_MASK and kind not in ON_NO_STREAM
        else:
            placed = False
        if kind == SETTINGS:
            return placed and length <= LIKELY_SETTINGS and length % 6 == 0 and not (flags and length)
        if kind == DATA:
            return placed and length <= LIKELY_LENGTH
        if kind in EXACT_LENGTH:
            return placed and length == EXACT_LENGTH[kind]
        return placed and LEAST_LENGTH.get(kind, 0) <= length <= CONTROL_LIMIT

    def _give_up(self, data: bytes, pos: int, why: str) -> int:
        """Lose the step, and the rest of the item with it."""
        self._lose_step(why)
        self._unparsed(data[pos:], why)
        return len(data)

    def _lose_step(self, why: str) -> None:
        self._drop_unit(why)
        if self._state != self._lost:
            self._state = self._lost
            self._lost_why = why
        self._heads_lost = True
        self._headers.forget(why if why == _JOINED else f"{why} before")

    def _drop_unit(self, why: str) -> None:
        """Account for a frame or a header block that is under way and will not become whole."""
        if self._block:
            self._abandon_block(why)
        if self._control:
            self._emit_control(self._control, f"cut short: {why}")
            self._control = None
        if self._held:
            self._unparsed(bytes(self._held), self._lost_why if self._state == self._lost else why)
            self._held.clear()
        self._left = self._padding = 0

    def _lose_frame(self) -> None:
        """Give up the frame that a hole is about to hit, if there is one; what is left of it can be passed over."""
        if self._state == self._counted:
            left = self._left
            self._drop_unit(MISSING)
        elif self._state is self._in_step and len(self._held) >= FRAME_LENGTH:
            high, low, kind, flags, stream_id = FRAME.unpack_from(self._held)
            left = FRAME_LENGTH + (high << 16 | low) - len(self._held)
            self._drop_unit(MISSING)
            if kind in (HEADERS, DATA):
                self._lose_part(stream_id & STREAM_MASK, ends=bool(flags & END_STREAM))
            if kind in BLOCK_KINDS:
                self._heads_lost = True
                self._headers.forget(f"{MISSING} before")
        else:
            return
        self._left = left
        self._unread_why = MISSING
        self._state = self._unread

    def _lose_part(self, stream_id: int, *, ends: bool) -> None:
        """Note that a part of unknown size is missing from a message, perhaps its last."""
        stream = self._streams.open.get(stream_id)
        if stream:
            self._half_of(stream).epoch = -1
            if ends:
                self._streams.end_of_stream(stream, self._side)

    # --- Frames ---

    def _frames(self, data: bytes, pos: int) -> int:
        end = len(data)
        in_step = self._in_step
        while end - pos >= FRAME_LENGTH:
            high, low, kind, flags, stream_id = FRAME.unpack_from(data, pos)
            length = high << 16 | low
            if self._wary:
                if not self._likely(length, kind, flags, stream_id):
                    return self._give_up(data, pos, "no frame header")
                self._wary -= 1
            stream_id &= STREAM_MASK
            if self._block and (kind != CONTINUATION or stream_id != self._block.stream_id):
                self._abandon_block("header block without its end")
            if kind == DATA:
                pos = self._data_frame(data, pos, length, flags, stream_id)
                if self._state is not in_step and pos < end:
                    pos = self._content(data, pos)
            elif kind in BLOCK_KINDS:
                pos = self._block_frame(data, pos, length, kind, flags, stream_id)
            else:
                pos = self._control_frame(data, pos, length, kind, flags, stream_id)
            if self._state is not in_step:
                return pos
        return self._hold(data, pos, FRAME_LENGTH) if pos < end else pos

    def _unread(self, data: bytes, pos: int) -> int:
        """Pass over the rest of a frame that makes no sense, or lost some of it."""
        reached = min(len(data), pos + self._left)
        self._unparsed(data[pos:reached], self._unread_why)
        self._unread_over(reached - pos)
        return reached

    def _unread_over(self, length: int) -> None:
        self._left -= length
        if not self._left:
            self._state = self._in_step

    def _counted(self, data: bytes, pos: int) -> int:
        """Count the rest of a frame that is too long to be kept."""
        taken = min(len(data) - pos, self._left)
        self._left -= taken
        counted = self._block or self._control
        assert counted, "something is being counted"  # noqa: S101
        counted.length += taken
        if not self._left:
            self._counted_over()
        return pos + taken

    def _counted_over(self) -> None:
        self._state = self._in_step
        if self._control:
            control = self._control
            self._control = None
            self._act(control)
        elif self._block and self._last_of_block:
            self._end_block(self._block)

    # --- DATA ---

    def _data_frame(self, data: bytes, pos: int, length: int, flags: int, stream_id: int) -> int:
        """Take what stands in front of a DATA frame's content (RFC 9113, 6.1)."""
        content = pos + FRAME_LENGTH
        padding = 0
        if flags & PADDED and length:
            if len(data) == content:
                return self._hold(data, pos, FRAME_LENGTH + 1)
            length -= 1
            padding = min(data[content], length)
            content += 1
        stream = self._streams.find(stream_id)
        half = self._half = self._half_of(stream) if stream else Half(0, ENDED, self._why_unknown())
        if half.state >= OPEN:
            half.framing += content - pos
        else:
            self._unparsed(data[pos:content], half.why, half.exchange)
        self._ending = stream if flags & END_STREAM else None
        self._left = length - padding
        self._padding = padding
        if length:
            self._state = self._content
        else:
            self._end_data()
        return content

    def _content(self, data: bytes, pos: int) -> int:
        end = len(data)
        if self._left:
            reached = min(end, pos + self._left)
            self._left -= reached - pos
            self._piece(data[pos:reached])
            pos = reached
        if self._padding and pos < end:
            reached = min(end, pos + self._padding)
            self._padding -= reached - pos
            if self._half.state >= OPEN:
                self._half.framing += reached - pos
            else:
                self._unparsed(data[pos:reached], self._half.why, self._half.exchange)
            pos = reached
        if not (self._left or self._padding):
            self._end_data()
        return pos

    def _piece(self, data: bytes) -> None:
        half = self._half
        streams = self._streams
        half.last_ns = streams.now
        if half.state == OPEN:
            half.received += len(data)
            streams.events.append(BodyData(exchange=half.exchange, side=self._side, time_ns=streams.now, data=data))
        elif half.state == TUNNEL:
            streams.events.append(TunnelData(exchange=half.exchange, side=self._side, time_ns=streams.now, data=data))
        else:
            self._unparsed(data, half.why, half.exchange)

    def _content_gap(self, length: int, reason: GapReason) -> int:
        """Take a hole that begins within a DATA frame; return how much of it lies behind the frame."""
        half = self._half
        missing = min(length, self._left)
        self._left -= missing
        if missing:
            self._piece_gap(missing, reason)
        padding = min(length - missing, self._padding)
        self._padding -= padding
        if padding:
            if half.state >= OPEN:
                half.framing += padding
            else:
                self._unparsed_gap(padding, reason)
        if not (self._left or self._padding):
            self._end_data()
        return length - missing - padding

    def _piece_gap(self, length: int, reason: GapReason) -> None:
        half = self._half
        exchange, side, now = half.exchange, self._side, self._streams.now
        half.last_ns = now
        if half.state == OPEN:
            half.has_gap = True
            self._emit(BodyGap(exchange=exchange, side=side, time_ns=now, length=length, reason=reason))
        elif half.state == TUNNEL:
            self._emit(TunnelGap(exchange=exchange, side=side, time_ns=now, length=length, reason=reason))
        else:
            self._unparsed_gap(length, reason)

    def _end_data(self) -> None:
        self._state = self._in_step
        if self._ending:
            self._streams.end_of_stream(self._ending, self._side)

    # --- Header blocks ---

    def _block_frame(self, data: bytes, pos: int, length: int, kind: int, flags: int, stream_id: int) -> int:
        """Take a HEADERS, PUSH_PROMISE or CONTINUATION frame (RFC 9113, 6.2, 6.6, 6.10)."""
        block = self._block
        if kind == CONTINUATION and not block:
            self._headers.forget("an earlier CONTINUATION had no HEADERS")
            self._left = FRAME_LENGTH + length
            self._unread_why = "CONTINUATION without HEADERS"
            self._state = self._unread
            return pos
        length += FRAME_LENGTH
        too_long = length + (block.length if block else 0) > self._head_limit
        if not too_long and len(data) - pos < length:
            return self._hold(data, pos, length)
        if not block:
            started_ns = self._held_ns if pos < self._seam else self._streams.now
            block = self._block = _Block(kind, flags, stream_id, started_ns, [])
        if too_long:
            block.frames.clear()
            block.too_long = True
            self._left = length
            self._last_of_block = bool(flags & END_HEADERS)
            self._state = self._counted
            return pos
        block.frames.append(data[pos : pos + length])
        block.length += length
        if flags & END_HEADERS:
            self._end_block(block)
        return pos + length

    def _end_block(self, block: _Block) -> None:
        """Decode a whole header block and say what it is."""
        self._block = None
        fragments = None if block.too_long else block.fragments()
        if fragments:
            section = self._headers.decode(fragments[1])
        else:
            what = f"more than {self._head_limit} bytes" if block.too_long else "padding longer than its frame"
            section = FieldSection(notes=[f"headers not decodable: {what}"], first_unknown=True, corrupt=True)
            self._headers.forget("an earlier header block was not decodable")
        if self._wary and section.corrupt:  # no frame, after all
            self._lose_step("no header block")
            self._unparsed_block(block, "no header block")
        elif block.kind == PUSH_PROMISE:
            promised = fragments[0] if fragments else b""
            self._promise(block, int.from_bytes(promised) & STREAM_MASK, section)
        else:
            self._section(block, section)

    def _abandon_block(self, why: str) -> None:
        block = self._block
        assert block, "there is a block"  # noqa: S101
        self._block = None
        self._unparsed_block(block, why)
        self._headers.forget(f"{why} before")
        self._heads_lost = True
        if block.kind == HEADERS:
            self._lose_part(block.stream_id, ends=block.ends_stream)

    def _unexpected(self, block: _Block, why: str, stream: Stream | None = None) -> None:
        """Account for a header block that is no head and no trailers of a message that is seen."""
        self._unparsed_block(block, why, stream.exchange if stream else 0)
        if stream and block.ends_stream:
            self._streams.end_of_stream(stream, self._side)

    @abstractmethod
    def _section(self, block: _Block, section: FieldSection) -> None:
        """Take the fields of a HEADERS frame."""
        ...

    @abstractmethod
    def _half_of(self, stream: Stream) -> Half: ...

    def _trailers(self, block: _Block, section: FieldSection, stream: Stream) -> None:
        half = self._half_of(stream)
        half.framing += block.length
        half.last_ns = self._streams.now
        half.note = "; ".join(section.notes)
        if section.fields:
            headers = tuple(section.fields)
            now = self._streams.now
            self._emit(Trailers(exchange=half.exchange, side=self._side, time_ns=now, headers=headers))
        if block.ends_stream:
            self._streams.end_of_stream(stream, self._side)

    def _promise(self, block: _Block, promised_id: int, section: FieldSection) -> None:
        """Take the fields of a PUSH_PROMISE frame (RFC 9113, 8.4)."""
        streams = self._streams
        parent = streams.find(block.stream_id)
        fields = dict(section.fields)
        asked = shown(b" ".join(fields.get(name, b"?") for name in (b":method", b":path")))
        self._emit(
            ControlFrame(
                exchange=parent.exchange if parent else 0,
                side=self._side,
                time_ns=streams.now,
                kind="PUSH_PROMISE",
                length=block.length,
                detail=f"stream {promised_id}: {asked}",
            )
        )
        if self._side is Side.RESPONSE and promised_id and not streams.find(promised_id):
            streams.promise(promised_id, section, block.started_ns)

    # --- Other frames ---

    def _control_frame(self, data: bytes, pos: int, length: int, kind: int, flags: int, stream_id: int) -> int:
        kept = min(length, CONTROL_LIMIT)
        payload = pos + FRAME_LENGTH
        reached = payload + kept
        if reached > len(data):
            return self._hold(data, pos, FRAME_LENGTH + kept)
        control = _Control(kind, flags, stream_id, data[payload:reached], FRAME_LENGTH + kept)
        if kept == length:
            self._act(control)
        else:
            self._control = control
            self._left = length - kept
            self._state = self._counted
        return reached

    def _act(self, control: _Control) -> None:
        """Say what a frame says, and do what it does to messages."""
        payload = control.payload
        stream = self._emit_control(control, detail(control.kind, control.flags, control.payload))
        if control.kind == RST_STREAM and stream:
            self._streams.reset(stream, self._side, int.from_bytes(payload[:4]))
        elif control.kind == GOAWAY and len(payload) >= 8:
            self._streams.go_away(self._side, int.from_bytes(payload[:4]) & STREAM_MASK)

    def _emit_control(self, control: _Control, detail: str) -> Stream | None:
        stream = self._streams.find(control.stream_id) if control.stream_id else None
        self._emit(
            ControlFrame(
                exchange=stream.exchange if stream else 0,
                side=self._side,
                time_ns=self._streams.now,
                kind=control.name,
                length=control.length,
                detail=detail,
            )
        )
        return stream

    # --- Outputs ---

    def _emit(self, event: AnyEvent) -> None:
        self._streams.events.append(event)

    def _why_unknown(self) -> str:
        """Return what to say of frames on a stream that is not known."""
        return NOT_FROM_START if self._heads_lost else "no such stream"

    def _unparsed(self, data: bytes, why: str, exchange: int = 0) -> None:
        now = self._streams.now
        self._emit(Unparsed(exchange=exchange, side=self._side, time_ns=now, data=data, length=len(data), why=why))

    def _unparsed_block(self, block: _Block, why: str, exchange: int = 0) -> None:
        now = self._streams.now
        raw = b"".join(block.frames)
        self._emit(Unparsed(exchange=exchange, side=self._side, time_ns=now, data=raw, length=block.length, why=why))

    def _unparsed_gap(self, length: int, reason: GapReason) -> None:
        why = f"missing: {reason.value}"
        now = self._streams.now
        self._emit(Unparsed(exchange=0, side=self._side, time_ns=now, data=b"", length=length, why=why))


class _RequestReader(_Reader):
    """What the client sends."""

    _newest = 0  # stream that a request was seen on

    @property
    def newest(self) -> int | None:
        """The newest stream that the client opened; ``None`` when it may have opened some that were not seen."""
        return None if self._heads_lost or self._state in (self._start, self._lost) else self._newest

    def _half_of(self, stream: Stream) -> Half:
        return stream.request

    def _start(self, data: bytes, pos: int) -> int:
        begin = data[pos : pos + len(_PREFACE)]
        if begin == _PREFACE:
            self._state = self._in_step
            length = len(_PREFACE)
            now = self._streams.now
            self._emit(ControlFrame(exchange=0, side=self._side, time_ns=now, kind="preface", length=length))
            return pos + length
        if _PREFACE.startswith(begin):
            return self._hold(data, pos, len(begin) + 1)
        self._lose_step(_JOINED)
        return pos

    def _clear_start(self, data: bytes, pos: int) -> bool | None:
        begin = data[pos : pos + len(_PREFACE)]
        if _PREFACE.startswith(begin):
            if begin != _PREFACE:
                return None
            self._headers = HeaderDecoder(self._head_limit)
            self._state = self._start
            return True
        return super()._clear_start(data, pos)

    def _section(self, block: _Block, section: FieldSection) -> None:
        streams = self._streams
        stream = streams.find(block.stream_id)
        if stream:
            if stream.request.state == OPEN:
                self._trailers(block, section, stream)
            else:
                self._unexpected(block, stream.request.why, stream)
            return
        head = split_fields(section, REQUEST_PSEUDO)
        doubtful = self._heads_lost and not head.pseudo  # trailers have none, and new streams have higher numbers
        if not block.stream_id or (doubtful and (not section.first_unknown or block.stream_id < self._newest)):
            self._unexpected(block, self._why_unknown())
            return
        self._newest = max(self._newest, block.stream_id)
        stream = streams.begin(block.stream_id, request_seen=True)
        half = stream.request
        half.epoch = -1 if doubtful else self.epoch
        half.declared = head.content_length
        half.last_ns = streams.now
        stream.method = head.pseudo.get(b":method", b"")
        stream.protocol = head.pseudo.get(b":protocol", b"")
        self._emit(request_head(stream.exchange, head, streams.now, block.started_ns, length=block.length))
        if block.ends_stream:
            streams.end_of_stream(stream, self._side)


class _ResponseReader(_Reader):
    """What the server answers."""

    def _half_of(self, stream: Stream) -> Half:
        return stream.response

    @property
    def at_frame(self) -> bool:
        """Whether the next byte is the first of a frame."""
        return not self._held and self._state in (self._in_step, self._start)

    def names_above(self, data: bytes, newest: int | None) -> bool:
        """Tell whether whole frame headers of the bytes name a client's stream above the newest, in a head."""
        pos = 0
        while newest is not None and len(data) - pos >= FRAME_LENGTH:
            high, low, kind, _, stream_id = FRAME.unpack_from(data, pos)
            if kind == HEADERS and stream_id & 1 and stream_id & STREAM_MASK > newest:
                return True
            pos += FRAME_LENGTH + (high << 16 | low)
        return False

    def _start(self, data: bytes, pos: int) -> int:
        # RFC 9113, 3.4: the server's preface is a SETTINGS frame.
        begin = data[pos : pos + FRAME_LENGTH]
        if len(begin) == FRAME_LENGTH:
            high, low, kind, flags, stream_id = FRAME.unpack(begin)
            if kind == SETTINGS and not flags and self._likely(high << 16 | low, kind, flags, stream_id):
                self._state = self._in_step
                return pos
        elif begin[0] == 0 and (b"\x04\0\0\0\0\0").startswith(begin[3:]):
            return self._hold(data, pos, len(begin) + 1)
        self._lose_step(_JOINED)
        return pos

    def _section(self, block: _Block, section: FieldSection) -> None:
        stream = self._streams.find(block.stream_id)
        half = stream.response if stream else None
        if stream and half and half.state not in (IDLE, OPEN):
            self._unexpected(block, half.why, stream)
            return
        head = split_fields(section, RESPONSE_PSEUDO)
        if stream and half and half.state == OPEN:
            if not (half.uncertain and not half.framing and (head.pseudo or section.first_unknown)):
                self._trailers(block, section, stream)
                return
            half.epoch = -1  # the one before was an interim head, or else these are trailers
        doubtful = not head.pseudo and (half.epoch != self.epoch if half else self._heads_lost)
        if not block.stream_id or (doubtful and not section.first_unknown):  # these are trailers
            self._unexpected(block, self._why_unknown(), stream)
            return
        if not stream:
            stream = self._streams.begin(block.stream_id, request_seen=False)
        if doubtful:
            stream.response.epoch = -1
        stream.response.uncertain = section.first_unknown and not head.pseudo
        self._head(block, head, stream)

    def _head(self, block: _Block, head: Head, stream: Stream) -> None:
        streams = self._streams
        half = stream.response
        event = ResponseHead(
            exchange=half.exchange,
            side=self._side,
            time_ns=streams.now,
            status=head.status,
            reason=b"",
            version=VERSION,
            headers=tuple(head.headers),
            started_ns=block.started_ns,
            length=block.length,
            notes=tuple(head.notes),
        )
        self._emit(event)
        if head.pseudo:
            half.epoch = self.epoch  # nothing of the message came before this, but for interim heads
        if event.interim:
            half.state = IDLE  # also when one that was uncertain came before: it was no final one
        else:
            half.state = OPEN
            half.last_ns = streams.now
            bodiless = event.status == 304 or stream.method == b"HEAD"  # RFC 9110, 8.6
            half.declared = -1 if bodiless else head.content_length
            if stream.method == b"CONNECT" and 200 <= event.status < 300:
                streams.switch(stream)
        if block.ends_stream:
            streams.end_of_stream(stream, self._side)
