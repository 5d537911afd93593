"""Exchanges as a HAR file (HTTP Archive 1.2), for browsers and other tools.

The specification is https://w3c.github.io/web-performance/specs/HAR/Overview.html.  `HarWriter` writes entry by entry.
What the format asks for and how it is met:

- Times.  ``startedDateTime`` is when the request's first byte passed, less the TLS handshake if the exchange had to
  wait for one, which is ``connect`` as well as ``ssl``.  ``send`` lasts to the request's last byte, ``wait`` to the
  answer's first, ``receive`` to its last.  ``blocked`` and ``dns`` are not known: -1.
- Text.  Names and values of fields, and reasons, are decoded as Latin-1, so that every byte can be had back.  In a URL,
  bytes outside of ASCII are percent-encoded.  A query's and a cookie's values are UTF-8 by convention, with U+FFFD for
  what is none.
- Bodies are decoded (content and transfer codings).  A body that is text in the charset of its type, else in UTF-8, and
  that gives the same bytes again, is ``text``; any other is base64.  HAR 1.2 has ``encoding`` for responses only;
  requests get it as HAR 1.3 proposes and other tools do.  What was cut or is missing is said in ``comment``.
- HTTP/2 is ``HTTP/2``, without pseudo-header fields (which are the method and the URL); its heads are compressed, so
  their ``headersSize`` is -1, as with Chrome.
- An answer that was not seen has the status 0, as with browsers.  A request that was not seen has the method
  ``UNKNOWN`` and the URL of its server.  WebSocket exchanges have Chrome's ``_webSocketMessages``.

Fields of our own, as the format allows: ``_id``, ``_process``, ``_flow`` (as in `tlscap.export.jsonl`), ``_complete``,
``_problems``; if there are any, ``_interim`` (1xx statuses) and ``_trailers``.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import unquote_plus

from tlscap.export.jsonl import client_and_server, flow_to_dict, process_to_dict
from tlscap.http.bodies import Body, text_of
from tlscap.http.events import Header, RequestHead, ResponseHead, Side
from tlscap.http.exchanges import Exchange, Message
from tlscap.http.messages import AppMessage, field_values

UNKNOWN_METHOD: Final = "UNKNOWN"
"""The method of a request that was not seen."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_NO_TYPE: Final = "x-unknown"  # what Chrome writes

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_AFTER_SCHEME = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9._~!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_UNPRINTABLE = re.compile(r"[^!-~]|#")
_SURROGATE = re.compile("[\ud800-\udfff]")

_OPCODES: Final = {"continuation": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
_TEXT_OPCODE: Final = 1
_CLOSE_OPCODE: Final = 8


class HarWriter:
    """Writes a HAR file as text.  ``write`` takes it piece by piece; it is ASCII, and valid JSON after `finish`."""

    def __init__(self, write: Callable[[str], object], *, creator_version: str) -> None:
        self._write = write
        self._entries = 0
        creator = {"name": "tlscap", "version": creator_version}
        # Firefox insists on pages.
        write(f'{{"log":{{"version":"1.2","creator":{_json(creator)},"pages":[],"entries":[')

    def add(
        self,
        exchange: Exchange,
        request_body: Body | None = None,
        response_body: Body | None = None,
        messages: Iterable[AppMessage] = (),
        left_out: int = 0,
    ) -> None:
        """Write one exchange, as it is now; ``left_out`` is how many messages were not kept."""
        entry = exchange_to_entry(exchange, request_body, response_body, messages, left_out)
        self._write(("," if self._entries else "") + "\n" + _json(entry))
        self._entries += 1

    def finish(self) -> None:
        """Write the end."""
        self._write("\n]}}\n")


def exchange_to_entry(
    exchange: Exchange,
    request_body: Body | None = None,
    response_body: Body | None = None,
    messages: Iterable[AppMessage] = (),
    left_out: int = 0,
) -> dict[str, Any]:
    """Return an exchange as an entry of a HAR file; bodies and messages (of a WebSocket) as far as they were kept."""
    problems = list(exchange.problems)
    is_websocket = exchange.upgraded_to == "websocket"
    url = _url(exchange, problems, is_websocket=is_websocket)
    handshake_ns = max(0, exchange.handshake_ns or 0)
    entry: dict[str, Any] = {
        "startedDateTime": _time(exchange.started_ns - handshake_ns),
        **_timings(exchange, handshake_ns if exchange.handshake_ns is not None else -1),
        "request": _request(exchange, url, request_body),
        "response": _response(exchange, response_body),
        "cache": {},
        "connection": str(exchange.flow.id),
    }
    if address := _server_address(exchange):
        entry["serverIPAddress"] = address
    if is_websocket:
        entry["_resourceType"] = "websocket"
        entry["_webSocketMessages"] = _websocket_messages(messages, problems)
        if left_out:
            problems.append(f"websocket: {left_out} messages left out")
    if exchange.interim:
        entry["_interim"] = list(exchange.interim)
    entry["_id"] = exchange.id
    entry["_complete"] = exchange.complete
    entry["_problems"] = problems
    entry["_process"] = process_to_dict(exchange.flow.process)
    entry["_flow"] = flow_to_dict(exchange.flow)
    return entry


# --- Times ---


def _timings(exchange: Exchange, handshake_ns: int) -> dict[str, Any]:
    """Return ``time`` and ``timings``, in milliseconds."""
    request, response = exchange.request, exchange.response
    send_ns = wait_ns = receive_ns = 0
    if request:
        sent_ns = max(request.first_ns, request.last_ns)
        if response:  # an answer may come before all of the request was sent
            sent_ns = max(request.first_ns, min(sent_ns, response.first_ns))
            wait_ns = max(0, response.first_ns - sent_ns)
        send_ns = sent_ns - request.first_ns
    if response:
        receive_ns = max(0, response.last_ns - response.first_ns)
    connect = _milliseconds(handshake_ns) if handshake_ns >= 0 else -1
    return {
        "time": _milliseconds(max(0, handshake_ns) + send_ns + wait_ns + receive_ns),
        "timings": {
            "blocked": -1,
            "dns": -1,
            "connect": connect,
            "ssl": connect,
            "send": _milliseconds(send_ns),
            "wait": _milliseconds(wait_ns),
            "receive": _milliseconds(receive_ns),
        },
    }


def _milliseconds(duration_ns: int) -> float:
    return duration_ns / 1e6


def _time(time_ns: int) -> str:
    """Return a time in RFC 3339 with milliseconds, cut."""
    return _date(_EPOCH + timedelta(milliseconds=max(0, time_ns) // 1_000_000))


def _date(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- URLs and addresses ---


def _url(exchange: Exchange, problems: list[str], *, is_websocket: bool) -> str:
    """Return a URL that every importer can read; tell when that is not the one that was asked for."""
    request = exchange.request
    if request is None:
        return f"https://{_flow_authority(exchange)}/"
    text = exchange.url
    if "://" not in text.partition("?")[0]:  # CONNECT names a host and a port
        text = f"https://{text}/"
    scheme, authority, rest = _split_url(text, _text(request.head.target))
    if is_websocket:
        scheme = {"https": "wss", "http": "ws"}.get(scheme.lower(), scheme)
    if not (_is_authority(authority) and _SCHEME.fullmatch(scheme)):
        scheme = scheme if _SCHEME.fullmatch(scheme) else "https"
        problems.append(f"the URL is not valid: {exchange.url}")
        authority = _flow_authority(exchange)
    return f"{scheme}://{authority}{_UNPRINTABLE.sub(lambda found: f'%{ord(found[0]) & 0xFF:02X}', rest)}"


def _split_url(url: str, target: str) -> tuple[str, str, str]:
    """Return a URL's scheme, its authority, and what follows, which is the request's target if that is a path."""
    scheme, _, rest = url.partition("://")
    if target.startswith("/") and rest.endswith(target):  # whatever the Host field holds
        return scheme, rest.removesuffix(target), target
    match = _AFTER_SCHEME.match(rest)
    authority, rest = match.groups() if match else ("", "")
    return scheme, authority, "/" + rest if rest.startswith("#") else rest


def _flow_authority(exchange: Exchange) -> str:
    flow = exchange.flow
    _, server = client_and_server(flow)
    port = f":{server.port}" if server and server.port != 443 else ""
    if _is_authority(flow.sni) and ":" not in flow.sni:
        return flow.sni + port
    return (
        f"{f'[{server.address}]' if ':' in server.address else server.address}{port}" if server else "unknown.invalid"
    )


def _is_authority(text: str) -> bool:
    """Tell whether browsers take this for a host, and perhaps a port (https://url.spec.whatwg.org/#host-parsing)."""
    match = _AUTHORITY.fullmatch(text)
    if not match or int(match["port"] or 0) > 0xFFFF:
        return False
    host = match["host"].lower()
    labels = host.removesuffix(".").split(".")
    if host.startswith("[") or _NUMERIC_LABEL.fullmatch(labels[-1]):
        return _ip_address(host.strip("[]")) is not None
    try:
        for label in labels:
            if label.startswith("xn--"):
                label.removeprefix("xn--")[:64].encode().decode("punycode")
    except UnicodeError:
        return False
    return True


def _server_address(exchange: Exchange) -> str:
    _, server = client_and_server(exchange.flow)
    address = _ip_address(server.address.partition("%")[0]) if server else None
    return str(address or "")


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# --- Messages ---


def _request(exchange: Exchange, url: str, body: Body | None) -> dict[str, Any]:
    message = exchange.request
    if message is None:
        return {"method": UNKNOWN_METHOD, "url": url, "queryString": [], **_nothing(_version(exchange))}
    head = message.head
    result = {
        "method": _text(head.method),
        "url": url,
        "queryString": _pairs(url.partition("?")[2], "&", unquote_plus),
        "cookies": _cookies(message),
        **_message(message),
    }
    if message.body_size or message.gap_bytes:
        result["postData"] = {
            "mimeType": _content_type(message).decode("latin-1"),
            "params": [],  # text or params, never both: and the text is what was sent
            **(_content(body, message) if body else {"text": ""}),
        }
    return result


def _response(exchange: Exchange, body: Body | None) -> dict[str, Any]:
    message = exchange.response
    if message is None:
        return {
            "status": 0,
            "statusText": "",
            "content": {"size": 0, "mimeType": _NO_TYPE},
            "redirectURL": "",
            "_transferSize": 0,
            **_nothing(_version(exchange)),
        }
    head = message.head
    location = message.values(b"location")
    content: dict[str, Any] = {"mimeType": _content_type(message).decode("latin-1") or _NO_TYPE}
    if body:
        content["size"] = body.size
        if message.encodings and body.complete:
            content["compression"] = body.size - body.transferred
        content |= _content(body, message)
    else:
        content["size"] = -1 if message.encodings else message.body_size + message.gap_bytes
    return {
        "status": head.status,
        "statusText": _text(head.reason),
        "cookies": _set_cookies(message),
        "content": content,
        "redirectURL": _text(location[0]) if location else "",
        "_transferSize": head.length + message.body_size + message.gap_bytes,
        **_message(message),
    }


def _nothing(version: str) -> dict[str, Any]:
    """Return what is said of both kinds of messages, of one that was not seen."""
    return {"httpVersion": version, "cookies": [], "headers": [], "headersSize": -1, "bodySize": -1}


def _message(message: Message[RequestHead] | Message[ResponseHead]) -> dict[str, Any]:
    """Return what is said of both kinds of messages."""
    head = message.head
    is_http1 = head.version != b"HTTP/2"
    result: dict[str, Any] = {
        "httpVersion": _text(head.version),
        "headers": _fields(message.headers),
        "headersSize": head.length if is_http1 else -1,
        "bodySize": message.body_size + message.gap_bytes,
    }
    if message.trailers:
        result["_trailers"] = _fields(message.trailers)
    return result


def _version(exchange: Exchange) -> str:
    """Return the version of a message that was not seen: the other's."""
    message = exchange.request or exchange.response
    return _text(message.head.version) if message else ""


def _fields(headers: tuple[Header, ...]) -> list[dict[str, str]]:
    return [{"name": _text(name), "value": _text(value)} for name, value in headers]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


# --- Bodies ---


def _content(body: Body, message: Message[RequestHead] | Message[ResponseHead]) -> dict[str, str]:
    """Return ``text``, and ``encoding`` and ``comment`` if they are needed."""
    partial = body.truncated or not body.complete
    text = None if body.encoded else text_of(body.data, _content_type(message), cut=partial)
    result = {"text": base64.b64encode(body.data).decode(), "encoding": "base64"} if text is None else {"text": text}
    if comment := "; ".join(_remarks(body)):
        result["comment"] = comment
    return result


def _remarks(body: Body) -> list[str]:
    remarks = [f"first {len(body.data)} of {body.size} bytes"] if body.truncated else []
    if body.encoded:
        remarks.append(f"as transferred: {body.note}")
    elif body.note:
        remarks.append(body.note)
    if body.gaps:
        first = body.gaps[0]
        more = f" and {len(body.gaps) - 1} more holes" if len(body.gaps) > 1 else ""
        remarks.append(f"{body.missing} bytes missing: at {first.offset} ({first.reason.value}){more}")
    return remarks


def _content_type(message: Message[RequestHead] | Message[ResponseHead]) -> bytes:
    return next(iter(message.values(b"content-type")), b"")


# --- Queries and cookies ---


def _pairs(text: str, separator: str, decoded: Callable[[str], str]) -> list[dict[str, str]]:
    """Split ``a=1&b=2``."""
    parts = [part.partition("=") for part in text.split(separator) if part]
    return [{"name": decoded(name), "value": decoded(value)} for name, _, value in parts]


def _cookies(message: Message[RequestHead]) -> list[dict[str, str]]:
    """Read Cookie fields as leniently as servers do; a part without a name is a value (RFC 6265bis, 5.8.3)."""
    parts = (part.strip() for line in field_values(message.headers, b"cookie") for part in _utf8(line).split(";"))
    return [_cookie(part) for part in parts if part]


def _cookie(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    return {"name": name.strip(), "value": value.strip()} if equals else {"name": "", "value": text.strip()}


def _set_cookies(message: Message[ResponseHead]) -> list[dict[str, Any]]:
    """Read Set-Cookie fields as browsers do (RFC 6265, 5.2): of an attribute that is there twice, the last counts."""
    cookies = []
    for line in field_values(message.headers, b"set-cookie"):
        first, *attributes = _utf8(line).split(";")
        cookie: dict[str, Any] = {**_cookie(first), "httpOnly": False, "secure": False}
        max_age = ""
        for attribute in attributes:
            name, _, value = (part.strip() for part in attribute.partition("="))
            match name.lower():
                case "path" | "domain" as key:
                    cookie[key] = value
                case "httponly":
                    cookie["httpOnly"] = True
                case "secure":
                    cookie["secure"] = True
                case "expires":
                    if expires := _expires(value):
                        cookie["expires"] = expires
                case "max-age":
                    max_age = value
        if re.fullmatch(r"-?[0-9]+", max_age):  # RFC 6265, 5.3: it has precedence
            cookie["expires"] = _after(message.first_ns, max_age)
        cookies.append(cookie)
    return cookies


def _expires(text: str) -> str:
    """Return a date in RFC 3339, or an empty string: it is none."""
    try:
        moment = parsedate_to_datetime(text)
        return _date(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, TypeError, IndexError):
        return ""


def _after(time_ns: int, max_age: str) -> str:
    seconds = -1 if max_age.startswith("-") else int(max_age[:13])
    if seconds <= 0:
        return _date(_EPOCH)
    try:
        return _date(_EPOCH + timedelta(seconds=max(0, time_ns) // 1_000_000_000 + seconds))
    except OverflowError:
        return _date(_LAST)


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- WebSocket ---


def _websocket_messages(messages: Iterable[AppMessage], problems: list[str]) -> list[dict[str, Any]]:
    """Return messages as Chrome does: text as it is, everything else as base64; times in seconds since 1970."""
    result = []
    for message in messages:
        opcode = _OPCODES.get(message.kind, -1)
        if opcode < 0:
            problems.append(f"websocket: {message.length} bytes left out: {'; '.join(message.notes) or message.kind}")
            continue
        data = message.data
        if opcode == _CLOSE_OPCODE and (code := message.name.partition(" ")[0]).isdecimal():
            data = (int(code) & 0xFFFF).to_bytes(2, "big") + data
        text = _utf8(data) if opcode == _TEXT_OPCODE else base64.b64encode(data).decode()
        kind = "send" if message.side is Side.REQUEST else "receive"
        result.append({"type": kind, "time": message.time_ns / 1e9, "opcode": opcode, "data": text})
        if notes := "; ".join(message.notes):
            problems.append(f"websocket: message {len(result)}: {notes}")
    return result


def _json(value: object) -> str:
    """Return a value as JSON in ASCII.  Names of processes may hold bytes that are no text: they become U+FFFD."""
    return json.dumps(_clean(value), separators=(",", ":"))


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value
