"""Recordings made by hand, for tests of what is served and sent."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Final

from tlscap.http.decoding import content_codings
from tlscap.http.events import Header
from tlscap.model import Flow, Process
from tlscap.replay.recording import Piece, RecordedExchange, RecordedRequest, RecordedResponse, Recording, TunnelMessage
from tlscap.replay.serve import ReplayServer

PATIENCE_S: Final = 60
"""How long a client waits before a test fails: servers answer within milliseconds, but a busy machine may stand still for long."""

MS = 1_000_000
START_NS = 1_795_197_600_000_000_000
FLOW = Flow(1, Process(4711, 1), START_NS)


def connected(server: ReplayServer) -> socket.socket:
    """Return a plain connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def pieces(*bodies: bytes | tuple[bytes, int], start_ns: int = START_NS) -> list[Piece]:
    """Return pieces, a millisecond each; a tuple says how many bytes of the other side passed before."""
    made = []
    for number, body in enumerate(bodies):
        data, other = body if isinstance(body, tuple) else (body, 0)
        made.append(Piece(data, start_ns + number * MS, other))
    return made


def request(
    method: str = "GET",
    target: str = "/",
    *fields: Header,
    body: Sequence[Piece] | bytes = b"",
    authority: str = "example.org",
    version: bytes = b"HTTP/1.1",
    protocol: bytes = b"",
    ended_ns: int = START_NS,
) -> RecordedRequest:
    parts = pieces(body) if isinstance(body, bytes) and body else list(body) if not isinstance(body, bytes) else []
    return RecordedRequest(
        fields,
        version,
        START_NS,
        ended_ns,
        content_codings(fields),
        parts,
        method=method.encode(),
        target=target.encode(),
        scheme="https",
        authority=authority.encode(),
        protocol=protocol,
    )


def response(
    status: int = 200,
    *fields: Header,
    body: Sequence[Piece] | bytes = b"",
    version: bytes = b"HTTP/1.1",
    reason: bytes = b"",
    trailers: tuple[Header, ...] = (),
    started_ns: int = START_NS + MS,
    ended_ns: int = START_NS + 2 * MS,
) -> RecordedResponse:
    parts = pieces(body) if isinstance(body, bytes) and body else list(body) if not isinstance(body, bytes) else []
    return RecordedResponse(
        fields, version, started_ns, ended_ns, content_codings(fields), parts, trailers, status=status, reason=reason
    )


def recording(
    *talks: tuple[RecordedRequest, RecordedResponse],
    upgraded_to: str = "",
    messages: Iterable[TunnelMessage] = (),
) -> Recording:
    exchanges = []
    for number, (asked, answered) in enumerate(talks, 1):
        exchanges.append(
            RecordedExchange(
                number,
                number,
                FLOW,
                f"https://{asked.authority.decode()}{asked.target.decode('latin-1')}",
                "h2" if asked.version == b"HTTP/2" else "http/1.1",
                asked,
                answered,
                complete=True,
                problems=(),
                upgraded_to=upgraded_to,
                messages=list(messages),
            )
        )
    return Recording("made.tlscap.zst", exchanges, None, 0, 0)
