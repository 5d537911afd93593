"""Which protocol a flow speaks, and in which direction its requests go.

ALPN decides; where it does not, or when nobody knows who is the client, the first bytes do.  `OBSERVERS` maps protocols to what
understands them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from tlscap.http.events import AnyEvent, Side
from tlscap.http.http1 import Http1Connection, clear_start
from tlscap.http.http2 import Http2Connection
from tlscap.model import Data, Direction, Endpoint, Flow, Gap, GapReason, Role

_H2_PREFACE: Final = b"PRI * HTTP/2"  # RFC 9113, 3.4: enough of it to be sure
_H2_SETTINGS: Final = (
    b"\x04\x00\x00\x00\x00\x00"  # type, flags and stream of the server's first frame, after its length
)
_UNDECIDED_LIMIT: Final = 1 << 13  # bytes of a flow that wait for its role and protocol to become clear
_GUESS_SIZE: Final = 64

# What the first bytes of well-known protocols look like, whoever sends them.
_GREETINGS: Final = (
    ("smtp", re.compile(rb"220[ -][^\r\n]*(?:SMTP|smtp)|(?:EHLO|HELO|LHLO) ")),
    ("ftp", re.compile(rb"220[ -][^\r\n]*(?:FTP|ftp)")),
    ("imap", re.compile(rb"\* (?:OK|PREAUTH|BYE)[ \r]")),
    ("pop3", re.compile(rb"\+OK ")),
    ("ssh", re.compile(rb"SSH-[12]\.")),
    ("mqtt", re.compile(rb"\x10[\x80-\xff]{0,3}[\x00-\x7f]\x00(?:\x04MQTT|\x06MQIsdp)", re.DOTALL)),  # CONNECT
    ("amqp", re.compile(rb"AMQP[\x00-\x03]")),
    ("postgresql", re.compile(rb"\x00\x00..\x00\x03\x00[\x00-\x02](?:user|database|application_name)\x00", re.DOTALL)),
    ("redis", re.compile(rb"\*[0-9]{1,4}\r\n\$[0-9]{1,9}\r\n")),
    ("irc", re.compile(rb"(?:NICK|USER|CAP LS|PASS) [^\r\n]*\r?\n")),
    ("xmpp", re.compile(rb"(?:<\?xml[^>]*>\s*)?<stream:stream ")),
    ("nats", re.compile(rb"INFO \{|CONNECT \{")),
)


class Observer(Protocol):
    """What understands a protocol.  See `tlscap.http.events` for what it says."""

    def feed(self, side: Side, data: bytes, time_ns: int) -> list[AnyEvent]:
        """Take the next bytes of one side."""
        ...

    def gap(self, side: Side, length: int, reason: GapReason, time_ns: int) -> list[AnyEvent]:
        """Take the news that the next bytes of one side are missing."""
        ...

    def finish(self, side: Side, time_ns: int, *, why: str = "") -> list[AnyEvent]:
        """Take the end of one side; ``why`` is empty for an orderly one."""
        ...


OBSERVERS: Final[dict[str, Callable[[], Observer]]] = {
    "http/0.9": Http1Connection,  # the names that IANA registered for ALPN
    "http/1.0": Http1Connection,
    "http/1.1": Http1Connection,
    "h2": Http2Connection,
    "h2c": Http2Connection,
    "grpc-exp": Http2Connection,  # what gRPC's C core offered beside h2
}


class ProtocolChooser:
    """Holds the first items of a flow until they, or what the handshake said, decide.

    After `take` returned an observer, `held` are the items it must be fed, this one included.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.requests_go = Direction.OUTBOUND
        self.protocol = ""
        """Empty while it is not decided."""
        self.held: list[Data | Gap] = []
        self.forgotten: list[Data | Gap] = []
        """What the latest `take` decided that nobody will read."""
        self._guessed = ""

    def take(self, item: Data | Gap) -> Observer | None:
        """Take the next item; return the observer, once there is one."""
        self.forgotten = []
        self.held.append(item)
        return self._decide()

    def guess(self) -> str:
        """What the flow seems to speak, judged by its first bytes alone; empty when that can't be told."""
        return self._guessed or self._guess()

    def _decide(self) -> Observer | None:
        """Choose protocol and direction, if what is known suffices; return the observer, if there is one now."""
        flow = self._flow
        known = flow.role is not Role.UNKNOWN
        if known:
            self.requests_go = Direction.OUTBOUND if flow.role is Role.CLIENT else Direction.INBOUND
        if flow.alpn and (known or flow.alpn not in OBSERVERS):
            return self._settle(flow.alpn)
        begins = self._begins()
        verdicts = {direction: _is_h2(begin) for direction, begin in begins.items()}
        for direction, is_h2 in verdicts.items():
            if is_h2:
                if not known:
                    asks = begins[direction].startswith(_H2_PREFACE)
                    self.requests_go = direction if asks else direction.opposite
                return self._settle("h2")
        if not known:
            return self._decide_by_start_lines(begins)
        return None if set(verdicts.values()) == {None} else self._settle("http/1.1")

    def _decide_by_start_lines(self, begins: dict[Direction, bytes]) -> Observer | None:
        """Find out who asks; forget the bytes that can't become a start line."""
        hopeful = False
        for direction, begin in begins.items():
            for side in Side:
                clear = clear_start(begin, side)
                if clear:
                    self.requests_go = direction if side is Side.REQUEST else direction.opposite
                    return self._settle(self._flow.alpn or "http/1.1")
                hopeful |= clear is None
            hopeful |= not self._flow.alpn and _is_h2(begin) is None
        if not hopeful or sum(len(begin) for begin in begins.values()) > _UNDECIDED_LIMIT:
            self._forget()
        return None

    def _settle(self, protocol: str) -> Observer | None:
        self._guessed = self._guessed or self._guess()
        make = OBSERVERS.get(protocol)
        self.protocol = protocol
        if make:
            return make()
        self._forget()
        return None

    def _forget(self) -> None:
        self._guessed = self._guessed or self._guess()
        self.forgotten = self.held
        self.held = []

    def _guess(self) -> str:
        for begin in self._begins().values():
            for name, pattern in _GREETINGS:
                if pattern.match(begin[:_GUESS_SIZE]):
                    return name
        return ""

    def _begins(self) -> dict[Direction, bytes]:
        """Return the first bytes of each direction that waits for a decision."""
        begins: dict[Direction, bytes] = {}
        broken: set[Direction] = set()
        for item in self.held:
            if isinstance(item, Gap):
                broken.add(item.direction)
            elif item.direction not in broken:
                begins[item.direction] = begins.get(item.direction, b"") + item.data
        return begins


def server_of(flow: Flow, requests_go: Direction) -> Endpoint | None:
    """Return the end of a flow that answers."""
    return flow.remote if requests_go is Direction.OUTBOUND else flow.local


def _is_h2(begin: bytes) -> bool | None:
    """Tell whether a direction's first bytes are HTTP/2, the client's or the server's; ``None``: they may become it."""
    if begin.startswith(_H2_PREFACE):
        return True
    if _H2_PREFACE.startswith(begin):
        return None
    if begin[0] != 0:  # the length of a first SETTINGS frame: far below 64 KiB
        return False
    return begin[3:9] == _H2_SETTINGS if len(begin) >= 9 else None
