"""Exchanges as a flow file of mitmproxy (version 21 of its flow format: mitmproxy 11 and 12), for ``mitmdump -nr`` and mitmweb.

Bodies are as they were transferred, with their content codings; header fields in order, repeated and in their case.  HTTP/2 is
``HTTP/2.0``, its ``:authority`` the flow's authority.  WebSocket messages are whole and decompressed; pings are not among them, for
mitmproxy keeps none.  The connection that mitmproxy would have had to the client and the one to the server are both the recorded
one: the same addresses and times, in both places.  What is incomplete or odd is said in the flow's comment.

The same exchanges give the same bytes: ids are made of the exchanges' numbers.
"""

from __future__ import annotations

import uuid
from typing import Any, Final
from urllib.parse import urlsplit

from tlscap.http.events import Header, Side
from tlscap.model import Endpoint, Role
from tlscap.replay.recording import RecordedExchange, RecordedMessage, RecordedResponse, TunnelMessage

FLOW_FORMAT: Final = 21

_NAMESPACE: Final = uuid.UUID("5b4b7d0e-6f0e-5a6b-9f6d-746c73636170")  # of our own: any will do
_PORTS: Final = {"http": 80, "https": 443}
_NOT_CLOSED: Final = 1006  # the connection ended without a close frame (RFC 6455, 7.1.5)
_OPCODES: Final = {"text": 1, "binary": 2}


def flow_to_bytes(exchange: RecordedExchange) -> bytes:
    """Return an exchange as one flow of a flow file."""
    return dump(flow_to_state(exchange))


def flow_to_state(exchange: RecordedExchange) -> dict[str, Any]:
    """Return what mitmproxy calls the state of a flow."""
    request, response, flow = exchange.request, exchange.response, exchange.flow
    client, server = (flow.remote, flow.local) if flow.role is Role.SERVER else (flow.local, flow.remote)
    secure = request.scheme == "https"
    host, port = _origin(exchange, server)
    opened, closed = _seconds(flow.opened_ns), _seconds(flow.closed_ns or _last_ns(exchange))
    connection: dict[str, Any] = {
        "transport_protocol": "tcp",
        "error": None,
        "tls": secure,
        "certificate_list": [],
        "alpn": flow.alpn.encode("latin-1", "replace") or None,
        "alpn_offers": [],
        "cipher": None,
        "cipher_list": [],
        "tls_version": None,
        "sni": flow.sni or None,
        "timestamp_start": opened,
        "timestamp_end": closed,
        "timestamp_tls_setup": _seconds(flow.handshake_end_ns or flow.opened_ns) if secure else None,
    }
    return {
        "version": FLOW_FORMAT,
        "type": "http",
        "id": _id("exchange", exchange.id),
        "error": None if response else {"msg": "no response was recorded", "timestamp": closed},
        "client_conn": {
            **connection,
            "id": _id("client", flow.id),
            "peername": _address(client) or ["", 0],
            "sockname": _address(server) or ["", 0],
            "mitmcert": None,
            "proxy_mode": "regular",
        },
        "server_conn": {
            **connection,
            "id": _id("server", flow.id),
            "address": [host, port],
            "peername": _address(server),
            "sockname": _address(client),
            "timestamp_tcp_setup": opened,
            "via": None,
        },
        "intercepted": False,
        "is_replay": None,
        "marked": "",
        "metadata": {},
        "comment": "; ".join(exchange.problems),
        "timestamp_created": _seconds(request.started_ns),
        "backup": None,
        "request": {
            **_message(request),
            "method": request.method,
            "scheme": request.scheme.encode("latin-1", "replace"),
            "host": host,
            "port": port,
            # In HTTP/1.1 only requests to proxies have one.
            "authority": request.authority if request.version == b"HTTP/2" or request.method == b"CONNECT" else b"",
            "path": b"" if request.method == b"CONNECT" else _path(request.target),
        },
        "response": _response(response) if response else None,
        "websocket": _websocket(exchange, closed) if exchange.upgraded_to == "websocket" else None,
    }


def _message(message: RecordedMessage) -> dict[str, Any]:
    return {
        "http_version": b"HTTP/2.0" if message.version == b"HTTP/2" else message.version,
        "headers": _fields(message.headers),
        "content": message.body,
        "trailers": _fields(message.trailers) if message.trailers else None,
        "timestamp_start": _seconds(message.started_ns),
        "timestamp_end": _seconds(max(message.started_ns, message.ended_ns)),
    }


def _response(response: RecordedResponse) -> dict[str, Any]:
    return {**_message(response), "status_code": response.status, "reason": response.reason}


def _websocket(exchange: RecordedExchange, ended: float) -> dict[str, Any]:
    close: TunnelMessage | None = None
    messages = []
    for one in exchange.messages:
        if opcode := _OPCODES.get(one.kind):
            messages.append([opcode, one.side is Side.REQUEST, one.data, _seconds(one.time_ns), False, False])
        elif one.kind == "close":
            close = close or one
    return {
        "messages": messages,
        "closed_by_client": close.side is Side.REQUEST if close else None,
        "close_code": close.code if close else _NOT_CLOSED if exchange.flow.closed_ns else None,
        "close_reason": close.data.decode("utf-8", "replace") if close else None,
        "timestamp_end": _seconds(close.time_ns) if close else ended,
    }


def _fields(headers: tuple[Header, ...]) -> list[list[bytes]]:
    return [[name, value] for name, value in headers]


def _origin(exchange: RecordedExchange, server: Endpoint | None) -> tuple[str, int]:
    """Return the host and the port that were asked."""
    request = exchange.request
    try:
        parts = urlsplit(f"//{request.authority.decode('latin-1')}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    host = host or exchange.flow.sni or (server.address if server else "unknown.invalid")
    return host, port or _PORTS.get(request.scheme, 443)


def _path(target: bytes) -> bytes:
    """Return the target without a scheme and an authority, which requests to proxies have."""
    _, mark, rest = target.partition(b"://")
    if target.startswith((b"/", b"*")) or not mark:
        return target
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"


def _address(endpoint: Endpoint | None) -> list[str | int] | None:
    return [endpoint.address, endpoint.port] if endpoint else None


def _last_ns(exchange: RecordedExchange) -> int:
    return max(message.ended_ns for message in (exchange.request, exchange.response) if message)


def _seconds(time_ns: int) -> float:
    return time_ns / 1e9


def _id(kind: str, number: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{kind} {number}"))


def dump(value: Any) -> bytes:
    """Return a value as a typed netstring, as mitmproxy writes it: ``5:hello,``; text, its own addition, is ``5:hello;``.

    Raises `TypeError` for what has no form there.
    """
    match value:
        case None:
            kind, data = b"~", b""
        case bool():
            kind, data = b"!", b"true" if value else b"false"
        case int():
            kind, data = b"#", str(value).encode()
        case float():
            kind, data = b"^", repr(value).encode()
        case bytes():
            kind, data = b",", value
        case str():
            kind, data = b";", value.encode("utf-8", "replace")
        case list():
            kind, data = b"]", b"".join(map(dump, value))
        case dict():
            kind, data = b"}", b"".join(dump(key) + dump(inner) for key, inner in value.items())
        case _:
            raise TypeError(f"a tnetstring holds no {type(value).__name__}")
    return b"%d:%s%s" % (len(data), data, kind)
