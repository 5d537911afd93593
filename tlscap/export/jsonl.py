"""Exchanges as JSON, one object a line (``tlscap inspect --json``).

Every key is always there, but for the last two, which are there when they were asked for (``--messages``); ``null`` says that
it is not known, or does not apply.  Keys may be added, never renamed.
``docs/exchange.schema.json`` is the same as a JSON Schema::

    id            int     1.. in the order of the requests; `--body ID` takes it
    number        int     which exchange of its connection it is: 1.. in the order in which they began
    started       str     RFC 3339, UTC, nanoseconds: "2026-11-20T18:00:00.123456789Z"
    duration      float   seconds, from the request's first byte to the response's last; or null
    wait          float   seconds, from the request's last byte to the response's first: the server's time, and a round trip;
                          negative when the answer did not wait for all of the request; or null
    handshake     float   seconds of the TLS handshake that this exchange had to wait for; null on a connection in use
    protocol      str     "http/1.1", "http/1.0", "http/0.9", "h2"
    method, url   str     or null when the request was not seen
    status        int     or null when there was no response; 0 for an HTTP/0.9 reply, which has no status
    interim       [int]   1xx statuses before the response
    upgraded_to   str     what the connection spoke afterwards ("websocket", "tunnel"), or null
    tunnel        {...}   or null: request, response: bytes that passed then, by whose they were
    messages      {...}   or null: request, response: how many WebSocket messages these were
    grpc          {...}   or null: how a gRPC call ended: code (-1 when it was no number), name ("NOT_FOUND"), message
    request       {...}   or null: method, target, version,
                          scheme      str   HTTP/2: as sent; or null
                          authority   str   the same
                          pushed      bool  promised by the server, not sent by the client
                          and, like the response,
                          headers     [[name, value], ...] in the order and case in which they were sent;
                                      HTTP/2: without those whose names begin with a colon
                          trailers    the same, after the body
                          body_size   bytes as transferred: dechunked, content codings not undone
                          gap_bytes   bytes of the body that passed but are not stored
                          complete    bool
    response      {...}   or null: version, status, reason (empty in HTTP/2) and the same
    complete      bool    every byte of both was seen
    problems      [str]   what is odd or missing, for people
    process       {...}   pid, comm, exe, cmdline [str], uid; empty or null when not known
    flow          {...}   id, local and remote {address, port} or null, client and server (the same two, by role; null when
                          the role is unknown), role "client" | "server" | "unknown", sni, alpn (or null),
                          tuple_source "syscall" | "imported" | "placeholder", transport "tcp" | "udp"
    message_list  [{...}] the messages in both bodies or in the tunnel (WebSocket, gRPC, server-sent events, newline-delimited
                          JSON, multipart), as they ended; all kinds of them, so pings, too, which ``messages`` does not count:
                          side        str   "request" | "response"
                          kind        str   what it is to its protocol (`tlscap.http.messages.AppMessage`): "text", "message",
                                            "event", "line", "part", "ping", ...; "unparsed": bytes that are no message
                          started     str   when its first byte passed, like that of the exchange
                          ended       str   the same of its last
                          size        int   bytes of its payload that passed, before decompression, without framing
                          text        str   the payload, decompressed; or null when it is not text, or of a binary kind
                          base64      str   the same where text is null, else null
                          name        str   an event's type, a part's name, a close frame's code; or null
                          filename    str   what a part calls its file; or null
                          headers     [[name, value], ...] of a part; trailers of gRPC-Web; an event's id and retry
                          complete    bool  all of it was seen
                          gap_bytes   int   bytes of it that passed but are not stored
                          notes       [str] what is odd about it, for people; also whether not all of it was kept
    messages_left_out     int   how many others found no room in memory

Text that came as bytes is decoded as Latin-1, so that ``value.encode("latin-1")`` gives back exactly what was sent; the
exceptions are ``grpc``, whose message is UTF-8 by definition, and ``text``, which is UTF-8 or what a part's Content-Type says.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tlscap.http.bodies import text_of
from tlscap.http.events import Header, RequestHead, ResponseHead, Side
from tlscap.http.exchanges import Exchange, Message
from tlscap.http.grpc import grpc_status
from tlscap.http.messages import AppMessage, field_values
from tlscap.model import Endpoint, Flow, Process, Role

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_TEXT_KINDS: Final = frozenset({"text", "close", "event", "fields", "comment", "line", "trailers"})
"""Kinds of messages whose payload is text by definition; that of a part is what its fields say."""


def exchange_to_line(
    exchange: Exchange, messages: Iterable[AppMessage] | None = None, messages_left_out: int = 0
) -> str:
    """Return the exchange as one line of ASCII, without a newline; with its messages where some are given, even if none."""
    result = exchange_to_dict(exchange)
    if messages is not None:
        result["message_list"] = list(map(message_to_dict, messages))
        result["messages_left_out"] = messages_left_out
    return json.dumps(result, separators=(",", ":"))


def exchange_to_dict(exchange: Exchange) -> dict[str, Any]:
    """Return what this module's docstring describes."""
    request, response = exchange.request, exchange.response
    return {
        "id": exchange.id,
        "number": exchange.number,
        "started": rfc3339(exchange.started_ns),
        "duration": _seconds(exchange.duration_ns),
        "wait": _seconds(exchange.wait_ns),
        "handshake": _seconds(exchange.handshake_ns),
        "protocol": exchange.protocol,
        "method": _text(request.head.method) if request else None,
        "url": exchange.url if request else None,
        "status": response.head.status if response else None,
        "interim": list(exchange.interim),
        "upgraded_to": exchange.upgraded_to or None,
        "tunnel": _by_side(exchange.tunnel),
        "messages": _by_side(exchange.message_counts),
        "grpc": _grpc(response) if response else None,
        "request": _request(request) if request else None,
        "response": _response(response) if response else None,
        "complete": exchange.complete,
        "problems": list(exchange.problems),
        "process": process_to_dict(exchange.flow.process),
        "flow": flow_to_dict(exchange.flow),
    }


def message_to_dict(message: AppMessage) -> dict[str, Any]:
    """Return what the docstring says of one of ``message_list``."""
    text = None
    if message.kind == "part":
        text = text_of(message.data, next(iter(field_values(message.headers, b"content-type")), b""))
    elif message.kind in _TEXT_KINDS:
        text = text_of(message.data, b"text/plain")
    return {
        "side": message.side.value,
        "kind": message.kind,
        "started": rfc3339(message.started_ns),
        "ended": rfc3339(message.time_ns),
        "size": message.size,
        "text": text,
        "base64": b64encode(message.data).decode() if text is None else None,
        "name": message.name or None,
        "filename": message.filename or None,
        "headers": _headers(message.headers),
        "complete": message.complete,
        "gap_bytes": message.missing,
        "notes": list(message.notes),
    }


def rfc3339(time_ns: int) -> str:
    """Return a time in UTC with all its nanoseconds, which `datetime` alone can't hold."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _request(message: Message[RequestHead]) -> dict[str, Any]:
    head = message.head
    return {
        "method": _text(head.method),
        "target": _text(head.target),
        "version": _text(head.version),
        "scheme": _text(head.scheme) or None,
        "authority": _text(head.authority) or None,
        "pushed": head.pushed,
        **_message(message),
    }


def _response(message: Message[ResponseHead]) -> dict[str, Any]:
    head = message.head
    return {"version": _text(head.version), "status": head.status, "reason": _text(head.reason), **_message(message)}


def _message(message: Message[RequestHead] | Message[ResponseHead]) -> dict[str, Any]:
    return {
        "headers": _headers(message.headers),
        "trailers": _headers(message.trailers),
        "body_size": message.body_size,
        "gap_bytes": message.gap_bytes,
        "complete": message.complete,
    }


def _headers(headers: tuple[Header, ...]) -> list[list[str]]:
    return [[_text(name), _text(value)] for name, value in headers]


def _grpc(response: Message[ResponseHead]) -> dict[str, Any] | None:
    status = grpc_status(response.headers, response.trailers)
    return {"code": status.code, "name": status.name, "message": status.message} if status else None


def _by_side(numbers: dict[Side, int]) -> dict[str, int] | None:
    return {side.value: numbers.get(side, 0) for side in Side} if numbers else None


def process_to_dict(process: Process) -> dict[str, Any]:
    """Return what the docstring says of ``process``."""
    return {
        "pid": process.pid,
        "comm": process.comm,
        "exe": process.exe,
        "cmdline": list(process.cmdline),
        "uid": process.uid if process.uid >= 0 else None,
    }


def flow_to_dict(flow: Flow) -> dict[str, Any]:
    """Return what the docstring says of ``flow``."""
    client, server = client_and_server(flow)
    return {
        "id": flow.id,
        "local": _endpoint(flow.local),
        "remote": _endpoint(flow.remote),
        "client": _endpoint(client),
        "server": _endpoint(server),
        "role": flow.role.name.lower(),
        "sni": flow.sni or None,
        "alpn": flow.alpn or None,
        "tuple_source": flow.tuple_source.value,
        "transport": flow.transport,
    }


def client_and_server(flow: Flow) -> tuple[Endpoint | None, Endpoint | None]:
    """Return the two ends by role; ``None`` for what is not known."""
    return {
        Role.CLIENT: (flow.local, flow.remote),
        Role.SERVER: (flow.remote, flow.local),
        Role.UNKNOWN: (None, None),
    }[flow.role]


def _endpoint(endpoint: Endpoint | None) -> dict[str, Any] | None:
    return {"address": endpoint.address, "port": endpoint.port} if endpoint else None


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e9


def _text(data: bytes) -> str:
    return data.decode("latin-1")
