"""What all connections of a replay server share: the playbook, the counts, the limits."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from tlscap.http.events import Header
from tlscap.http.messages import field_values
from tlscap.replay.matching import kind_of_type
from tlscap.replay.nearest import summary
from tlscap.replay.recording import RecordedExchange
from tlscap.replay.serve.answers import Answer, UnservableError, answer_to, made
from tlscap.replay.serve.options import ServeOptions
from tlscap.replay.serve.playbook import Entry, Miss, Playbook
from tlscap.replay.serve.requests import Incoming, ReceivedRequest

Fallback = Callable[[ReceivedRequest], Awaitable[RecordedExchange | None]]
"""What is asked when nothing matches; what it returns is served."""

UNMATCHED: Final = 501
_MISSES_KEPT: Final = 1000
_GRPC_MESSAGE: Final = 4000  # bytes of a grpc-message: clients limit header fields to 8 KiB
_GRPC_SAFE: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"  # PROTOCOL-HTTP2.md: all that is printable but the percent sign
_UNIMPLEMENTED: Final = b"12"


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A request that was not answered from the recording."""

    summary: str
    """In a few words: ``POST https://example.org/login``."""
    explanation: str
    """Lines that say what is nearest and what differs."""
    details: dict[str, object]
    """The same for programs."""


class ReplayState:
    """Decides, and counts.  Lives in the server's thread; reading `served` and `unmatched` from others is safe."""

    def __init__(
        self,
        playbook: Playbook,
        options: ServeOptions,
        fallback: Fallback | None = None,
        on_unmatched: Callable[[Unmatched], None] | None = None,
        on_served: Callable[[ReceivedRequest, RecordedExchange], None] | None = None,
    ) -> None:
        self.playbook = playbook
        self.options = options
        self.fallback = fallback
        self._on_unmatched = on_unmatched
        self._on_served = on_served
        self.served = 0
        self.forwarded = 0
        """Requests that the fallback answered."""
        self.unmatched: list[Unmatched] = []
        self.unmatched_count = 0
        self.faults: list[BaseException] = []
        """Mistakes of this server, which cost a connection each."""
        self.bodies_left = options.bodies_limit

    def decide(self, request: ReceivedRequest) -> Answer | None:
        """Return the answer to a request that is whole; ``None``: ask `forward`."""
        entry = self.playbook.take(request)
        if entry:
            self._count(request, entry.exchange)
            return entry.answer
        return None if self.fallback else self._missed(request)

    def decide_early(self, request: ReceivedRequest, incoming: Incoming) -> Entry | None:
        """Return what answers a request that is still coming, or ``None``."""
        entry = self.playbook.early(request, incoming)
        if entry:
            self._count(request, entry.exchange)
        return entry

    async def forward(self, request: ReceivedRequest) -> Answer:
        """Ask the fallback."""
        try:
            exchange = await self.fallback(request) if self.fallback else None
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told, and the server goes on
            self.faults.append(error)
            return _told(502, f"The fallback failed: {type(error).__name__}: {error}")
        if exchange is None:
            return self._missed(request)
        try:
            answer = answer_to(exchange)
            if answer.is_websocket:
                raise UnservableError("a WebSocket has to be recorded first")
        except UnservableError as error:
            return _told(502, f"This answer can't be passed on: {error}")
        self.forwarded += 1
        # What was forwarded is over: nothing of it waits for the client.
        answer.early, answer.waits_for_end = False, True
        return answer

    def report_message(self, request: ReceivedRequest, answer: Answer, what: str, lines: list[str]) -> None:
        """Note how a message of a WebSocket differs from the recorded one."""
        exchange = answer.exchange
        self.report(
            Miss(
                summary(request),
                "A message is not as recorded",
                exchange.id if exchange else None,
                summary(exchange.request) if exchange else "",
                tuple(f"{what}: {line}" for line in lines),
                self.playbook.words,
            )
        )

    def report(self, miss: Miss) -> None:
        """Note what didn't match."""
        self.unmatched_count += 1
        found = Unmatched(miss.request, "\n".join(miss.lines()), miss.to_dict())
        if len(self.unmatched) < _MISSES_KEPT:
            self.unmatched.append(found)
        if self._on_unmatched:
            self._on_unmatched(found)

    def _count(self, request: ReceivedRequest, exchange: RecordedExchange) -> None:
        self.served += 1
        if self._on_served:
            self._on_served(request, exchange)

    def _missed(self, request: ReceivedRequest) -> Answer:
        miss = self.playbook.miss(request)
        self.report(miss)
        return unmatched_answer(request, miss)


def unmatched_answer(request: ReceivedRequest, miss: Miss) -> Answer:
    """Return the answer that says what is nearest, as the client reads it best."""
    mark = (b"x-tlscap-replay", b"unmatched")
    text = "\n".join(miss.lines()) + "\n"
    if trailers := grpc_trailers(request, miss):
        content_type = field_values(request.headers, b"content-type")[0]
        return made(200, ((b"content-type", content_type), *trailers, mark), b"")
    accept = b",".join(field_values(request.headers, b"accept")).lower()
    if b"json" in accept:
        body = json.dumps(miss.to_dict(), ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"
        return _with_body(UNMATCHED, b"application/json", body, mark)
    return _with_body(UNMATCHED, b"text/plain; charset=utf-8", text.encode("utf-8", "replace"), mark)


def grpc_trailers(request: ReceivedRequest, miss: Miss) -> tuple[Header, ...]:
    """Return how a gRPC call ends that nothing matches; empty: it is none."""
    if request.version != b"HTTP/2" or kind_of_type(request) != "grpc":
        return ()
    message = quote("\n".join(miss.lines()), safe=_GRPC_SAFE)[:_GRPC_MESSAGE]
    return ((b"grpc-status", _UNIMPLEMENTED), (b"grpc-message", _whole_escapes(message).encode()))


def refusal(status: int, why: str) -> Answer:
    """Return the answer to a request that is not even looked up."""
    return _with_body(status, b"text/plain; charset=utf-8", f"{why}\n".encode(), (b"connection", b"close"))


def _told(status: int, why: str) -> Answer:
    return _with_body(status, b"text/plain; charset=utf-8", f"{why}\n".encode("utf-8", "replace"))


def _with_body(status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> Answer:
    return made(status, ((b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more), body)


def _whole_escapes(text: str) -> str:
    """Leave out an escape that was cut."""
    at = text.rfind("%", max(len(text) - 2, 0))
    return text[:at] if at >= 0 else text


def json_line(event: str, **fields: Any) -> str:
    """Return one line of the log for programs."""
    return json.dumps({"event": event, **fields}, ensure_ascii=False, separators=(",", ":"))
