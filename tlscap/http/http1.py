"""A passive observer of HTTP/1.x (RFC 9112), and of 0.9 and 1.0 before it.

It watches both sides of one connection and says what passed.  It is no endpoint: nothing is refused, nothing
is answered, and malformed traffic is never an exception.  What cannot be HTTP comes out as `Unparsed`.

Strategy.  Each side has a reader.  A reader is always in one *state*, a method that looks at ``data[pos:]`` and

1. consumes some of it, emits events, perhaps changes the state, and returns the new position; or
2. returns ``_HOLD``, meaning "I need more": the rest is kept and comes back with the next bytes in front.

Only incomplete heads, chunk lines and answers to an upgrade are ever held, at most ``head_limit`` bytes; bodies
pass through as slices of what was fed, and an item that is all body is not copied.  Held bytes are looked at again
only when they are few or when their terminator arrived, so feeding byte by byte costs linear time.

In step, how the bytes were cut does not matter.  A reader that lost its step (a hole in a head or between chunks,
a body longer than announced, a connection joined in the middle) finds it again only where an *item begins* with
an unmistakable start line: a program seldom starts a write in the middle of a body with ``HTTP/1.1 200``.

Pairing.  Responses answer requests in order, which is what makes HEAD and CONNECT readable at all.  When the
response side lost its step it can't be known how many answers went by; as pipelining is all but extinct and loss is
not, the first response after that answers the *newest* request, and the older ones end without an answer.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tlscap.http.events import (
    BLANK_LINE,
    AnyEvent,
    BodyData,
    BodyGap,
    Header,
    MessageEnd,
    RequestHead,
    ResponseHead,
    Side,
    Trailers,
    TunnelData,
    TunnelEnd,
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.model import GapReason

HEAD_LIMIT: Final = 1 << 20
"""Longest start line + header block that is read.  Servers stop far earlier (Apache and nginx 8 KiB a line, Node 16 KiB
in all, IIS 16 KiB); an observer can afford to see what they refused."""

_CR: Final = 0x0D
_LF: Final = 0x0A

_HOLD: Final = -1
_SMALL: Final = 64  # held bytes that are simply looked at again with each feed

_LINE = re.compile(rb"\n")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_NEVER = re.compile(rb"(?!)")

# Start lines in step: as lenient as the field.  Bare LF, extra blanks, lower-case versions, no reason: all of it exists.
# No pattern can backtrack over a long line; each prefix pattern matches whatever its line pattern may still match.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110, 5.6.2
_METHOD = re.compile(_TOKEN + rb"{1,40}(?=[ \t])")
_METHOD_PREFIX = re.compile(_TOKEN + rb"{1,40}(?:[ \t]|\Z)")
_VERSION = re.compile(rb"HTTP/\d{1,3}(?:\.\d{1,3})?", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"(HTTP/\d{1,3}(?:\.\d{1,3})?|ICY)[ \t]+(\d{3})(?=\s)", re.IGNORECASE)  # ICY: shoutcast
_STATUS_PREFIX = re.compile(rb"HTTP/|ICY[ \t]|(?:H|HT|HTT|HTTP|I|IC|ICY)\Z", re.IGNORECASE)

# Start lines out of step: nothing but what every real implementation writes.
_CLEAR_REQUEST = re.compile(rb"[A-Z][A-Z-]{2,19} [^\x00-\x20\x7f]+ HTTP/1\.[01]\r?\n")
_CLEAR_REQUEST_PREFIX = re.compile(rb"[A-Z][A-Z-]{0,19}(?: [^\x00-\x20\x7f]*(?: [HTP/1.0\r]*)?)?\Z")
_CLEAR_STATUS = re.compile(rb"HTTP/1\.[01] [1-5]\d\d[ \r\n]")
_CLEAR_STATUS_EXAMPLE: Final = b"HTTP/1.1 200 "

_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r?\n", re.DOTALL)
_CHUNK_LINE_LIMIT: Final = 16384  # extensions included; llhttp's limit

_ASKED_LIMIT: Final = 1000  # more requests than that don't wait for answers: nobody sees the other side

_NO_BODY_STATUS: Final = frozenset({204, 304})  # RFC 9112, 6.3; 1xx never get this far
_FIELDS_THAT_MATTER: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"host"})


def clear_start(data: bytes, side: Side, pos: int = 0) -> bool | None:
    """Tell whether ``data[pos:]`` is unmistakably the start of a message; ``None``: it may still become one."""
    if side is Side.RESPONSE:
        begin = data[pos : pos + len(_CLEAR_STATUS_EXAMPLE)]
        # What is missing is taken from an example: a proper prefix is what an example completes.
        if not _CLEAR_STATUS.match(begin + _CLEAR_STATUS_EXAMPLE[len(begin) :]):
            return False
        return True if len(begin) == len(_CLEAR_STATUS_EXAMPLE) else None
    if _CLEAR_REQUEST.match(data, pos):
        return True
    return None if data.find(b"\n", pos) < 0 and _CLEAR_REQUEST_PREFIX.match(data, pos) else False


@dataclass(slots=True)
class _Asked:
    """A request that waits for its answer, as far as the answer's framing depends on it."""

    exchange: int
    method: bytes
    upgrade: bytes = b""
    simple: bool = False
    """Asked in HTTP/0.9."""


class Http1Connection:
    """Both sides of one HTTP/1.x connection.  Feed each side's bytes in the order they passed.

    Every method returns the events that became certain; an event of one side may be caused by bytes of the other
    (the answer to an upgrade decides what the client's next bytes are).
    """

    def __init__(self, *, head_limit: int = HEAD_LIMIT) -> None:
        self._events: list[AnyEvent] = []
        self._asked: deque[_Asked] = deque()
        self._exchanges = 0
        self._requests = _RequestReader(self, Side.REQUEST, head_limit)
        self._responses = _ResponseReader(self, Side.RESPONSE, head_limit)

    def feed(self, side: Side, data: bytes, time_ns: int) -> list[AnyEvent]:
        """Take the next bytes of one side."""
        self._reader(side).feed(data, time_ns)
        return self._taken()

    def gap(self, side: Side, length: int, reason: GapReason, time_ns: int) -> list[AnyEvent]:
        """Take the news that the next ``length`` bytes of one side are missing."""
        self._reader(side).gap(length, reason, time_ns)
        return self._taken()

    def finish(self, side: Side, time_ns: int, *, why: str = "") -> list[AnyEvent]:
        """Take the end of one side.

        ``why`` is empty when the side was closed in an orderly way, which is what ends a close-delimited body.  Otherwise
        it says why nothing follows (the recording ended, say), and such a body is incomplete.
        """
        self._reader(side).finish(time_ns, why)
        return self._taken()

    @property
    def idle(self) -> bool:
        """Whether a response that came now would answer no request that was seen."""
        return not self._asked and self._responses.between_messages

    def _reader(self, side: Side) -> _RequestReader | _ResponseReader:
        return self._requests if side is Side.REQUEST else self._responses

    def _taken(self) -> list[AnyEvent]:
        events = self._events
        self._events = []
        return events

    # --- What the readers tell each other ---

    def _emit(self, event: AnyEvent) -> None:
        self._events.append(event)

    def _new_exchange(self) -> int:
        self._exchanges += 1
        return self._exchanges

    def _ask(self, asked: _Asked) -> None:
        self._asked.append(asked)
        if len(self._asked) > _ASKED_LIMIT:
            self._responses.skip_answers(_ASKED_LIMIT, "response not seen")

    def _asked_by_next_answer(self) -> _Asked:
        """Return the request that the next response answers, still waiting; made up when none was seen."""
        if not self._asked:
            self._asked.append(_Asked(self._new_exchange(), method=b""))
        return self._asked[0]

    def _answered(self, asked: _Asked, protocol: str) -> None:
        """Note that the final response to ``asked`` has begun, and what it switches to, if anything."""
        self._asked.popleft()
        self._requests.answered(asked.exchange, protocol)


class _Reader(ABC):
    """One side: the states that both kinds of messages share."""

    def __init__(self, connection: Http1Connection, side: Side, head_limit: int) -> None:
        self._connection = connection
        self._emit = connection._emit
        self._side = side
        self._head_limit = head_limit
        self._state: Callable[[bytes, int], int] = self._start
        self._time_ns = 0
        self._held = bytearray()
        self._seam = 0  # how much of the bytes at hand was held before
        self._awaited = _LINE  # what ends the held unit
        self._messages = 0
        self._steady = True  # never out of step so far
        self._lost_why = ""
        # The message under way.
        self._exchange = 0
        self._line = b""  # its start line, until its head is complete
        self._started_ns = 0
        self._remaining = 0  # of the body, or of the chunk
        self._line_end_left = 0  # of the CRLF after a chunk
        self._framing_length = 0
        self._has_gap = False
        self._tunnel_exchange = 0
        self._tunnel_over = False

    # --- Inputs ---

    def feed(self, data: bytes, time_ns: int) -> None:
        if not data:
            return
        self._time_ns = time_ns
        self._seam = 0
        if self._held:
            joined = self._join(data)
            if joined is None:
                return
            data = joined
        pos = 0
        end = len(data)
        while pos < end:
            reached = self._state(data, pos)
            if reached == _HOLD:
                self._held += data[pos:]
                break
            pos = reached

    def gap(self, length: int, reason: GapReason, time_ns: int) -> None:
        if length <= 0:
            return
        self._time_ns = time_ns
        if self._state in (self._counted_body, self._chunk_data):
            missing = min(length, self._remaining)
            self._body_gap(missing, reason)
            length -= missing
            self._counted(missing)
        elif self._state == self._endless_body:
            self._body_gap(length, reason)
            return
        elif self._state == self._tunnel:
            self._emit(
                TunnelGap(
                    exchange=self._tunnel_exchange, side=self._side, time_ns=time_ns, length=length, reason=reason
                )
            )
            return
        if length and self._state == self._chunk_line_end:
            # Whole chunks are often written by one call, and one call's end is what a snap length cuts off.
            missing = min(length, self._line_end_left)
            self._framing_length += missing
            self._line_end_left -= missing
            length -= missing
            if not self._line_end_left:
                self._state = self._chunk_size
        if length:
            self._lose_step("bytes missing")
            self._unparsed_gap(length, reason)

    def finish(self, time_ns: int, why: str) -> None:
        if self._state == self._endless_body:
            self._end_message(complete=not why and not self._has_gap, why=why or "connection closed")
        elif self._state == self._tunnel and not self._tunnel_over:
            self._tunnel_over = True
            self._emit(TunnelEnd(exchange=self._tunnel_exchange, side=self._side, time_ns=self._time_ns, why=why))
        self._lose_step(why or "connection closed")

    @property
    def between_messages(self) -> bool:
        """Whether no message is under way."""
        return self._state in (self._start, self._lost) and not self._held

    # --- Held bytes ---

    def _join(self, data: bytes) -> bytes | None:
        """Return the held bytes and ``data`` as one, or ``None`` when that would not decide anything yet."""
        held = self._held
        self._seam = len(held)
        held += data
        undecided = _SMALL < len(held) <= self._head_limit
        if undecided and not self._awaited.search(held, max(0, self._seam - 2)):
            return None
        joined = bytes(held)
        held.clear()
        return joined

    def _hold(self, awaited: re.Pattern[bytes]) -> int:
        self._awaited = awaited
        return _HOLD

    # --- Between messages ---

    def _start(self, data: bytes, pos: int) -> int:
        if data[pos] in b"\r\n" and not self._blank_line_means_something():
            return self._blank_line(data, pos)
        newline = data.find(b"\n", pos)
        if newline < 0:
            # The prefix decides early, so that a binary protocol is not held back for want of a newline.
            if len(data) - pos <= self._head_limit and self._may_start(data, pos):
                self._started_ns = self._started_ns or self._time_ns
                return self._hold(_LINE)
            return self._no_start(data, pos)
        line = data[pos : newline + 1]
        if not self._accepts_start(line):
            return self._no_start(data, pos)
        self._started_ns = self._started_ns or self._time_ns
        self._line = line
        self._state = self._headers
        self._line_accepted()
        return newline + 1

    def _blank_line(self, data: bytes, pos: int) -> int:
        if data[pos] == _CR:
            if pos + 1 == len(data):
                return self._hold(_LINE)
            if data[pos + 1] != _LF:
                return self._no_start(data, pos)
        reached = data.index(b"\n", pos) + 1
        self._unparsed(data[pos:reached], BLANK_LINE)
        return reached

    def _blank_line_means_something(self) -> bool:
        return False

    @abstractmethod
    def _may_start(self, data: bytes, pos: int) -> bool: ...

    @abstractmethod
    def _accepts_start(self, line: bytes) -> bool: ...

    def _line_accepted(self) -> None:
        """React to a start line that is all of its message (HTTP/0.9)."""

    def _no_start(self, data: bytes, pos: int) -> int:
        """React to bytes between messages that are none."""
        return self._give_up(data, pos, "no message start")

    # --- Out of step ---

    def _give_up(self, data: bytes, pos: int, why: str) -> int:
        """Lose the step, and the rest of the item with it."""
        self._lose_step(why)
        self._unparsed(data[pos:], why)
        return len(data)

    def _lost(self, data: bytes, pos: int) -> int:
        if pos not in (0, self._seam):
            self._unparsed(data[pos:], self._lost_why)
            return len(data)
        clear = clear_start(data, self._side, pos)
        if clear:
            self._state = self._start
            return pos
        if clear is None and len(data) - pos <= self._head_limit:
            self._started_ns = self._started_ns or self._time_ns
            return self._hold(_LINE)
        # What was held belongs to an earlier item; this one may be the start that was hoped for.
        self._started_ns = 0
        reached = self._seam if pos < self._seam else len(data)
        self._unparsed(data[pos:reached], self._lost_why)
        return reached

    def _lose_step(self, why: str) -> None:
        """End what is under way as incomplete; what was held of it, or of a head, is not parsed."""
        held = self._line + self._held
        self._held.clear()
        self._line = b""
        self._started_ns = 0
        self._steady = False
        if self._exchange:
            self._end_message(complete=False, why=why)
        if self._state not in (self._tunnel, self._lost):
            self._state = self._lost
            self._lost_why = why
        if held:
            self._unparsed(held, self._lost_why)

    # --- Heads ---

    def _headers(self, data: bytes, pos: int) -> int:
        reached = self._block_end(data, pos)
        length = len(self._line) + (len(data) if reached == _HOLD else reached) - pos
        if length > self._head_limit:
            return self._give_up(data, pos, "head too long")
        if reached == _HOLD:
            return self._hold(_BLANK_LINE)
        headers, notes = parse_headers(data[pos:reached])
        line = self._line
        self._line = b""
        self._head(line, headers, notes, length)
        self._started_ns = 0
        return reached

    @staticmethod
    def _block_end(data: bytes, pos: int) -> int:
        """Return where the block of fields that begins at ``pos`` ends, its blank line included, or ``_HOLD``."""
        if data[pos] == _LF:
            return pos + 1
        if data.startswith(b"\r\n", pos):
            return pos + 2
        blank = _BLANK_LINE.search(data, pos)
        return blank.end() if blank else _HOLD

    @abstractmethod
    def _head(self, line: bytes, headers: tuple[Header, ...], notes: list[str], length: int) -> None: ...

    def _begin_message(self, exchange: int) -> None:
        self._exchange = exchange
        self._messages += 1
        self._framing_length = 0
        self._has_gap = False

    def _end_message(self, *, complete: bool, why: str) -> None:
        self._emit(
            MessageEnd(
                exchange=self._exchange,
                side=self._side,
                time_ns=self._time_ns,
                complete=complete,
                why=why,
                framing_length=self._framing_length,
            )
        )
        self._exchange = 0
        self._state = self._start

    def _begin_body(self, fields: dict[bytes, list[bytes]], notes: list[str]) -> Callable[[], None]:
        """Choose the body's framing (RFC 9112, 6.3), add what is odd to ``notes``, return what enters the body's state."""
        codings = _transfer_codings(fields.get(b"transfer-encoding", ()))
        values = [value.strip() for line in fields.get(b"content-length", ()) for value in line.split(b",")]
        if codings:
            if values:
                notes.append("Content-Length beside Transfer-Encoding")
            if codings[-1] == b"chunked":
                return self._enter_chunks
            notes.append("Transfer-Encoding does not end in chunked")
            return self._enter_endless
        if values:
            if len(set(values)) > 1:
                notes.append(f"conflicting Content-Length: {b', '.join(values).decode('latin-1')}")
            elif len(values) > 1:
                notes.append("repeated Content-Length")
            if values[0].isdigit() and len(values[0]) <= 18:
                self._remaining = int(values[0])
                return self._enter_counted
            notes.append(f"Content-Length is no number: {values[0].decode('latin-1')}")
        return self._enter_unannounced

    def _enter_chunks(self) -> None:
        self._state = self._chunk_size

    def _enter_endless(self) -> None:
        self._state = self._endless_body

    def _enter_counted(self) -> None:
        self._state = self._counted_body
        if not self._remaining:
            self._end_message(complete=True, why="length")

    @abstractmethod
    def _enter_unannounced(self) -> None: ...

    # --- Bodies ---

    def _counted_body(self, data: bytes, pos: int) -> int:
        reached = min(len(data), pos + self._remaining)
        self._body(data[pos:reached])
        self._counted(reached - pos)
        return reached

    def _chunk_data(self, data: bytes, pos: int) -> int:
        return self._counted_body(data, pos)  # a state of its own: the same bytes, but what follows differs

    def _counted(self, length: int) -> None:
        self._remaining -= length
        if self._remaining:
            return
        if self._state == self._chunk_data:
            self._line_end_left = 2
            self._state = self._chunk_line_end
        else:
            self._end_body("length")

    def _end_body(self, why: str) -> None:
        self._end_message(complete=not self._has_gap, why="bytes missing" if self._has_gap else why)

    def _endless_body(self, data: bytes, pos: int) -> int:
        self._body(data[pos:])
        return len(data)

    def _chunk_size(self, data: bytes, pos: int) -> int:
        newline = data.find(b"\n", pos)
        reached = newline + 1 if newline >= 0 else len(data)
        if reached - pos > _CHUNK_LINE_LIMIT:
            return self._give_up(data, pos, "chunk line too long")
        if newline < 0:
            return self._hold(_LINE)
        size = _CHUNK_SIZE.match(data, pos, reached)
        if not size:
            return self._give_up(data, pos, "no chunk size")
        self._framing_length += reached - pos
        self._remaining = int(size[1], 16)
        self._state = self._chunk_data if self._remaining else self._trailers
        return reached

    def _chunk_line_end(self, data: bytes, pos: int) -> int:
        byte = data[pos]
        if byte == _LF:
            self._state = self._chunk_size
        elif byte == _CR and self._line_end_left == 2:
            self._line_end_left = 1
        else:
            return self._give_up(data, pos, "chunk longer than announced")
        self._framing_length += 1
        return pos + 1

    def _trailers(self, data: bytes, pos: int) -> int:
        reached = self._block_end(data, pos)
        length = (len(data) if reached == _HOLD else reached) - pos
        if length > self._head_limit:
            return self._give_up(data, pos, "trailers too long")
        if reached == _HOLD:
            return self._hold(_BLANK_LINE)
        self._framing_length += length
        headers, _ = parse_headers(data[pos:reached])
        if headers:
            self._emit(Trailers(exchange=self._exchange, side=self._side, time_ns=self._time_ns, headers=headers))
        self._end_body("last chunk")
        return reached

    # --- After HTTP ---

    def _enter_tunnel(self, exchange: int, protocol: str) -> None:
        held = self._line + self._held
        self._held.clear()
        self._line = b""
        self._state = self._tunnel
        self._tunnel_exchange = exchange
        self._emit(Upgraded(exchange=exchange, side=self._side, time_ns=self._time_ns, protocol=protocol))
        if held:
            self._tunnel(held, 0)

    def _tunnel(self, data: bytes, pos: int) -> int:
        self._emit(TunnelData(exchange=self._tunnel_exchange, side=self._side, time_ns=self._time_ns, data=data[pos:]))
        return len(data)

    # --- Outputs ---

    def _body(self, data: bytes) -> None:
        self._emit(BodyData(exchange=self._exchange, side=self._side, time_ns=self._time_ns, data=data))

    def _body_gap(self, length: int, reason: GapReason) -> None:
        self._has_gap = True
        self._emit(
            BodyGap(exchange=self._exchange, side=self._side, time_ns=self._time_ns, length=length, reason=reason)
        )

    def _unparsed(self, data: bytes, why: str) -> None:
        self._emit(Unparsed(exchange=0, side=self._side, time_ns=self._time_ns, data=data, length=len(data), why=why))

    def _unparsed_gap(self, length: int, reason: GapReason) -> None:
        why = f"missing: {reason.value}"
        self._emit(Unparsed(exchange=0, side=self._side, time_ns=self._time_ns, data=b"", length=length, why=why))


class _RequestReader(_Reader):
    """What the client sends."""

    _upgrade_asked = 0  # the exchange whose answer decides what the client's next bytes are
    _upgrade_granted: tuple[int, str] | None = None  # what begins when the request under way is over

    def gap(self, length: int, reason: GapReason, time_ns: int) -> None:
        self.go_on_without_answer()
        super().gap(length, reason, time_ns)

    def finish(self, time_ns: int, why: str) -> None:
        self.go_on_without_answer()
        super().finish(time_ns, why)

    def answered(self, exchange: int, protocol: str) -> None:
        """Learn that the final response to ``exchange`` has begun: ``protocol`` is what it switches to, or empty."""
        if not protocol:
            if exchange == self._upgrade_asked:
                self.go_on_without_answer()
        elif self._exchange:
            self._upgrade_granted = exchange, protocol
        else:
            self._enter_tunnel(exchange, protocol)

    def _may_start(self, data: bytes, pos: int) -> bool:
        return _METHOD_PREFIX.match(data, pos) is not None

    def _accepts_start(self, line: bytes) -> bool:
        return self._split(line) is not None

    def _split(self, line: bytes) -> tuple[bytes, bytes, bytes] | None:
        """Return method, target and version of a request line, or ``None``.  A simple request has no version."""
        method = _METHOD.match(line)
        if not method:
            return None
        rest = line[method.end() :].strip()
        target, _, version = rest.rpartition(b" ")
        if target and _VERSION.fullmatch(version):
            return method[0], target.rstrip(), version
        # RFC 1945, 5.1: a simple request is the only one of its connection.
        if method[0] == b"GET" and rest.startswith(b"/") and b" " not in rest and not self._messages and self._steady:
            return method[0], rest, b""
        return None

    def _line_accepted(self) -> None:
        line = self._line
        split = self._split(line)
        if split and not split[2]:  # no version, hence no headers to wait for
            self._line = b""
            self._head(line, (), [], len(line))
            self._started_ns = 0

    def _head(self, line: bytes, headers: tuple[Header, ...], notes: list[str], length: int) -> None:
        split = self._split(line)
        assert split, "the line was accepted"  # noqa: S101
        method, target, version = split
        fields = _fields_that_matter(headers)
        hosts = len(fields.get(b"host", ()))
        if hosts != 1 and version == b"HTTP/1.1":
            notes.append("more than one Host field" if hosts else "no Host field")  # RFC 9112, 3.2
        self._begin_message(self._connection._new_exchange())
        exchange = self._exchange
        enter_body = self._begin_body(fields, notes)
        upgrade = b", ".join(fields.get(b"upgrade", ()))
        self._emit(
            RequestHead(
                exchange=exchange,
                side=self._side,
                time_ns=self._time_ns,
                method=method,
                target=target,
                version=version or b"HTTP/0.9",
                headers=headers,
                started_ns=self._started_ns,
                length=length,
                notes=tuple(notes),
            )
        )
        if upgrade or method == b"CONNECT":
            self._upgrade_asked = exchange
        self._connection._ask(_Asked(exchange, method, upgrade, simple=not version))
        enter_body()

    def _enter_unannounced(self) -> None:
        self._end_message(complete=True, why="no body")

    def _end_message(self, *, complete: bool, why: str) -> None:
        exchange = self._exchange
        super()._end_message(complete=complete, why=why)
        if self._upgrade_granted:
            self._enter_tunnel(*self._upgrade_granted)
        elif exchange == self._upgrade_asked:
            self._state = self._await_answer

    def _await_answer(self, data: bytes, pos: int) -> int:
        if len(data) - pos <= self._head_limit:
            return self._hold(_NEVER)
        self._upgrade_asked = 0
        self._state = self._start
        return pos

    def go_on_without_answer(self) -> None:
        """Take it that an upgrade was refused: what waits, and what follows, is HTTP."""
        self._upgrade_asked = 0
        if self._state == self._await_answer:
            self._state = self._start
            held = bytes(self._held)
            self._held.clear()
            self.feed(held, self._time_ns)


class _ResponseReader(_Reader):
    """What the server answers."""

    _uncertain = False  # answers may have gone by unseen

    def finish(self, time_ns: int, why: str) -> None:
        super().finish(time_ns, why)
        self._time_ns = time_ns
        self.skip_answers(0, f"no response: {why}" if why else "no response")
        self._connection._requests.go_on_without_answer()

    def _may_start(self, data: bytes, pos: int) -> bool:
        return _STATUS_PREFIX.match(data, pos) is not None

    def _accepts_start(self, line: bytes) -> bool:
        return _STATUS_LINE.match(line) is not None

    def _blank_line_means_something(self) -> bool:
        asked = self._connection._asked
        return bool(asked) and asked[0].simple

    def _no_start(self, data: bytes, pos: int) -> int:
        connection = self._connection
        first = not self._messages and self._steady and connection._requests._steady
        if not (first and connection._asked):
            return super()._no_start(data, pos)
        # The first answer to the first request, and no status line: an HTTP/0.9 reply, which lasts until the close.
        asked = connection._asked_by_next_answer()
        self._begin_message(asked.exchange)
        self._emit(
            ResponseHead(
                exchange=asked.exchange,
                side=self._side,
                time_ns=self._time_ns,
                status=0,
                reason=b"",
                version=b"HTTP/0.9",
                headers=(),
                started_ns=self._started_ns or self._time_ns,
            )
        )
        self._started_ns = 0
        connection._answered(asked, "")
        self._enter_endless()
        return pos

    def _lose_step(self, why: str) -> None:
        super()._lose_step(why)
        self._uncertain = True

    def skip_answers(self, keep: int, why: str) -> None:
        """Let the oldest requests go without an answer, until ``keep`` are left."""
        asked = self._connection._asked
        while len(asked) > keep:
            exchange = asked.popleft().exchange
            self._emit(MessageEnd(exchange=exchange, side=self._side, time_ns=self._time_ns, complete=False, why=why))

    def _head(self, line: bytes, headers: tuple[Header, ...], notes: list[str], length: int) -> None:
        status_line = _STATUS_LINE.match(line)
        assert status_line, "the line was accepted"  # noqa: S101
        version, status = status_line[1], int(status_line[2])
        if self._uncertain:
            self.skip_answers(1, "response not seen")
            self._uncertain = False
        asked = self._connection._asked_by_next_answer()
        fields = _fields_that_matter(headers)
        interim = 100 <= status < 200 and status != 101
        protocol = "" if interim else _switched_protocol(asked, status, fields)
        enter_body: Callable[[], None] | None = None
        if not interim:
            self._begin_message(asked.exchange)
            if not (protocol or asked.method == b"HEAD" or status in _NO_BODY_STATUS):
                enter_body = self._begin_body(fields, notes)
        self._emit(
            ResponseHead(
                exchange=asked.exchange,
                side=self._side,
                time_ns=self._time_ns,
                status=status,
                reason=line[status_line.end() :].strip(),
                version=version,
                headers=headers,
                started_ns=self._started_ns,
                length=length,
                notes=tuple(notes),
            )
        )
        if interim:
            self._state = self._start
            return
        if enter_body:
            enter_body()
        else:
            self._end_message(complete=True, why="no body")
        if protocol:
            self._enter_tunnel(asked.exchange, protocol)
        self._connection._answered(asked, protocol)

    def _enter_unannounced(self) -> None:
        self._enter_endless()


def _switched_protocol(asked: _Asked, status: int, fields: dict[bytes, list[bytes]]) -> str:
    """Return what the connection speaks after this final response, or an empty string: HTTP as before."""
    if status == 101:
        protocol = b", ".join(fields.get(b"upgrade", ())) or asked.upgrade or b"unknown"
        return protocol.decode("latin-1").lower()
    if asked.method == b"CONNECT" and 200 <= status < 300:
        return "tunnel"
    return ""


def _transfer_codings(values: Iterable[bytes]) -> list[bytes]:
    """Return the names in Transfer-Encoding; ``identity`` (withdrawn by RFC 7230) says nothing."""
    names = (coding.partition(b";")[0].strip().lower() for value in values for coding in value.split(b","))
    return [name for name in names if name and name != b"identity"]


def _fields_that_matter(headers: tuple[Header, ...]) -> dict[bytes, list[bytes]]:
    """Return the values of the fields that framing depends on, by lower-case name."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        key = name.lower().rstrip()
        if key in _FIELDS_THAT_MATTER:
            fields.setdefault(key, []).append(value)
    return fields


def parse_headers(block: bytes) -> tuple[tuple[Header, ...], list[str]]:
    """Split a block of fields, its blank line included; say what is odd about its lines."""
    notes: list[str] = []
    headers: list[Header] = []
    folded: list[bytes] = []  # the parts of the last value, when it spans lines
    lines = block.split(b"\n")
    if block.count(b"\r\n") != len(lines) - 1:
        notes.append("bare LF in the head")
    for line in lines[:-2]:
        line = line.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t") and headers:
            folded = folded or [headers[-1][1]]
            folded.append(line.strip(b" \t"))
            continue
        if folded:
            headers[-1] = headers[-1][0], b" ".join(folded)
            folded = []
            notes.append("folded header line")  # RFC 9112, 5.2
        name, colon, value = line.partition(b":")
        if not colon:
            notes.append("header line without a colon")
        headers.append((name, value.strip(b" \t")))
    if folded:
        headers[-1] = headers[-1][0], b" ".join(folded)
        notes.append("folded header line")
    return tuple(headers), list(dict.fromkeys(notes))
