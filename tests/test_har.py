"""HAR files: valid by the specification, readable by browsers, and true."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import re
import struct
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import brotli
import hpack
import jsonschema
import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.export.har import HarWriter, exchange_to_entry
from tlscap.http.bodies import Body, BodyCollector, MessageCollector
from tlscap.http.events import Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.http.messages import AppMessage
from tlscap.importing.har import HarFile
from tlscap.model import Direction, Endpoint, Flow, Item, Process, Role

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE
SCHEMA = json.loads((Path(__file__).parent / "fixtures" / "har-1.2.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
GRPC_BODY = b"\0\0\0\0\2\x08\x01"


# --- Making exchanges ---


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def h2_items(
    request: list[tuple[str, str]],
    response: list[tuple[str, str]],
    body: bytes = b"",
    sent: bytes = b"",
    trailers: list[tuple[str, str]] | None = None,
    flow: Flow | None = None,
) -> list[Item]:
    """Return the items of one exchange in HTTP/2."""
    client, server = hpack.Encoder(), hpack.Encoder()
    wire = Wire(flow or make_flow(alpn="h2"))
    return [
        wire.out(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")),
        wire.into(frame(4, 0, 0, b"")),
        wire.out(frame(1, 4 if sent else 5, 1, client.encode(request))),
        *([wire.out(frame(0, 1, 1, sent))] if sent else []),
        wire.into(frame(1, 4, 1, server.encode(response))),
        wire.into(frame(0, 0 if trailers else 1, 1, body)),
        *([wire.into(frame(1, 5, 1, server.encode(trailers)))] if trailers else []),
    ]


H2_GET = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "h2.example"),
    (":path", "/x?a=1"),
    ("accept", "*/*"),
]
H2_CALL = [
    *[(":method", "POST"), (":scheme", "https"), (":authority", "h2.example:8443"), (":path", "/pkg.Service/Do")],
    *[("content-type", "application/grpc"), ("te", "trailers")],
]


def text_frame(data: bytes, *, masked: bool = False, opcode: int = 1) -> bytes:
    """Return a WebSocket frame; the mask is zeros."""
    return bytes([0x80 | opcode, len(data) | masked << 7]) + bytes(4 * masked) + data


def websocket_items(*pieces: tuple[Direction, bytes]) -> list[Item]:
    wire = Wire()
    asked = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    items: list[Item] = [wire.out(asked), wire.into(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")]
    items += [wire.out(data) if direction is OUT else wire.into(data) for direction, data in pieces]
    return [*items, wire.closed()]


def exchange_items(request: bytes, response: bytes, flow: Flow | None = None) -> list[Item]:
    wire = Wire(flow)
    return [*([wire.out(request)] if request else []), *([wire.into(response)] if response else [])]


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    fields = b"".join(b"%s\r\n" % header for header in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


def post(body: bytes, *headers: bytes) -> bytes:
    fields = b"".join(b"%s\r\n" % header for header in (b"Content-Length: %d" % len(body), *headers))
    return b"POST /p HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


Everything = list[tuple[Exchange, Body | None, Body | None, list[AppMessage]]]


def build(items: Iterable[Item], *, limit: int = 1 << 20) -> Everything:
    """Return the exchanges with their bodies and messages."""
    bodies, messages = BodyCollector(limit=limit), MessageCollector()
    builder = ExchangeBuilder(bodies, messages)
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    exchanges += builder.finish(START_NS + 1_000_000_000)
    return [
        (
            exchange,
            bodies.take(exchange, REQUEST),
            bodies.take(exchange, RESPONSE),
            messages.take(exchange)[0],
        )
        for exchange in sorted(exchanges, key=lambda exchange: exchange.id)
    ]


def har(everything: Everything) -> str:
    """Return a HAR file."""
    parts: list[str] = []
    writer = HarWriter(parts.append, creator_version="1.2.3")
    for one in everything:
        writer.add(*one)
    writer.finish()
    return "".join(parts)


def checked(everything: Everything) -> list[dict[str, Any]]:
    """Return the entries of a HAR file that satisfies everybody."""
    text = har(everything)
    assert text.isascii()
    parsed = json.loads(text)
    VALIDATOR.validate(parsed)
    check_as_browsers_do(parsed)
    entries: list[dict[str, Any]] = parsed["log"]["entries"]
    assert len(entries) == len(everything)
    return entries


def entry_of(items: Iterable[Item], **options: Any) -> dict[str, Any]:
    (entry,) = checked(build(items, **options))
    return entry


def check_as_browsers_do(parsed: dict[str, Any]) -> None:
    """Check what the importers of Chrome (HARFormat.ts) and Firefox (har-importer.js) would fail for."""
    log = parsed["log"]
    assert isinstance(log["pages"], list)  # Firefox
    assert log["creator"] == {"name": "tlscap", "version": "1.2.3"}
    for entry in log["entries"]:
        request, response, timings = entry["request"], entry["response"], entry["timings"]
        for number in (entry["time"], request["headersSize"], request["bodySize"], response["status"]):
            assert isinstance(number, int | float)
        for moment in (entry["startedDateTime"], *(cookie.get("expires") for cookie in response["cookies"])):
            assert moment is None or datetime.fromisoformat(moment).tzinfo
        assert isinstance(response["content"]["mimeType"], str)  # Chrome looks for its kind
        assert isinstance(request.get("postData", {}).get("text", ""), str)  # Chrome would show "undefined"
        assert isinstance(entry["cache"], dict)  # Firefox
        url = urlsplit(request["url"])  # Firefox gives up at one that is not valid
        assert url.hostname
        assert url.port is None or url.port < 65536
        assert url.scheme in ("http", "https", "ws", "wss")
        phases = [timings[name] for name in ("blocked", "dns", "connect", "send", "wait", "receive")]
        assert entry["time"] == pytest.approx(sum(phase for phase in phases if phase != -1), abs=1e-6)
        assert timings["ssl"] <= timings["connect"]
        for message in entry.get("_webSocketMessages", ()):
            assert message["type"] in ("send", "receive")
            assert isinstance(message["time"], float)
            assert isinstance(message["opcode"], int)
            assert isinstance(message["data"], str)


# --- One entry ---


def test_entry() -> None:
    """One exchange, with everything that is said of it."""
    items = simple_exchange(b'{"a":1}', b"Content-Type: application/json", b"X-Odd: \xff")
    entry = entry_of(items)
    assert entry == {
        "startedDateTime": "2026-11-20T18:00:00.124Z",
        "time": 1.0,
        "timings": {"blocked": -1, "dns": -1, "connect": -1, "ssl": -1, "send": 0.0, "wait": 1.0, "receive": 0.0},
        "request": {
            "method": "GET",
            "url": "https://a/",
            "httpVersion": "HTTP/1.1",
            "queryString": [],
            "cookies": [],
            "headers": [{"name": "Host", "value": "a"}],
            "headersSize": len(GET),
            "bodySize": 0,
        },
        "response": {
            "status": 200,
            "statusText": "OK",
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": [
                {"name": "Content-Length", "value": "7"},
                {"name": "Content-Type", "value": "application/json"},
                {"name": "X-Odd", "value": "ÿ"},
            ],
            "content": {"size": 7, "mimeType": "application/json", "text": '{"a":1}'},
            "redirectURL": "",
            "headersSize": 80,
            "bodySize": 7,
            "_transferSize": 87,
        },
        "cache": {},
        "serverIPAddress": "93.184.216.34",
        "connection": "1",
        "_id": 1,
        "_complete": True,
        "_problems": [],
        "_process": {
            "pid": 4711,
            "comm": "curl",
            "exe": "/usr/bin/curl",
            "cmdline": ["curl", "https://example.org/"],
            "uid": 1000,
        },
        "_flow": {
            "id": 1,
            "local": {"address": "10.0.0.1", "port": 40001},
            "remote": {"address": "93.184.216.34", "port": 443},
            "client": {"address": "10.0.0.1", "port": 40001},
            "server": {"address": "93.184.216.34", "port": 443},
            "role": "client",
            "sni": "example.org",
            "alpn": None,
            "tuple_source": "placeholder",
            "transport": "tcp",
        },
    }


def test_empty() -> None:
    """A file without entries is a file."""
    assert checked([]) == []


def test_many_entries() -> None:
    """Entries stand in the order in which they were added, each on its line."""
    everything = build([*simple_exchange(b"1"), *simple_exchange(b"2", flow=make_flow(2))])
    entries = checked(everything)
    assert [entry["response"]["content"]["text"] for entry in entries] == ["1", "2"]
    assert [entry["connection"] for entry in entries] == ["1", "2"]
    assert len(har(everything).splitlines()) == 4


def test_times() -> None:
    """The handshake that was waited for comes first, as a connection that was all TLS."""
    flow = make_flow(handshake_start_ns=START_NS - 30_000_000, handshake_end_ns=START_NS - 5_000_000)
    wire = Wire(flow)
    items: list[Item] = [wire.out(post(b"ab")[:-2]), wire.out(b"ab"), wire.gap(IN, 0), wire.into(answer(b"12")[:-1])]
    items += [wire.into(b"2"), wire.out(GET), wire.into(answer(b""))]
    first, second = checked(build(items))
    connecting = {"blocked": -1, "dns": -1, "connect": 25.0, "ssl": 25.0}
    assert first["timings"] == connecting | {"send": 1.0, "wait": 2.0, "receive": 1.0}
    assert first["time"] == 29.0
    assert first["startedDateTime"] == "2026-11-20T18:00:00.099Z"  # a millisecond after the start, less 25
    assert (second["timings"]["connect"], second["timings"]["ssl"]) == (-1, -1)


def test_early_answer() -> None:
    """An answer that came before all of the request was sent has no negative times."""
    wire = Wire()
    entry = entry_of([wire.out(post(b"abc")[:-3]), wire.into(answer(b"no")), wire.out(b"abc")])
    assert entry["timings"]["send"] == 1.0
    assert (entry["timings"]["wait"], entry["timings"]["receive"]) == (0.0, 0.0)


def test_halves() -> None:
    """What was not seen looks as in browsers: status 0; or is said."""
    asked = entry_of([Wire().out(GET)])
    assert (asked["response"]["status"], asked["response"]["httpVersion"], asked["time"]) == (0, "HTTP/1.1", 0)
    assert asked["_problems"]
    assert not asked["_complete"]
    answered = entry_of([Wire().into(answer(b"hi"))])
    assert (answered["request"]["method"], answered["request"]["url"]) == ("UNKNOWN", "https://example.org/")
    assert answered["_problems"] == ["request not seen"]


def test_http2() -> None:
    """HTTP/2 has its version, no pseudo-header fields, no size of its heads, and trailers."""
    trailers = [("grpc-status", "0")]
    response = [(":status", "200"), ("content-type", "application/grpc")]
    entry = entry_of(h2_items(H2_CALL, response, GRPC_BODY, GRPC_BODY, trailers))
    request, response_ = entry["request"], entry["response"]
    assert (request["httpVersion"], response_["httpVersion"]) == ("HTTP/2", "HTTP/2")
    assert request["url"] == "https://h2.example:8443/pkg.Service/Do"
    assert [field["name"] for field in request["headers"]] == ["content-type", "te"]
    assert (request["headersSize"], request["bodySize"], response_["statusText"]) == (-1, 7, "")
    assert response_["_trailers"] == [{"name": "grpc-status", "value": "0"}]
    assert response_["content"]["encoding"] == "base64"
    assert base64.b64decode(request["postData"]["text"]) == GRPC_BODY
    assert entry_of(h2_items(H2_GET, [(":status", "204")]))["request"]["queryString"] == [{"name": "a", "value": "1"}]


def test_interim() -> None:
    """Interim statuses are kept."""
    entry = entry_of(exchange_items(GET, b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(b"")))
    assert entry["_interim"] == [103]


def test_server_side() -> None:
    """The server's address is the local one when the server was recorded."""
    flow = make_flow(role=Role.SERVER, local=Endpoint("fe80::1%eth0", 8443), remote=Endpoint("10.0.0.9", 5), sni="")
    wire = Wire(flow)
    entry = entry_of([wire.into(b"GET / HTTP/1.0\r\n\r\n"), wire.out(answer(b""))])
    assert entry["serverIPAddress"] == "fe80::1"


def test_unknown_role() -> None:
    """No address is made up."""
    entry = entry_of(simple_exchange(flow=make_flow(role=Role.UNKNOWN)))
    assert "serverIPAddress" not in entry


def test_process_that_is_no_text() -> None:
    """Names of processes may hold any bytes."""
    flow = make_flow(process=Process(1, comm="a\udcff", cmdline=("\ud800",)))
    assert entry_of(simple_exchange(flow=flow))["_process"]["comm"] == "a\ufffd"


# --- URLs ---

URLS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "query": (b"GET /a?b=c&d#e HTTP/1.1\r\nHost: h:8443\r\n\r\n", {}, "https://h:8443/a?b=c&d%23e"),
    "odd bytes": (b"GET /\xe9\x01| HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h/%E9%01|"),
    "a blank": (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h/a%20b"),
    "CONNECT": (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h:1/"),
    "absolute": (b"GET http://x/y HTTP/1.1\r\nHost: h\r\n\r\n", {}, "http://x/y"),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h"),
    "no path": (b"GET http://x#y HTTP/1.1\r\nHost: h\r\n\r\n", {}, "http://x/%23y"),
    "IPv6": (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\r\n", {}, "https://[2001:db8::1]:8443/"),
}
BAD_HOSTS = [
    b"a b",
    b"\x00",
    b"h:99999",
    b"999.1.1.1",
    b"x.1",
    b"[::zz]",
    b"user@h",
    b"\xff",
    b"xn--\xe4",
    b"xn--a-!",
    b"h:x",
    b"#[",
    b"a/b",
    b"?",
]


@pytest.mark.parametrize("case", URLS)
def test_url(case: str) -> None:
    """URLs are as they were asked for, percent-encoded where they must be."""
    request, changes, url = URLS[case]
    assert entry_of(exchange_items(request, b"", make_flow(**changes)))["request"]["url"] == url


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_url_with_bad_host(host: bytes) -> None:
    """A host that no importer would take is replaced by the one of the connection, and that is said."""
    request = b"GET /x HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    entry = entry_of(exchange_items(request, b"", make_flow(sni="", remote=Endpoint("::1", 444))))
    assert entry["request"]["url"] == "https://[::1]:444/x"
    assert any("URL is not valid" in problem for problem in entry["_problems"])
    unknown = entry_of(exchange_items(request, b"", make_flow(sni="x:1", remote=None)))
    assert unknown["request"]["url"] == "https://unknown.invalid/x"


def test_query() -> None:
    """A query's parts are decoded as forms are; what is no UTF-8 is replaced."""
    entry = entry_of([Wire().out(b"GET /?a=b+c&%C3%A9=%ff&x&=&y=1=2 HTTP/1.1\r\nHost: h\r\n\r\n")])
    pairs = [(pair["name"], pair["value"]) for pair in entry["request"]["queryString"]]
    assert pairs == [("a", "b c"), ("é", "\ufffd"), ("x", ""), ("", ""), ("y", "1=2")]


# --- Cookies ---


def test_cookies() -> None:
    """Cookies are read as leniently as they are written."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1; b = 2 ;; c; d=e=f\r\ncookie: g=\xc3\xa9\r\n\r\n"
    cookies = entry_of([Wire().out(request)])["request"]["cookies"]
    found = [(cookie["name"], cookie["value"]) for cookie in cookies]
    assert found == [("a", "1"), ("b", "2"), ("", "c"), ("d", "e=f"), ("g", "é")]


SET_COOKIES: dict[bytes, dict[str, Any]] = {
    b"a=b; Path=/x; Domain=.h; Secure; HttpOnly; SameSite=Lax": {
        "path": "/x",
        "domain": ".h",
        "secure": True,
        "httpOnly": True,
    },
    b"a=b; Expires=Wed, 21 Oct 2015 07:28:00 GMT": {"expires": "2015-10-21T07:28:00.000Z"},
    b"a=b; expires=Thu, 01-Jan-1970 00:00:00 GMT": {"expires": "1970-01-01T00:00:00.000Z"},
    b"a=b; Expires=Wed, 21 Oct 2015 07:28:00 +0200": {"expires": "2015-10-21T05:28:00.000Z"},
    b"a=b; Max-Age=60; Expires=Wed, 21 Oct 2015 07:28:00 GMT": {"expires": "2026-11-20T18:01:00.000Z"},
    b"a=b; Max-Age=0": {"expires": "1970-01-01T00:00:00.000Z"},
    b"a=b; Max-Age=-1": {"expires": "1970-01-01T00:00:00.000Z"},
    b"a=b; Max-Age=" + b"9" * 5000: {"expires": "9999-12-31T23:59:59.000Z"},
    b"a=b; Max-Age=1e3": {},
    b"a=b; Expires=never": {},
    b"a=b; Expires=Fri, 99 Foo 99999 99:99:99 GMT": {},
    b"a=b; Expires=Fri, 31 Dec 9999 23:59:59 -2359": {},
    b"a=b; Expires=": {},
    b" a = b ; path": {"path": ""},
}


@pytest.mark.parametrize("line", SET_COOKIES)
def test_set_cookie(line: bytes) -> None:
    """Attributes of cookies, among them dates that are none."""
    (cookie,) = entry_of(simple_exchange(b"", b"Set-Cookie: " + line))["response"]["cookies"]
    assert cookie == {"name": "a", "value": "b", "httpOnly": False, "secure": False} | SET_COOKIES[line]


# --- Bodies ---


def test_encoded_body() -> None:
    """Bodies are decoded, and it is said how much the coding saved."""
    text = b"text " * 1000
    sent = brotli.compress(text)
    content = entry_of(simple_exchange(sent, b"Content-Encoding: br"))["response"]["content"]
    assert content == {
        "mimeType": "x-unknown",
        "size": 5000,
        "compression": 5000 - len(sent),
        "text": text.decode(),
    }


def test_body_that_can_not_be_decoded() -> None:
    """What could not be decoded is there as it was sent."""
    content = entry_of(simple_exchange(b"junk", b"Content-Encoding: gzip", b"Content-Type: text/plain"))["response"][
        "content"
    ]
    assert (base64.b64decode(content["text"]), content["size"], content["encoding"]) == (b"junk", 4, "base64")
    assert content["comment"].startswith("as transferred: gzip")


def test_bodies_that_were_not_kept() -> None:
    """Without bodies the sizes stay true, as far as they are known."""
    (exchange,) = (one[0] for one in build(exchange_items(post(b"abc"), answer(b"hello"))))
    entry = exchange_to_entry(exchange)
    assert (entry["request"]["bodySize"], entry["request"]["postData"]["text"]) == (3, "")
    assert entry["response"]["content"] == {"mimeType": "x-unknown", "size": 5}
    (exchange,) = (one[0] for one in build(simple_exchange(b"junk", b"Content-Encoding: gzip")))
    assert exchange_to_entry(exchange)["response"]["content"]["size"] == -1
    assert len(checked([(exchange, None, None, [])])) == 1


def test_truncated_body() -> None:
    """A body beyond the limit is cut, at a character, and says how long it is."""
    content = entry_of(simple_exchange("äöü".encode()), limit=5)["response"]["content"]
    assert (content["text"], content["size"], content["comment"]) == ("äö", 6, "first 5 of 6 bytes")


def test_body_with_holes() -> None:
    """Holes are said, and count as transferred."""
    wire = Wire()
    items: list[Item] = [wire.out(GET), wire.into(answer(b"0123456789")[:-8]), wire.gap(IN, 3), wire.into(b"56")]
    items += [wire.gap(IN, 1), wire.into(b"89")]
    entry = entry_of(items)
    content = entry["response"]["content"]
    assert (content["text"], content["size"], entry["response"]["bodySize"]) == ("015689", 6, 10)
    assert content["comment"] == "4 bytes missing: at 2 (ring-full) and 1 more holes"
    assert not entry["_complete"]


def test_post_data() -> None:
    """Requests' bodies are text where they are that, else base64."""
    form = entry_of([Wire().out(post(b"a=1&b=2", b"Content-Type: application/x-www-form-urlencoded"))])
    assert form["request"]["postData"] == {
        "mimeType": "application/x-www-form-urlencoded",
        "params": [],
        "text": "a=1&b=2",
    }
    binary = entry_of([Wire().out(post(b"\x00\xff"))])["request"]["postData"]
    assert binary == {"mimeType": "", "params": [], "text": "AP8=", "encoding": "base64"}


def test_head_and_304() -> None:
    """Answers without a body have none, whatever their fields say."""
    head = entry_of(
        exchange_items(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    )
    assert (head["response"]["bodySize"], head["response"]["content"]["size"]) == (0, 0)
    moved = entry_of(exchange_items(GET, answer(b"", b"Location: /x", status=b"302 Found")))
    assert moved["response"]["redirectURL"] == "/x"


# --- WebSocket ---


def test_websocket() -> None:
    """Messages are told as Chrome does."""
    items = websocket_items(
        (OUT, text_frame("grüß".encode(), masked=True)),
        (IN, text_frame(b"\x00\xff", opcode=2)),
        (IN, text_frame(b"\x03\xe8bye", opcode=8)),
    )
    entry = entry_of(items)
    assert (entry["_resourceType"], entry["request"]["url"], entry["response"]["status"]) == (
        "websocket",
        "wss://a/ws",
        101,
    )
    messages = [(one["type"], one["opcode"], one["data"]) for one in entry["_webSocketMessages"]]
    close = base64.b64encode(b"\x03\xe8bye").decode()
    assert messages == [("send", 1, "grüß"), ("receive", 2, "AP8="), ("receive", 8, close)]
    times = [one["time"] for one in entry["_webSocketMessages"]]
    assert times == sorted(times)
    assert times[0] == pytest.approx(START_NS / 1e9 + 0.003, abs=1e-6)


def test_websocket_with_junk() -> None:
    """What is no message is left out, and that is said."""
    everything = build(websocket_items((IN, b"\x7f\xff\xff no frame")))
    entry = checked(everything)[0]
    assert entry["_webSocketMessages"] == []
    assert any("left out" in problem for problem in entry["_problems"])
    exchange = everything[0][0]
    assert "websocket: 7 messages left out" in exchange_to_entry(exchange, None, None, [], 7)["_problems"]


# --- Back again ---


def through_har(items: Iterable[Item], **options: Any) -> Everything:
    """Return what is left of exchanges that went through a file."""
    text = har(build(items, **options))
    flow_items = list(HarFile(io.BytesIO(text.encode())).items())
    numbers: dict[int, int] = {}
    for item in flow_items:  # whoever reads a capture numbers its flows
        item.flow.id = numbers.setdefault(id(item.flow), len(numbers) + 1)
    return build(flow_items)


ROUND_TRIPS: dict[str, list[Item]] = {
    "text": simple_exchange("grün\r\n".encode(), b"Content-Type: text/plain; charset=utf-8", b"X: \xe9"),
    "latin-1": simple_exchange(b"gr\xfcn", b"Content-Type: text/plain; charset=iso-8859-1"),
    "binary": simple_exchange(bytes(range(256)), b"Content-Type: image/png"),
    "posted": exchange_items(post(b"\x00\xff", b"Content-Type: x/y"), answer(b"ok")),
    "posted text": exchange_items(post("ä=1".encode(), b"Content-Type: application/json"), answer(b"ok")),
    "websocket": websocket_items((OUT, text_frame(b"hi", masked=True)), (IN, text_frame(b"\0", opcode=2))),
    "odd target": exchange_items(b"GET /%zz?a=%41+b HTTP/1.1\r\nHost: a\r\n\r\n", answer(b"")),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_round_trip(case: str) -> None:
    """What an importer makes of a file is what was exported."""
    before = build(ROUND_TRIPS[case])
    after = through_har(ROUND_TRIPS[case])
    assert len(before) == len(after) == 1
    for (was, was_sent, was_got, was_said), (is_, sent, got, said) in zip(before, after, strict=True):
        assert was.request
        assert is_.request
        assert was.response
        assert is_.response
        assert (was.request.head.method, was.request.head.target) == (is_.request.head.method, is_.request.head.target)
        assert set(was.request.headers) == set(is_.request.headers)
        assert set(was.response.headers) <= {*is_.response.headers, (b"Content-Length", b"0")}
        assert (was_sent and was_sent.data, was_got and was_got.data) == (sent and sent.data, got and got.data)
        assert [(one.kind, one.data) for one in was_said] == [(one.kind, one.data) for one in said]


# --- Anything ---


VALUES = st.binary(max_size=20).map(lambda value: re.sub(rb"[\r\n]", b"", value).strip(b" \t"))


@settings(max_examples=150, deadline=None)
@given(
    target=VALUES,
    host=VALUES,
    fields=st.lists(
        st.tuples(
            st.sampled_from([b"Cookie", b"Set-Cookie", b"Content-Type", b"Location", b"X", b"Content-Encoding"]), VALUES
        ),
        max_size=4,
    ),
    body=st.binary(max_size=50),
    sni=st.text(max_size=8),
    limit=st.integers(0, 60),
)
def test_anything(
    target: bytes, host: bytes, fields: list[tuple[bytes, bytes]], body: bytes, sni: str, limit: int
) -> None:
    """Whatever passes, the file is valid, fields keep their bytes, and a whole body can be had back."""
    lines = [name + b": " + value for name, value in fields]
    request = b"POST /" + target + b" HTTP/1.1\r\n" + b"\r\n".join([b"Host: " + host, *lines]) + b"\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    for (exchange, sent, _, _), entry in zip(
        everything := build(exchange_items(request, answer(body, *lines), make_flow(sni=sni)), limit=limit),
        checked(everything),
        strict=True,
    ):
        if exchange.request:
            headers = [
                (one["name"].encode("latin-1"), one["value"].encode("latin-1")) for one in entry["request"]["headers"]
            ]
            assert headers == list(exchange.request.headers)
        if sent and sent.data and not sent.truncated and not sent.note:
            posted = entry["request"]["postData"]
            text = posted["text"]
            data = base64.b64decode(text) if "encoding" in posted else text.encode()
            assert data == sent.data


def test_judges_are_awake() -> None:
    """The schema refuses what the specification does."""
    entry = json.loads(har(build(simple_exchange())))
    for path, value in [
        (("startedDateTime",), "2026-11-20 18:00"),
        (("time",), -1),
        (("request", "url"), "/relative"),
        (("response", "status"), "200"),
        (("timings", "send"), -1),
        (("serverIPAddress",), "example.org"),
        (("process",), {}),
        (("response", "content", "encoding"), "gzip"),
    ]:
        broken = json.loads(json.dumps(entry))
        place = broken["log"]["entries"][0]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        assert not VALIDATOR.is_valid(broken), path
    assert ipaddress.ip_address(entry["log"]["entries"][0]["serverIPAddress"])
