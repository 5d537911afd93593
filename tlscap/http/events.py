"""What an HTTP observer says, in order, about the bytes of one connection.

An observer (`tlscap.http.http1`, `tlscap.http.http2`) pairs requests with responses, so every
event names its ``exchange``: a number that is unique in the connection, or 0 for bytes that belong to none.

The events account for every byte.  The sum, over all events of one side, of

    head ``length`` + ``len(data)`` + gap ``length`` + `Unparsed.length` + `MessageEnd.framing_length`
    + `ControlFrame.length`

is exactly the number of bytes that were fed, or reported missing, on that side.

The order within a message is: head, body and gaps, trailers, end.  An interim response (1xx) is a head alone.
A `MessageEnd` without a head says that the message is known to exist but was not seen.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tlscap.model import GapReason

Header = tuple[bytes, bytes]
"""A field's name and value, as sent: the order, the case and every byte of the value are kept."""

BLANK_LINE = "blank line between messages"
"""The ``why`` of `Unparsed` bytes that are harmless (RFC 9112, 2.2)."""


class Side(enum.Enum):
    """Which half of a conversation: what the client sends, or what the server answers."""

    REQUEST = "request"
    RESPONSE = "response"

    @property
    def opposite(self) -> Side:
        """The other one."""
        return Side.RESPONSE if self is Side.REQUEST else Side.REQUEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Common to all: whose bytes these were, and when the last of them passed."""

    exchange: int
    side: Side
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead(Event):
    """A request line and its header fields."""

    method: bytes
    target: bytes
    version: bytes
    """``HTTP/1.1`` as sent; ``HTTP/0.9`` for a request line without a version."""
    headers: tuple[Header, ...]
    started_ns: int
    """When its first byte passed."""
    scheme: bytes = b""
    """HTTP/2: ``:scheme``."""
    authority: bytes = b""
    """HTTP/2: ``:authority``.  In HTTP/1 it stands in the target or in the Host field."""
    protocol: bytes = b""
    """HTTP/2: ``:protocol`` of an extended CONNECT (RFC 8441)."""
    pushed: bool = False
    """HTTP/2: promised by the server rather than sent by the client; its bytes are a `ControlFrame` of the response side."""
    length: int = 0
    notes: tuple[str, ...] = ()
    """What is odd about it, in words for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead(Event):
    """A status line and its header fields."""

    status: int
    """0 for an HTTP/0.9 reply, which has none."""
    reason: bytes
    version: bytes
    headers: tuple[Header, ...]
    started_ns: int
    length: int = 0
    notes: tuple[str, ...] = ()

    @property
    def interim(self) -> bool:
        """Whether the real answer is still to come (RFC 9110, 15.2).  101 is an answer."""
        return 100 <= self.status < 200 and self.status != 101


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyData(Event):
    """Bytes of a body, without the framing around them."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyGap(Event):
    """Bytes of a body that passed but are not stored."""

    length: int
    reason: GapReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailers(Event):
    """Header fields after a chunked body.  Their bytes count as framing."""

    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEnd(Event):
    """A message is over: ``why`` says how that was known, or what cut it short."""

    complete: bool
    why: str
    framing_length: int = 0
    """Bytes around the body: chunk sizes and trailers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unparsed(Event):
    """Bytes outside of any message: no HTTP, or HTTP that a hole made unreadable."""

    data: bytes
    """Empty when the bytes are missing."""
    length: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFrame(Event):
    """Bytes that say something about the connection or a stream, not about a message's content."""

    kind: str
    """``SETTINGS``, ``PING``, ``RST_STREAM``, ... as RFC 9113 names them; ``preface``; ``unknown 0x2a``."""
    length: int
    """Of the whole frame, header included."""
    detail: str = ""
    """What it says, in words for people; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded(Event):
    """From here on this side speaks ``protocol``; ``tunnel`` after CONNECT.  Emitted once for each side."""

    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelData(Event):
    """Bytes after `Upgraded`."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelGap(Event):
    """Bytes after `Upgraded` that passed but are not stored."""

    length: int
    reason: GapReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnd(Event):
    """One side of what `Upgraded` began is over; ``why`` is empty when it was closed in an orderly way."""

    why: str = ""


AnyEvent = (
    RequestHead
    | ResponseHead
    | BodyData
    | BodyGap
    | Trailers
    | MessageEnd
    | Unparsed
    | ControlFrame
    | Upgraded
    | TunnelData
    | TunnelGap
    | TunnelEnd
)
